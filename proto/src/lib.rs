//! warmd's gRPC contracts, generated from `proto/`: the control API, the provisioner that a platform
//! implements, and the hooks that an operator's service implements.
//!
//! Rule: nothing but generated code, its descriptors, its JSON form and what both ends must agree on; meaning
//! lives in the daemon.

pub mod channel;
mod json;

/// The control API, `warmd.v1`.
pub mod v1 {
    tonic::include_proto!("warmd.v1");
}

/// The platform's side of cutover, `warmd.provisioner.v1`.
pub mod provisioner {
    /// First version of the provisioner contract.
    pub mod v1 {
        tonic::include_proto!("warmd.provisioner.v1");
    }
}

/// What an operator's service receives around the phases of a cutover, `warmd.hooks.v1`.
pub mod hooks {
    /// First version of the hooks contract.
    pub mod v1 {
        tonic::include_proto!("warmd.hooks.v1");
    }
}

/// The encoded `FileDescriptorSet` of every contract here, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The name of the response trailer that carries the kind of a refusal.
pub const KIND_TRAILER: &str = "warmd-kind";

/// The largest request, in bytes. A plan with ten thousand VMs is far smaller.
pub const MAX_REQUEST: usize = 1 << 20;
