//! A disk at an NBD server that others run: found and opened, never created.
//!
//! Rule: an export without a durable flush is refused as a disk. A check does not show who
//! has written to an export, and waits for nothing.

use warmd_cbt::{disk::ErrorKind, units::Length};
use warmd_core::targets::{TargetError, TargetErrorKind};
use warmd_disks::nbd::{ExportFlags, NbdDisk, NbdError, NbdOptions, NbdUri};

/// Checks an export; it must be writable, and `size` bytes long.
pub(super) async fn look(uri: &str, size: Length, doing: &str) -> Result<(), TargetError> {
    let options = NbdOptions { connections: 1, ..options(uri, doing)? };
    checked(options, uri, size, doing).await?.close().await;
    Ok(())
}

/// Opens the export for writing, where an earlier daemon may have written; it must be `size` bytes long.
pub(super) async fn open_export(uri: &str, size: Length, doing: &str) -> Result<NbdDisk, TargetError> {
    let options = NbdOptions { unknown_past: true, ..options(uri, doing)?.writable() };
    checked(options, uri, size, doing).await
}

/// Records that no earlier daemon has written to the export: it has just been claimed, and no migration owned
/// it before.
pub(super) fn is_new(uri: &str, doing: &str) -> Result<(), TargetError> {
    NbdDisk::has_no_past(&options(uri, doing)?);
    Ok(())
}

/// Waits for the server's answers to writes of this daemon's connections that were abandoned: they must not
/// land after a machine runs from the export.
pub(super) async fn settled(uri: &str, doing: &str) -> Result<(), TargetError> {
    let failed = |error: NbdError| TargetError::new(kind(&error), format!("{doing} at {uri}"), error);
    NbdDisk::settled(&options(uri, doing)?).await.map_err(failed)
}

fn options(uri: &str, doing: &str) -> Result<NbdOptions, TargetError> {
    let parsed: NbdUri =
        uri.parse().map_err(|error| TargetError::new(TargetErrorKind::Refused, doing, error))?;
    Ok(NbdOptions::from(parsed))
}

async fn checked(options: NbdOptions, uri: &str, size: Length, doing: &str) -> Result<NbdDisk, TargetError> {
    let disk = NbdDisk::open(options)
        .await
        .map_err(|error| TargetError::new(kind(&error), format!("{doing} at {uri}"), error))?;
    let (is, flags) = (disk.len(), disk.export().flags);
    let wrong = if is != size.0 {
        let why = format!(
            "the export has {is} bytes, the disk {size}: it is never resized; make it {size} bytes long"
        );
        Some((TargetErrorKind::Conflict, why))
    } else if flags.has(ExportFlags::READ_ONLY) {
        let why = "the server offers the export for reading only: configure it to let it be written";
        Some((TargetErrorKind::Refused, why.to_owned()))
    } else if !flags.has(ExportFlags::FLUSH) {
        let why = "the server does not offer FLUSH, so nothing written there is known to be durable: configure it to";
        Some((TargetErrorKind::Refused, why.to_owned()))
    } else {
        None
    };
    let Some((kind, why)) = wrong else { return Ok(disk) };
    disk.close().await;
    Err(TargetError::new(kind, format!("{doing} at {uri}"), why))
}

fn kind(error: &NbdError) -> TargetErrorKind {
    match error.kind() {
        ErrorKind::Connection => TargetErrorKind::Unreachable,
        ErrorKind::Timeout => TargetErrorKind::Timeout,
        ErrorKind::NoSpace => TargetErrorKind::NoSpace,
        ErrorKind::Refused => TargetErrorKind::Refused,
        ErrorKind::Media | ErrorKind::Protocol => TargetErrorKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read, Write},
        os::unix::net::{UnixListener, UnixStream},
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        time::{Duration, Instant},
    };

    use warmd_cbt::{buffer::Buffer, units::Offset};

    use super::*;
    use crate::Storage;
    use warmd_core::{
        model::id::{DiskKey, MigrationId},
        targets::{DiskSpec, Incoming},
    };

    const SIZE: u64 = 1 << 20;
    /// As the protocol has them: has flags, FLUSH.
    const FLUSHES: u16 = 0b101;

    /// A server of zeroes that forgets what is written; counts its reads.
    fn serve(socket: &Path, flags: u16) -> Arc<AtomicUsize> {
        let listener = UnixListener::bind(socket).unwrap();
        let reads = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&reads);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let counter = Arc::clone(&counter);
                // A client that goes ends it.
                std::thread::spawn(move || answer(stream, flags, &counter).ok());
            }
        });
        reads
    }

    fn answer(mut stream: UnixStream, flags: u16, reads: &AtomicUsize) -> io::Result<()> {
        stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
        stream.read_exact(&mut [0; 4])?;
        let option = |option: u32, kind: u32, body: &[u8]| {
            let head = [option, kind, body.len() as u32].map(u32::to_be_bytes).concat();
            [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &head, body].concat()
        };
        loop {
            let mut header = [0; 16];
            stream.read_exact(&mut header)?;
            let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
            stream.read_exact(&mut vec![0; word(12) as usize])?;
            if word(8) != 7 {
                stream.write_all(&option(word(8), 1 << 31 | 1, b"no"))?;
                continue;
            }
            let info = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
            stream.write_all(&option(7, 3, &info))?;
            stream.write_all(&option(7, 1, &[]))?;
            break;
        }
        loop {
            let mut header = [0; 28];
            stream.read_exact(&mut header)?;
            let length = u32::from_be_bytes(header[24..].try_into().unwrap()) as usize;
            let mut data = Vec::new();
            match header[7] {
                0 => {
                    reads.fetch_add(1, SeqCst);
                    data = vec![0; length];
                }
                1 => stream.read_exact(&mut vec![0; length])?,
                2 => return Ok(()),
                _ => {}
            }
            stream.write_all(&[&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], &header[8..16], &data].concat())?;
        }
    }

    fn incoming(spec: &DiskSpec) -> Incoming {
        let machine = serde_json::json!({
            "id": "1", "name": "a", "uuid": "u", "firmware": "bios", "machine_type": "q35", "architecture": "x86_64",
            "cpu": {"sockets": 1, "cores": 1, "threads": 1}, "memory": 1 << 20, "disks": [], "nics": [],
        });
        let machine = serde_json::from_value(machine).unwrap();
        Incoming { owner: None, name: "a".to_owned(), machine, disks: vec![spec.clone()] }
    }

    /// A storage, a disk at a server's export, and the server's reads.
    fn place(dir: &Path, flags: u16) -> (Storage, DiskSpec, Arc<AtomicUsize>) {
        let reads = serve(&dir.join("s"), flags);
        let uri = format!("nbd+unix:///x?socket={}", dir.join("s").display());
        let spec = DiskSpec { key: DiskKey("vda".to_owned()), size: Length(SIZE), place: Some(uri) };
        (Storage::new(dir, 0o711).unwrap(), spec, reads)
    }

    /// Writes zeroes through the disk, opened as a pass does, and returns the server's reads for it.
    async fn reads_of_a_pass(
        storage: &Storage,
        owner: MigrationId,
        spec: &DiskSpec,
        reads: &AtomicUsize,
    ) -> usize {
        let disk = storage.open(owner, spec).await.unwrap();
        disk.write(Offset(0), Buffer::unpooled(4096), 0..4096).await.unwrap();
        disk.flush().await.unwrap();
        reads.load(SeqCst)
    }

    #[tokio::test]
    async fn a_new_export_has_no_past_and_is_not_waited_for() {
        let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
        let (storage, spec, reads) = place(dir.path(), FLUSHES);
        let began = Instant::now();
        let found = storage.objections(&[incoming(&spec)]).await.unwrap();
        assert!(found.is_empty(), "{found:?}");
        storage.prepare(owner, std::slice::from_ref(&spec)).await.unwrap();
        assert_eq!(reads_of_a_pass(&storage, owner, &spec, &reads).await, 0, "nothing older is under way");
        storage.locate(owner, std::slice::from_ref(&spec)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn looks_do_not_hide_what_an_earlier_daemon_may_have_written() {
        let (dir, owner) = (tempfile::tempdir().unwrap(), MigrationId::generate());
        let (storage, spec, reads) = place(dir.path(), FLUSHES);
        let uri = spec.place.clone().unwrap();
        // An earlier daemon has prepared it.
        storage.claim(owner, &uri, "claiming").await.unwrap();
        let began = Instant::now();
        let other = storage.prepare(MigrationId::generate(), std::slice::from_ref(&spec)).await.unwrap_err();
        assert_eq!(other.kind, TargetErrorKind::Conflict, "{other}");
        storage.prepare(owner, std::slice::from_ref(&spec)).await.unwrap();
        storage.locate(owner, std::slice::from_ref(&spec)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(4), "looking took {:?}", began.elapsed());
        assert_ne!(reads_of_a_pass(&storage, owner, &spec, &reads).await, 0, "what was written is read back");
    }

    #[tokio::test]
    async fn read_only_or_missized_export_is_refused_by_inspection() {
        for (flags, size, kind, told) in [
            (FLUSHES | 0b10, SIZE, TargetErrorKind::Refused, "reading only"),
            (1, SIZE, TargetErrorKind::Refused, "FLUSH"),
            (FLUSHES, SIZE / 2, TargetErrorKind::Conflict, "bytes"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (_, spec, _) = place(dir.path(), flags);
            let error = look(&spec.place.unwrap(), Length(size), "looking").await.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
