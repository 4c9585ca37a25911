//! The caller, as the journal keeps it in `by`.

use tonic::{
    Extensions,
    transport::server::{TcpConnectInfo, UdsConnectInfo},
};

/// The operator at the other end of the connection, as the kernel identifies it.
pub(super) fn by(extensions: &Extensions) -> String {
    if let Some(uds) = extensions.get::<UdsConnectInfo>() {
        return match uds.peer_cred {
            Some(cred) => match cred.pid() {
                Some(pid) => format!("operator uid={} pid={pid}", cred.uid()),
                None => format!("operator uid={}", cred.uid()),
            },
            None => "operator".to_owned(),
        };
    }
    if let Some(address) = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr) {
        return format!("operator {address}");
    }
    "operator".to_owned()
}
