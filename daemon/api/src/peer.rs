//! The caller at the other end of a connection, as the kernel or its certificate identifies it.
//!
//! Rule: the identity is found once, when the connection is made. A peer that cannot be identified is
//! refused, or has no role.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use std::{ffi::CString, time::Duration};
use tokio::net::unix::UCred;
use warmd_core::model::access::{Caller, Identity, Subject};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The most groups of a user that count.
const MOST_GROUPS: usize = 1024;

/// Whether this is root or the daemon's own user, who may do all.
pub(super) fn is_owner(cred: UCred) -> bool {
    let uid = Uid::from_raw(cred.uid());
    uid.is_root() || uid == Uid::effective()
}

/// The user at the other end of the Unix socket. Blocks: the host looks up names.
pub(super) fn of_socket(cred: UCred) -> Caller {
    let uid = Uid::from_raw(cred.uid());
    let name = match cred.pid() {
        Some(pid) => format!("operator uid={uid} pid={pid}"),
        None => format!("operator uid={uid}"),
    };
    if is_owner(cred) {
        return Caller { name, identity: Identity::Owner };
    }
    let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let gid = Gid::from_raw(cred.gid());
    let mut gids = vec![gid];
    if let Some(user) = user.as_ref().and_then(|user| CString::new(user.as_bytes()).ok()) {
        gids.extend(getgrouplist(&user, gid).unwrap_or_default().into_iter().take(MOST_GROUPS));
    }
    let mut groups: Vec<_> =
        gids.into_iter().filter_map(|gid| Some(Group::from_gid(gid).ok()??.name)).collect();
    groups.sort();
    groups.dedup();
    Caller { name, identity: Identity::User { name: user.unwrap_or_else(|| uid.to_string()), groups } }
}

/// The owner of a client certificate that the CA has signed: its subject's common name.
/// Also how long the certificate is valid from now on.
pub(super) fn of_certificate(
    der: &[u8],
    address: impl std::fmt::Display,
) -> Result<(Caller, Duration), String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("the certificate cannot be read: {error}"))?;
    let mut names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err("the certificate's subject has not exactly one common name (CN)".to_owned());
    };
    // Only a name that can be granted a role.
    let Ok(Subject::Certificate(name)) = format!("cert:{name}").parse() else {
        return Err(format!(
            "the certificate's common name `{}` cannot be granted a role: it has 1 to 128 characters, and neither spaces nor commas",
            name.escape_debug()
        ));
    };
    let valid_for = certificate.validity().time_to_expiration().ok_or("the certificate has expired")?;
    let identity = Identity::Certificate(name.clone());
    Ok((Caller { name: format!("operator cert={name} {address}"), identity }, valid_for.unsigned_abs()))
}
