//! The contract of targets, checked on a real target from its first disk to its complete removal.
//!
//! Rule: the functions here know targets only by their trait; [`Bench`] has the differences between kinds.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use warmd_cbt::{
    buffer::Buffer,
    disk::WriteDisk,
    units::{Extent, Length, Offset},
};
use warmd_core::{
    model::{
        id::{DiskKey, MigrationId, VmId},
        machine::{CpuTopology, Firmware, Machine, MachineDisk, Nic},
        storage,
    },
    targets::{
        CreateMachine, DiskSpec, MachineState, PreparedDisk, Target, TargetError, TargetErrorKind as Kind,
    },
};

/// How long a machine may take until it runs.
const START: Duration = Duration::from_mins(1);

/// Neither a multiple of a block of the manifest nor of a sector: copies often go wrong at the end of a disk.
pub const ODD: Length = Length((8 << 20) + 512 + 17);

/// The same as a whole number of sectors, for devices and servers that have only whole ones.
pub const EVEN: Length = Length((8 << 20) + 512);

/// The abilities of this kind of target.
#[derive(Clone, Debug)]
pub struct Bench {
    pub disks: Vec<DiskSpec>,
    /// The name of the machine to be created.
    pub name: String,
    pub machine: Machine,
    /// Whether it creates and starts machines.
    pub manages: bool,
    /// Whether it prevents a second writer of a disk.
    pub locks: bool,
    /// Whether discarded disks are deleted, or only no longer owned by the migration.
    pub removes: bool,
}

impl Bench {
    /// Two disks of `size` where the target wants them.
    pub fn new(name: &str, size: Length) -> Self {
        let keys = ["vda", "../vd b"];
        let disk = |key: &str| DiskSpec { key: DiskKey(key.to_owned()), size, place: None };
        Self {
            disks: keys.map(disk).to_vec(),
            name: name.to_owned(),
            machine: machine(name, keys.map(|key| (key, size))),
            manages: true,
            locks: true,
            removes: true,
        }
    }

    /// The same, with the disks in these storages of the target.
    pub fn in_storages<const N: usize>(mut self, storages: [&str; N]) -> Self {
        for (disk, name) in self.disks.iter_mut().zip(storages) {
            disk.place = Some(storage::place(name));
        }
        self
    }

    /// The same, with the disks at these locations.
    pub fn at<const N: usize>(mut self, places: [&str; N]) -> Self {
        for (disk, place) in self.disks.iter_mut().zip(places) {
            disk.place = Some(place.to_owned());
        }
        self.removes = false;
        self
    }
}

/// A small machine with a minimal network.
pub fn machine<const N: usize>(name: &str, disks: [(&str, Length); N]) -> Machine {
    let disks = disks.into_iter().enumerate().map(|(order, (key, size))| MachineDisk {
        key: DiskKey(key.to_owned()),
        size,
        bus: "virtio".to_owned(),
        boot_order: order as u32,
        location: format!("/source/{key}"),
        untracked: None,
    });
    let uuid = MigrationId::generate().to_string();
    Machine {
        id: VmId(uuid.clone()),
        name: name.to_owned(),
        uuid,
        firmware: Firmware::Bios,
        machine_type: "q35".to_owned(),
        architecture: "x86_64".to_owned(),
        cpu: CpuTopology { sockets: 1, cores: 1, threads: 1 },
        memory: Length(128 << 20),
        disks: disks.collect(),
        nics: vec![Nic {
            mac: "52:54:00:00:00:7a".to_owned(),
            network: "user".to_owned(),
            model: "virtio".to_owned(),
        }],
        hardware: None,
        host: None,
    }
}

/// All checks, in the order of a migration's life.
pub async fn target_contract(target: &dyn Target, bench: &Bench) -> Result<()> {
    let owner = MigrationId::generate();
    ensure!(!target.check().await.context("check")?.is_empty(), "it says nothing of itself");
    nothing_is_there(target, owner, bench).await.context("before anything was prepared")?;
    disks_are_prepared_once(target, owner, bench).await.context("preparing disks")?;
    disks_hold_what_was_written(target, owner, bench).await.context("writing disks")?;
    another_migration_meets_nothing(target, bench).await.context("beside another migration")?;
    machine_lives(target, owner, bench).await.context("the machine")?;
    machine_goes(target, owner, bench).await.context("discarding the machine")?;
    disks_stay_then_go(target, owner, bench).await.context("discarding the disks")
}

async fn nothing_is_there(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    for disk in &bench.disks {
        fails_with(Kind::NotFound, "opening", target.open(owner, disk).await)?;
    }
    target.discard_machine(owner).await?;
    target.discard_disks(owner, &bench.disks).await?;
    fails_with(Kind::NotFound, "starting", target.start(owner).await)?;
    let nothing = if bench.manages { MachineState::Absent } else { MachineState::NotManaged };
    let state = target.look(owner).await?;
    ensure!(state == nothing, "it is {state:?}");
    fails_with(Kind::NotFound, "creating without disks", target.create(&request(owner, bench)).await)
}

async fn disks_are_prepared_once(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    let first = target.prepare(owner, &bench.disks).await?;
    let places = |disks: &[PreparedDisk]| -> Vec<_> {
        disks.iter().map(|disk| (disk.key.clone(), disk.location.clone())).collect()
    };
    let keys: Vec<_> = first.iter().map(|disk| &disk.key).collect();
    let wanted: Vec<_> = bench.disks.iter().map(|disk| &disk.key).collect();
    ensure!(keys == wanted, "asked for {wanted:?}, got {keys:?}");
    ensure!(first.len() < 2 || first[0].location != first[1].location, "two disks at one place");
    let second = target.prepare(owner, &bench.disks).await?;
    ensure!(places(&first) == places(&second), "{first:?} became {second:?}");
    for (disk, spec) in second.iter().zip(&bench.disks).filter(|(disk, _)| disk.reads_zero) {
        let bytes = read(&target.open(owner, spec).await?, whole(spec)).await?;
        ensure!(bytes.iter().all(|byte| *byte == 0), "{} is said to read zero", disk.location);
    }
    for size in [Length(bench.disks[0].size.0 * 2), Length(bench.disks[0].size.0 / 2)] {
        let other = DiskSpec { size, ..bench.disks[0].clone() };
        fails_with(Kind::Conflict, "another size", target.prepare(owner, &[other]).await)?;
    }
    let twice = [bench.disks[0].clone(), bench.disks[0].clone()];
    fails_with(Kind::Conflict, "two disks at one place", target.prepare(owner, &twice).await)
}

async fn disks_hold_what_was_written(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    for (nth, spec) in bench.disks.iter().enumerate() {
        let size = spec.size.0;
        let mut wanted: Vec<u8> = (0..size).map(|at| (at / 512 * 7 + at + nth as u64) as u8 | 1).collect();
        let disk = target.open(owner, spec).await?;
        ensure!(disk.size() == spec.size, "{} bytes instead of {}", disk.size(), spec.size);
        // Scattered and out of order, as passes write.
        let mut pieces: Vec<Extent> = whole(spec).split(1 << 20).collect();
        pieces.reverse();
        for piece in pieces {
            write(&disk, piece, &wanted).await?;
        }
        disk.flush().await?;
        ensure!(read(&disk, whole(spec)).await? == wanted, "read back something else");
        for (from, len) in [(65536, 3 << 20), ((5 << 20) + 512, 4096), (size - 4096, 4096)] {
            let hole = Extent::new(Offset(from), Length(len)).context("a hole on the disk")?;
            disk.write_zeroes(hole).await?;
            wanted[from as usize..(from + len) as usize].fill(0);
        }
        disk.flush().await?;
        ensure!(read(&disk, whole(spec)).await? == wanted, "zeroes are not where they were asked for");
        let past = disk.write(Offset(size), Buffer::unpooled(512), 0..512).await;
        ensure!(past.is_err(), "wrote past the end");
        if bench.locks {
            // The first write is this daemon's own: the target waits for it, and the disk stays trusted.
            fails_with(Kind::Timeout, "a second writer", target.open(owner, spec).await)?;
        }
        drop(disk);
        let disk = target.open(owner, spec).await?;
        ensure!(read(&disk, whole(spec)).await? == wanted, "something else after it was opened again");
        drop(disk);
        let prepared = target.prepare(owner, std::slice::from_ref(spec)).await?;
        ensure!(!prepared[0].reads_zero, "full of data and said to read zero");
        let disk = target.open(owner, spec).await?;
        ensure!(read(&disk, whole(spec)).await? == wanted, "preparing it again changed it");
    }
    Ok(())
}

async fn another_migration_meets_nothing(target: &dyn Target, bench: &Bench) -> Result<()> {
    let other = MigrationId::generate();
    let own = |place: &str| storage::named(place).is_none();
    if bench.disks[0].place.as_deref().is_some_and(own) {
        fails_with(Kind::Conflict, "the same place", target.prepare(other, &bench.disks).await)?;
        fails_with(Kind::Conflict, "opening the same place", target.open(other, &bench.disks[0]).await)?;
    } else {
        target.prepare(other, &bench.disks).await?;
        let disk = target.open(other, &bench.disks[0]).await?;
        let bytes = read(&disk, whole(&bench.disks[0])).await?;
        ensure!(bytes.iter().all(|byte| *byte == 0), "it sees another migration's bytes");
    }
    target.discard_machine(other).await?;
    Ok(target.discard_disks(other, &bench.disks).await?)
}

async fn machine_lives(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    let request = request(owner, bench);
    target.create(&request).await?;
    target.create(&request).await?;
    let stopped = if bench.manages { MachineState::Stopped } else { MachineState::NotManaged };
    let state = target.look(owner).await?;
    ensure!(state == stopped, "created, it is {state:?}");
    fails_with(
        Kind::Refused,
        "discarding a machine's disks",
        target.discard_disks(owner, &bench.disks).await,
    )?;
    if bench.manages {
        let stranger = CreateMachine { owner: MigrationId::generate(), disks: Vec::new(), ..request };
        fails_with(Kind::Conflict, "a name that is taken", target.create(&stranger).await)?;
    }
    target.start(owner).await?;
    target.start(owner).await?;
    if bench.manages {
        runs(target, owner).await?;
    }
    if bench.manages && bench.locks {
        let writer = target.open(owner, &bench.disks[0]).await;
        fails_with(Kind::Conflict, "writing to the disk of a machine that runs", writer)?;
    }
    fails_with(Kind::Refused, "discarding a machine's disks", target.discard_disks(owner, &bench.disks).await)
}

async fn machine_goes(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    target.discard_machine(MigrationId::generate()).await?;
    if bench.manages {
        runs(target, owner).await.context("another migration's machine was discarded")?;
    }
    target.discard_machine(owner).await?;
    target.discard_machine(owner).await?;
    let gone = if bench.manages { MachineState::Absent } else { MachineState::NotManaged };
    let state = target.look(owner).await?;
    ensure!(state == gone, "discarded, it is {state:?}");
    fails_with(Kind::NotFound, "starting what was discarded", target.start(owner).await)
}

async fn disks_stay_then_go(target: &dyn Target, owner: MigrationId, bench: &Bench) -> Result<()> {
    for spec in &bench.disks {
        let disk = target.open(owner, spec).await.context("the disks went with the machine")?;
        let first = read(&disk, Extent::new(Offset(0), Length(512)).context("a sector")?).await?;
        ensure!(first.iter().all(|byte| byte & 1 == 1), "the bytes went with the machine");
    }
    target.discard_disks(owner, &bench.disks).await?;
    target.discard_disks(owner, &bench.disks).await?;
    for spec in &bench.disks {
        fails_with(Kind::NotFound, "opening what was discarded", target.open(owner, spec).await)?;
    }
    if bench.removes {
        return Ok(());
    }
    // Disks that warmd must not remove are free for the next migration.
    let next = MigrationId::generate();
    target.prepare(next, &bench.disks).await.context("a place that was given up")?;
    Ok(target.discard_disks(next, &bench.disks).await?)
}

fn request(owner: MigrationId, bench: &Bench) -> CreateMachine {
    CreateMachine {
        owner,
        name: bench.name.clone(),
        machine: bench.machine.clone(),
        disks: bench.disks.clone(),
    }
}

async fn runs(target: &dyn Target, owner: MigrationId) -> Result<()> {
    let until = tokio::time::Instant::now() + START;
    loop {
        match target.look(owner).await? {
            MachineState::Running => return Ok(()),
            MachineState::Starting if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            state => bail!("started, it is {state:?}"),
        }
    }
}

fn whole(spec: &DiskSpec) -> Extent {
    Extent::whole(spec.size).unwrap_or_else(|| unreachable!("a bench's disks are not empty"))
}

async fn read(disk: &Arc<dyn WriteDisk>, extent: Extent) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(extent.len().0 as usize);
    for piece in extent.split(1 << 20) {
        bytes.extend_from_slice(&disk.read(piece.start(), Buffer::unpooled(piece.len().0 as usize)).await?);
    }
    Ok(bytes)
}

async fn write(disk: &Arc<dyn WriteDisk>, piece: Extent, from: &[u8]) -> Result<()> {
    let range = piece.start().0 as usize..piece.end().0 as usize;
    let mut buffer = Buffer::unpooled(range.len());
    buffer.copy_from_slice(&from[range.clone()]);
    disk.write(piece.start(), buffer, 0..range.len()).await?;
    Ok(())
}

/// Fails unless `result` is a failure of that kind.
pub fn fails_with<T>(kind: Kind, what: &str, result: Result<T, TargetError>) -> Result<()> {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{what}: expected {kind:?}")),
        Ok(_) => bail!("{what}: succeeded, expected {kind:?}"),
    }
}
