//! Volumes on file systems and devices that fail for real: full, without holes, losing writes, in use,
//! shrinking.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use warmd_cbt::{
    buffer::Buffer,
    disk::{DiskError, ErrorKind, ReadDisk, WriteDisk},
    units::{Extent, Length, Offset},
};
use warmd_disks::volume::{FileDisk, NoRoom, VolumeError, VolumeErrorKind, VolumeOptions, make_file};
use warmd_tests::{
    TestDir, asynchronous, run,
    scratch::{Loop, Mount, NbdServer},
    tool,
};

const MIB: u64 = 1 << 20;

fn cached() -> VolumeOptions {
    VolumeOptions { direct: false, ..VolumeOptions::default() }
}

fn hasty() -> VolumeOptions {
    VolumeOptions { lock_wait: Duration::ZERO, ..VolumeOptions::default() }
}

async fn open(path: &Path, mib: u64, options: VolumeOptions) -> Result<FileDisk, VolumeError> {
    FileDisk::open(path, Length(mib * MIB), options).await
}

async fn write(disk: &FileDisk, at_mib: u64, mib: u64, byte: u8) -> Result<(), DiskError> {
    for nth in at_mib..at_mib + mib {
        let mut buffer = Buffer::unpooled(MIB as usize);
        buffer.fill(byte);
        disk.write(Offset(nth * MIB), buffer, 0..MIB as usize).await?;
    }
    Ok(())
}

fn extent(start: u64, end: u64) -> Result<Extent> {
    Extent::between(Offset(start), Offset(end)).context("an empty extent")
}

/// Overwrites a disk full of data with zeroes, in odd pieces, and checks that they are where they were
/// requested.
async fn zeroes_are_whole(path: &Path) -> Result<()> {
    let disk = open(path, 4, VolumeOptions::default()).await?;
    write(&disk, 0, 4, 0xee).await?;
    disk.flush().await?;
    for (start, end) in [(0, 4096), (5000, MIB + 1), (MIB + 1, 2 * MIB), (3 * MIB - 512, 4 * MIB)] {
        disk.write_zeroes(extent(start, end)?).await?;
    }
    disk.flush().await?;
    drop(disk);
    // Read by another program than the one that wrote it.
    let bytes = std::fs::read(path)?;
    ensure!(bytes.len() as u64 == 4 * MIB, "{} bytes long", bytes.len());
    for (at, byte) in bytes.iter().enumerate() {
        let at = at as u64;
        let kept = (4096..5000).contains(&at) || (2 * MIB..3 * MIB - 512).contains(&at);
        ensure!(*byte == if kept { 0xee } else { 0 }, "byte {at} is {byte:#x}");
    }
    Ok(())
}

#[test]
fn zeroes_where_the_file_system_makes_no_holes() {
    run(|dir| {
        let mount = Mount::ramfs(dir, "ram")?;
        let path = mount.join("vda.raw");
        make_file(&path, Length(4 * MIB))?;
        asynchronous(zeroes_are_whole(&path))
    });
}

#[test]
fn zeroes_on_file_systems_and_devices() {
    run(|dir| {
        let device = Loop::new(&dir.join("backing"), 4 * MIB)?;
        asynchronous(zeroes_are_whole(device.path()))?;
        for kind in ["ext4", "xfs"] {
            let device = Loop::new(&dir.join(format!("{kind}.img")), 400 * MIB)?;
            let mount = Mount::device(dir, kind, kind, device.path())?;
            let path = mount.join("vda.raw");
            make_file(&path, Length(4 * MIB))?;
            asynchronous(zeroes_are_whole(&path)).with_context(|| format!("on {kind}"))?;
        }
        Ok(())
    });
}

#[test]
fn full_file_system_says_what_is_missing_and_then_continues() {
    run(|dir| {
        let mount = Mount::tmpfs(dir, "small", 4 * MIB)?;
        let path = mount.join("vda.raw");
        ensure!(make_file(&path, Length(16 * MIB))?.reads_zero, "a new file");
        asynchronous(async {
            for options in [VolumeOptions::default(), cached()] {
                let disk = open(&path, 16, options).await?;
                let error = write(&disk, 0, 8, 1).await.err().context("8 MiB fit into 4")?;
                ensure!(error.kind == ErrorKind::NoSpace, "{error}");
                let room = error.cause.downcast_ref::<NoRoom>().with_context(|| format!("{error}"))?;
                ensure!(room.free.0 < MIB && room.growth.0 >= 8 * MIB, "{room}");
                ensure!(error.to_string().contains("bytes of room"), "{error}");
                tool::call("mount", ["-o", "remount,size=32M", &mount.path().to_string_lossy()])?;
                write(&disk, 0, 16, 1).await.context("after room was made")?;
                disk.flush().await?;
                disk.write_zeroes(extent(0, 16 * MIB)?).await?;
                tool::call("mount", ["-o", "remount,size=4M", &mount.path().to_string_lossy()])?;
            }
            Ok(())
        })
    });
}

#[test]
fn lost_write_fails_every_later_flush() {
    run(|dir| {
        // The device accepts 16 MiB and its file system has space for 4: the rest is lost when the page cache
        // is written back, long after the write succeeded.
        let mount = Mount::tmpfs(dir, "small", 4 * MIB)?;
        let device = Loop::new(&mount.join("backing"), 16 * MIB)?;
        asynchronous(async {
            let disk = open(device.path(), 16, cached()).await?;
            write(&disk, 0, 8, 1).await.context("the page cache takes it")?;
            let error = disk.flush().await.err().context("a flush that lost data succeeded")?;
            ensure!(matches!(error.kind, ErrorKind::Media | ErrorKind::NoSpace), "{error}");
            ensure!(disk.flush().await.is_err(), "the kernel reports it once, the disk must remember");
            ensure!(write(&disk, 0, 1, 1).await.is_err(), "written to a disk that is not trusted");
            drop(disk);
            let disk = open(device.path(), 16, cached()).await?;
            write(&disk, 0, 1, 2).await?;
            disk.flush().await.context("opened again, and with what fits")?;
            // Past the page cache the write itself fails.
            let disk_error = {
                drop(disk);
                let disk = open(device.path(), 16, VolumeOptions::default()).await?;
                write(&disk, 0, 8, 1).await.err()
            };
            ensure!(disk_error.is_some(), "a direct write that found no room succeeded");
            Ok(())
        })
    });
}

#[test]
fn a_device_that_shrinks_is_noticed() {
    run(|dir| {
        let backing = dir.join("backing");
        let device = Loop::new(&backing, 8 * MIB)?;
        asynchronous(async {
            let disk = open(device.path(), 8, VolumeOptions::default()).await?;
            write(&disk, 0, 8, 1).await?;
            disk.flush().await?;
            std::fs::File::options().write(true).open(&backing)?.set_len(4 * MIB)?;
            tool::call("losetup", [Path::new("--set-capacity"), device.path()])?;
            let error = write(&disk, 0, 1, 2).await.err().context("written to a shrunk device")?;
            ensure!(error.kind == ErrorKind::Refused, "{error}");
            ensure!(disk.flush().await.is_err(), "flushed");
            Ok(())
        })
    });
}

#[test]
fn what_others_use_is_refused() {
    run(|dir| {
        let device = Loop::new(&dir.join("mounted.img"), 400 * MIB)?;
        let _mount = Mount::device(dir, "mnt", "ext4", device.path())?;
        let _server = NbdServer::qemu(dir, "qemu", 4 * MIB)?;
        asynchronous(async {
            for (path, mib) in [(device.path(), 400), (&dir.join("qemu.raw"), 4)] {
                let error = open(path, mib, hasty()).await.err().context("opened")?;
                ensure!(error.kind() == VolumeErrorKind::Conflict, "{error}");
                ensure!(matches!(error, VolumeError::InUse { .. }), "{error}");
            }
            Ok(())
        })
    });
}

/// Another name of the same device, and the file under it: their locks are independent.
#[test]
fn what_others_use_by_another_name_is_refused() {
    run(|dir| {
        let backing = dir.join("backing");
        let device = Loop::new(&backing, 4 * MIB)?;
        let node = dir.join("other-node");
        let number = tool::call("stat", [Path::new("--format=%Hr %Lr"), device.path()])?;
        let (major, minor) = number.trim().split_once(' ').context("no number")?;
        tool::call("mknod", [node.to_string_lossy().as_ref(), "b", major, minor])?;
        let in_use = async |path: &Path, word: &str| -> Result<()> {
            match open(path, 4, hasty()).await {
                Err(VolumeError::InUse { by, .. }) => ensure!(by.contains(word), "{by}"),
                other => anyhow::bail!("{}: {other:?}", path.display()),
            }
            Ok(())
        };
        asynchronous(async {
            in_use(&backing, &device.place()).await?;
            let holder = std::fs::File::options().read(true).write(true).open(&node)?;
            let mut sleeper = std::process::Command::new("sleep").arg("60").stdin(holder).spawn()?;
            let found = in_use(device.path(), "(sleep)").await;
            sleeper.kill()?;
            sleeper.wait()?;
            found?;
            open(device.path(), 4, VolumeOptions::default()).await?;
            Ok(())
        })
    });
}

#[test]
fn reading_back_does_not_come_from_the_page_cache() {
    run(|dir| {
        let device = Loop::new(&dir.join("backing"), 4 * MIB)?;
        asynchronous(async {
            let disk = open(device.path(), 4, VolumeOptions::default()).await?;
            write(&disk, 0, 4, 7).await?;
            disk.flush().await?;
            // Without the device, like bit rot of the medium.
            let mut bytes = std::fs::read(dir.join("backing"))?;
            bytes[MIB as usize] = 8;
            std::fs::write(dir.join("backing"), bytes)?;
            let read = disk.read(Offset(MIB), Buffer::unpooled(4096)).await?;
            ensure!(read[0] == 8, "an old copy was read");
            Ok(())
        })
    });
}

/// These fixtures leave nothing except a test directory.
#[test]
fn loops_and_mounts_are_gone() -> Result<()> {
    let dir = TestDir::new()?;
    let (device, path) = {
        let device = Loop::new(&dir.join("img"), 400 * MIB)?;
        let mount = Mount::device(&dir, "mnt", "ext4", device.path())?;
        (device.path().to_owned(), mount.path().to_owned())
    };
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains(&path.display().to_string()), "still mounted");
    let loops = tool::call("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"])?;
    ensure!(!loops.contains(&dir.path().display().to_string()), "{} is still there", device.display());
    Ok(())
}
