//! An example of a provisioner: `warmd.provisioner.v1` on a Unix socket, for machines in a libvirt of this
//! host.
//!
//! usage: provisioner --listen unix:PATH --directory DIR [--uri URI] [--domain-type auto|kvm|qemu]
//!
//! Rule: it has no state. The machine's metadata names its migration, so that the provisioner
//! can be restarted at any moment.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use tokio::{net::UnixListener, signal::unix::SignalKind};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use warmd_cbt::units::Length;
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic},
    },
    targets::{CreateMachine, DiskSpec, MachineState, Target, TargetError, TargetErrorKind},
};
use warmd_endpoint_libvirt::target::{DiskBus, DomainType, LibvirtTarget, LibvirtTargetSettings};
use warmd_proto::provisioner::v1::{
    self as wire, PowerState, RefusalReason, create_vm_response, provisioner_server, start_vm_response,
};

#[tokio::main]
async fn main() -> ExitCode {
    match serve(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("provisioner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(mut args: impl Iterator<Item = String>) -> Result<()> {
    let mut listen = None;
    let mut settings = LibvirtTargetSettings {
        uri: "qemu:///system".to_owned(),
        directory: None,
        pool: None,
        storages: std::collections::BTreeMap::new(),
        domain_type: DomainType::Auto,
        disk_bus: DiskBus::Virtio,
    };
    while let Some(name) = args.next() {
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--listen" => {
                listen = Some(value.strip_prefix("unix:").context("--listen takes unix:PATH")?.to_owned());
            }
            "--uri" => settings.uri = value,
            "--directory" => settings.directory = Some(value.into()),
            "--domain-type" => {
                settings.domain_type = match value.as_str() {
                    "auto" => DomainType::Auto,
                    "kvm" => DomainType::Kvm,
                    "qemu" => DomainType::Qemu,
                    _ => bail!("--domain-type is auto, kvm or qemu"),
                }
            }
            _ => bail!("{name} is no option of mine"),
        }
    }
    let path = listen.context("say where to listen: --listen unix:PATH")?;
    let target = LibvirtTarget::new(&settings)?;
    let incoming = UnixListenerStream::new(bind(Path::new(&path))?);
    let mut end = tokio::signal::unix::signal(SignalKind::terminate())?;
    println!("listening on {path}");
    Server::builder()
        .add_service(provisioner_server::ProvisionerServer::new(Provisioner { target }))
        .serve_with_incoming_shutdown(incoming, async move {
            end.recv().await;
        })
        .await?;
    std::fs::remove_file(path).ok();
    Ok(())
}

/// Listens on a new socket that only this user can open.
fn bind(path: &Path) -> Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another process listens on {} already", path.display());
    }
    std::fs::remove_file(path).ok();
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

struct Provisioner {
    target: LibvirtTarget,
}

#[tonic::async_trait]
impl provisioner_server::Provisioner for Provisioner {
    async fn create_vm(
        &self,
        request: Request<wire::CreateVmRequest>,
    ) -> Result<Response<wire::CreateVmResponse>, Status> {
        let request = create(request.into_inner())?;
        let outcome = match self.make(&request).await {
            Ok(()) => create_vm_response::Outcome::Vm(self.vm(request.owner).await?),
            Err(error) => create_vm_response::Outcome::Refusal(refusal(error)?),
        };
        Ok(Response::new(wire::CreateVmResponse { outcome: Some(outcome) }))
    }

    async fn start_vm(
        &self,
        request: Request<wire::StartVmRequest>,
    ) -> Result<Response<wire::StartVmResponse>, Status> {
        let owner = owner(&request.into_inner().migration_id)?;
        let outcome = match self.target.start(owner).await {
            Ok(()) => start_vm_response::Outcome::Vm(self.vm(owner).await?),
            Err(error) => start_vm_response::Outcome::Refusal(refusal(error)?),
        };
        Ok(Response::new(wire::StartVmResponse { outcome: Some(outcome) }))
    }

    async fn get_vm(
        &self,
        request: Request<wire::GetVmRequest>,
    ) -> Result<Response<wire::GetVmResponse>, Status> {
        let owner = owner(&request.into_inner().migration_id)?;
        let there = self.target.domain_of(owner).await.map_err(status)?.is_some();
        let vm = if there { Some(self.vm(owner).await?) } else { None };
        Ok(Response::new(wire::GetVmResponse { vm }))
    }

    async fn delete_vm(
        &self,
        request: Request<wire::DeleteVmRequest>,
    ) -> Result<Response<wire::DeleteVmResponse>, Status> {
        let owner = owner(&request.into_inner().migration_id)?;
        let refusal = match self.delete(owner).await {
            Ok(()) => None,
            Err(error) => Some(refusal(error)?),
        };
        Ok(Response::new(wire::DeleteVmResponse { refusal }))
    }
}

impl Provisioner {
    async fn make(&self, request: &CreateMachine) -> Result<(), TargetError> {
        // Finds the disks in warmd's locations, and prevents that other migrations' machines use them.
        self.target.prepare(request.owner, &request.disks).await?;
        self.target.create(request).await
    }

    async fn delete(&self, owner: MigrationId) -> Result<(), TargetError> {
        self.target.discard_machine(owner).await?;
        // No disk is named: the disks stay, only other files are removed.
        self.target.discard_disks(owner, &[]).await
    }

    async fn vm(&self, owner: MigrationId) -> Result<wire::Vm, Status> {
        let id = self.target.domain_of(owner).await.map_err(status)?;
        let id = id.ok_or_else(|| Status::unavailable("the machine vanished while it was looked at"))?;
        let (power, detail) = match self.target.look(owner).await.map_err(status)? {
            MachineState::Stopped => (PowerState::Stopped, String::new()),
            MachineState::Starting => (PowerState::Starting, String::new()),
            MachineState::Running => (PowerState::Running, String::new()),
            MachineState::Failed(why) => (PowerState::Failed, why),
            MachineState::Absent | MachineState::NotManaged => {
                return Err(Status::unavailable("the machine vanished while it was looked at"));
            }
        };
        Ok(wire::Vm { id: id.to_string(), power: power.into(), detail })
    }
}

/// A refusal where a retry would not help; an error where it may.
fn refusal(error: TargetError) -> Result<wire::Refusal, Status> {
    let reason = match error.kind {
        TargetErrorKind::Conflict => RefusalReason::NameTaken,
        TargetErrorKind::Refused => RefusalReason::Unsupported,
        TargetErrorKind::NoSpace => RefusalReason::NoCapacity,
        // For a creation: a disk; for a start: the machine.
        TargetErrorKind::NotFound => RefusalReason::NotFound,
        TargetErrorKind::Unreachable | TargetErrorKind::Timeout | TargetErrorKind::Failed => {
            return Err(status(error));
        }
    };
    Ok(wire::Refusal { reason: reason.into(), message: error.to_string() })
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn status(error: TargetError) -> Status {
    match error.kind {
        TargetErrorKind::Timeout => Status::deadline_exceeded(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

fn owner(text: &str) -> Result<MigrationId, Status> {
    text.parse().map_err(|_| Status::invalid_argument(format!("migration_id {text:?} is no UUID")))
}

fn create(request: wire::CreateVmRequest) -> Result<CreateMachine, Status> {
    let owner = owner(&request.migration_id)?;
    let Some(machine) = request.machine else { return Err(Status::invalid_argument("no machine is given")) };
    if request.disks.iter().any(|disk| disk.format != "raw") {
        return Err(Status::invalid_argument("only disks of format raw can be attached"));
    }
    let disks = request.disks.iter().map(|disk| DiskSpec {
        key: DiskKey(disk.key.clone()),
        size: Length(disk.size_bytes),
        place: Some(disk.location.clone()),
    });
    let firmware = match machine.firmware() {
        wire::Firmware::Unspecified | wire::Firmware::Bios => Firmware::Bios,
        wire::Firmware::Uefi => Firmware::Uefi,
        wire::Firmware::UefiSecure => Firmware::UefiSecure,
    };
    let cpu = machine.cpu.unwrap_or_default();
    Ok(CreateMachine {
        owner,
        disks: disks.collect(),
        name: request.name,
        machine: Machine {
            id: VmId(machine.uuid.clone()),
            name: machine.name,
            uuid: machine.uuid,
            firmware,
            machine_type: machine.machine_type,
            architecture: machine.architecture,
            cpu: CpuTopology { sockets: cpu.sockets, cores: cpu.cores, threads: cpu.threads },
            memory: Length(machine.memory_bytes),
            disks: request.disks.into_iter().map(machine_disk).collect(),
            nics: machine
                .nics
                .into_iter()
                .map(|nic| Nic { mac: nic.mac, network: nic.network, model: nic.model })
                .collect(),
            hardware: None,
            host: None,
        },
    })
}

fn machine_disk(disk: wire::Disk) -> MachineDisk {
    MachineDisk {
        key: DiskKey(disk.key),
        size: Length(disk.size_bytes),
        bus: "virtio".to_owned(),
        boot_order: disk.boot_order,
        location: disk.location,
        untracked: None,
    }
}
