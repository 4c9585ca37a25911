//! The client of `warmd.provisioner.v1`.
//!
//! Rule: one call, one attempt, one deadline; the caller may ask again, because every call is idempotent by
//! the migration's id. Only a refusal in an answer to StartVm says that the machine surely does not run: a
//! gRPC error says nothing about what an earlier call did.

use std::{future::Future, time::Duration};

use tonic::{Code, Request, Response, Status, transport::Channel};
use warmd_core::{
    model::id::MigrationId,
    targets::{CreateMachine, MachineState, TargetError, TargetErrorKind},
};
use warmd_proto::{
    channel,
    provisioner::v1::{
        self as wire, PowerState, RefusalReason, create_vm_response, provisioner_client::ProvisionerClient,
        start_vm_response,
    },
};
use warmd_storage::LocatedDisk;

use super::{convert, settings::ProvisionerSettings};

/// A provisioner, with a connection from its first call on, made again whenever it is lost.
#[derive(Clone, Debug)]
pub(super) struct Provisioner {
    address: String,
    deadline: Duration,
    channel: Channel,
}

impl Provisioner {
    pub(super) fn new(settings: &ProvisionerSettings) -> Result<Self, TargetError> {
        let address = settings.address.clone();
        let refused = |why: String| {
            let context = format!("the provisioner's address {address:?}");
            TargetError::new(TargetErrorKind::Refused, context, why)
        };
        if settings.deadline.is_zero() {
            return Err(refused("its `deadline` is 0: no call could ever succeed".to_owned()));
        }
        let channel = channel::open(&address, settings.deadline).map_err(refused)?;
        Ok(Self { address, deadline: settings.deadline, channel })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it answers; asks for a machine that cannot exist.
    pub(super) async fn check(&self) -> Result<(), TargetError> {
        self.get(MigrationId(uuid::Uuid::nil())).await.map(drop)
    }

    pub(super) async fn create(
        &self,
        request: &CreateMachine,
        disks: &[LocatedDisk],
    ) -> Result<(), TargetError> {
        let doing = self.doing("creating", request.owner);
        let call = self.request(convert::create(request, disks));
        let answer = self.call(&doing, by_code, self.client().create_vm(call)).await?;
        match answer.outcome {
            Some(create_vm_response::Outcome::Vm(_)) => Ok(()),
            Some(create_vm_response::Outcome::Refusal(refusal)) => {
                Err(refused(reason_kind(refusal.reason()), doing, &refusal))
            }
            None => Err(empty(doing)),
        }
    }

    pub(super) async fn start(&self, owner: MigrationId) -> Result<(), TargetError> {
        let doing = self.doing("starting", owner);
        let call = self.request(wire::StartVmRequest { migration_id: owner.to_string() });
        let answer = self.call(&doing, by_code_of_start, self.client().start_vm(call)).await?;
        match answer.outcome {
            Some(start_vm_response::Outcome::Vm(_)) => Ok(()),
            Some(start_vm_response::Outcome::Refusal(refusal)) => {
                let kind = match refusal.reason() {
                    RefusalReason::NotFound => TargetErrorKind::NotFound,
                    _ => TargetErrorKind::Refused,
                };
                Err(refused(kind, doing, &refusal))
            }
            None => Err(empty(doing)),
        }
    }

    pub(super) async fn look(&self, owner: MigrationId) -> Result<MachineState, TargetError> {
        let Some(vm) = self.get(owner).await? else { return Ok(MachineState::Absent) };
        match vm.power() {
            PowerState::Stopped => Ok(MachineState::Stopped),
            PowerState::Starting => Ok(MachineState::Starting),
            PowerState::Running => Ok(MachineState::Running),
            PowerState::Failed => Ok(MachineState::Failed(vm.detail)),
            PowerState::Unspecified => Err(empty(self.doing("looking at", owner))),
        }
    }

    pub(super) async fn discard(&self, owner: MigrationId) -> Result<(), TargetError> {
        let doing = self.doing("deleting", owner);
        let call = self.request(wire::DeleteVmRequest { migration_id: owner.to_string() });
        let answer = self.call(&doing, by_code, self.client().delete_vm(call)).await?;
        match answer.refusal {
            Some(refusal) if refusal.reason() != RefusalReason::NotFound => {
                Err(refused(reason_kind(refusal.reason()), doing, &refusal))
            }
            _ => Ok(()),
        }
    }

    async fn get(&self, owner: MigrationId) -> Result<Option<wire::Vm>, TargetError> {
        let call = self.request(wire::GetVmRequest { migration_id: owner.to_string() });
        let doing = self.doing("looking at", owner);
        Ok(self.call(&doing, by_code, self.client().get_vm(call)).await?.vm)
    }

    fn client(&self) -> ProvisionerClient<Channel> {
        ProvisionerClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    fn doing(&self, what: &str, owner: MigrationId) -> String {
        format!("{what} the machine of migration {owner} by the provisioner at {}", self.address)
    }

    async fn call<T>(
        &self,
        doing: &str,
        kind: fn(Code) -> TargetErrorKind,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, TargetError> {
        match tokio::time::timeout(self.deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(TargetError::new(kind(code_of(&status)), doing, status)),
            Err(late) => Err(TargetError::new(TargetErrorKind::Timeout, doing, late)),
        }
    }
}

/// The status's code. A connection that broke under the call is [`Code::Unknown`] or [`Code::Cancelled`] with
/// a cause in tonic; the same code from the provisioner itself has none.
fn code_of(status: &Status) -> Code {
    use std::error::Error as _;
    match status.code() {
        _ if channel::is_late(status) => Code::DeadlineExceeded,
        Code::Unknown | Code::Cancelled if status.source().is_some() => Code::Unavailable,
        code => code,
    }
}

/// The meaning of a gRPC error for any call but StartVm.
fn by_code(code: Code) -> TargetErrorKind {
    match code {
        Code::Unavailable => TargetErrorKind::Unreachable,
        Code::DeadlineExceeded => TargetErrorKind::Timeout,
        Code::NotFound => TargetErrorKind::NotFound,
        Code::AlreadyExists => TargetErrorKind::Conflict,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => TargetErrorKind::Refused,
        Code::Ok
        | Code::Unknown
        | Code::Cancelled
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => TargetErrorKind::Failed,
    }
}

/// The same for StartVm, where `Refused` would say that the machine surely does not run, which no error can
/// know.
fn by_code_of_start(code: Code) -> TargetErrorKind {
    match by_code(code) {
        TargetErrorKind::Refused => TargetErrorKind::Failed,
        other => other,
    }
}

fn reason_kind(reason: RefusalReason) -> TargetErrorKind {
    match reason {
        RefusalReason::NameTaken => TargetErrorKind::Conflict,
        RefusalReason::NoCapacity => TargetErrorKind::NoSpace,
        RefusalReason::NotFound => TargetErrorKind::NotFound,
        RefusalReason::Unspecified | RefusalReason::Unsupported | RefusalReason::BadDisk => {
            TargetErrorKind::Refused
        }
    }
}

fn refused(kind: TargetErrorKind, doing: String, refusal: &wire::Refusal) -> TargetError {
    TargetError::new(kind, doing, format!("the provisioner refuses: {}", refusal.message))
}

fn empty(doing: String) -> TargetError {
    TargetError::new(TargetErrorKind::Failed, doing, "its answer is empty: it does not keep the contract")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_judged() {
        let new = |address: &str| {
            Provisioner::new(&ProvisionerSettings {
                address: address.to_owned(),
                deadline: Duration::from_secs(1),
            })
        };
        for good in ["unix:/run/p.sock", "http://127.0.0.1:9", "http://[::1]:9", "http://localhost:9"] {
            assert!(new(good).is_ok(), "{good}");
        }
        for wrong in ["", "unix:p.sock", "http://example.org:9", "https://127.0.0.1:9", "127.0.0.1:9", "\0"] {
            assert_eq!(new(wrong).unwrap_err().kind, TargetErrorKind::Refused, "{wrong}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", dir.path().join("none").display());
        let provisioner =
            Provisioner::new(&ProvisionerSettings { address, deadline: Duration::from_secs(5) }).unwrap();
        let error = provisioner.start(MigrationId::generate()).await.unwrap_err();
        assert_eq!(error.kind, TargetErrorKind::Unreachable, "{error}");
    }

    #[test]
    fn no_grpc_error_of_start_says_that_it_does_not_run() {
        for code in 0..17 {
            assert_ne!(by_code_of_start(Code::from(code)), TargetErrorKind::Refused);
        }
    }
}
