//! Grants.

use warmd_core::model::access::Grant;
use warmd_proto::v1;

use super::timestamp;

/// A role that a subject has.
pub(crate) fn grant(grant: Grant) -> v1::Grant {
    v1::Grant {
        subject: grant.subject.to_string(),
        role: grant.role.name().to_owned(),
        plans: grant.plans,
        granted_by: grant.by,
        granted_at: Some(timestamp(grant.at)),
    }
}
