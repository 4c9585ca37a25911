//! `access …`.

use clap::Subcommand;
use warmd_core::model::access::{Role, Subject};
use warmd_proto::v1::{AccessGrantRequest, AccessListRequest, AccessRevokeRequest, Grant};

use super::{
    address::DaemonAddress,
    client::{Client, asked},
    failure::{CliFailure, Exit},
    labels,
    out::Out,
    table::Column,
};

const COLUMNS: [Column; 5] = [
    Column::text("SUBJECT").cut(4, 16),
    Column::text("ROLE"),
    Column::text("PLANS").cut(3, 12),
    Column::text("GRANTED BY").cut(2, 12).leave(3),
    Column::text("GRANTED (UTC)").leave(1),
];

#[derive(Debug, Subcommand)]
pub(super) enum AccessCommand {
    /// List all roles: whose, for which plans, granted by whom
    List,
    /// Give a role to a certificate, a user or a group, in place of its earlier one
    ///
    /// viewer looks; operator also runs migrations (sync, pause, resume, verify, cutover, abort, rollback,
    /// limits); planner also applies and deletes plans without programs, and cancels migrations; admin does
    /// all, for all plans. warmd's own user and root may do all on the daemon's host.
    Grant {
        /// cert:NAME (common name of a client certificate), user:NAME or group:NAME (of the daemon's host)
        subject: Subject,
        /// viewer, operator, planner or admin
        #[arg(long)]
        role: Role,
        /// Only for plans whose names match: * stands for any characters, ? for one; may be repeated
        #[arg(long = "plans", value_name = "GLOB")]
        plans: Vec<String>,
    },
    /// Remove the role of a certificate, a user or a group; takes effect with the next request
    Revoke { subject: Subject },
}

pub(super) async fn run(daemon: &DaemonAddress, out: &Out, command: AccessCommand) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    match command {
        AccessCommand::List => {
            let answer = client.access().list(asked(AccessListRequest {})).await?.into_inner();
            if out.is_json() { out.json(&answer) } else { table(out, &answer.grants) }
        }
        AccessCommand::Grant { subject, role, plans } => {
            let (subject, role) = (subject.to_string(), role.to_string());
            let request = AccessGrantRequest { subject, role, plans };
            let answer = client.access().grant(asked(request)).await?.into_inner();
            if out.is_json() { out.json(&answer) } else { table(out, answer.grant.as_slice()) }
        }
        AccessCommand::Revoke { subject } => {
            let request = AccessRevokeRequest { subject: subject.to_string() };
            let answer = client.access().revoke(asked(request)).await?.into_inner();
            if out.is_json() {
                out.json(&answer)
            } else if answer.had_role {
                out.text(&format!("{subject} has no role any more\n"))
            } else {
                Err(CliFailure::new(
                    Exit::NotFound,
                    format!("{subject} has no role: see warmctl access list"),
                ))
            }
        }
    }
}

fn table(out: &Out, grants: &[Grant]) -> Result<(), CliFailure> {
    let row = |grant: &Grant| {
        [
            grant.subject.clone(),
            grant.role.clone(),
            if grant.plans.is_empty() { "all".to_owned() } else { grant.plans.join(", ") },
            grant.granted_by.clone(),
            labels::moment(grant.granted_at.as_ref()),
        ]
    };
    out.table(&COLUMNS, grants.iter().map(row))
}
