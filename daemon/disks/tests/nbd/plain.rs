//! The client against the `nbd` crate's server: no NBD_OPT_GO, no structured replies, no block status, no
//! zeroing.

use std::{
    io::{Cursor, Read, Seek, SeekFrom, Write},
    os::unix::net::UnixListener,
    sync::{Arc, Mutex},
};

use crate::common::{buffer, extent, in_time, noise, server::tempdir, stale};
use nbd::{
    Export,
    server::{handshake, transmission},
};
use tempfile::TempDir;
use warmd_cbt::{
    disk::{ErrorKind, ReadDisk, WriteDisk},
    units::Offset,
};
use warmd_disks::nbd::{NbdAddress, NbdDisk, NbdOptions, list_exports};

const SIZE: u64 = 1 << 20;

/// A disk in memory that the server's threads share with the test.
#[derive(Clone)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    at: u64,
}

impl Memory {
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Cursor<&mut Vec<u8>>) -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let mut bytes = self.bytes.lock().unwrap();
        let mut cursor = Cursor::new(&mut *bytes);
        cursor.set_position(self.at);
        let result = work(&mut cursor);
        self.at = cursor.position();
        result
    }
}

impl Read for Memory {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.with(|cursor| cursor.read(into))
    }
}

impl Write for Memory {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.with(|cursor| cursor.write(from))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Memory {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.with(|cursor| cursor.seek(to))
    }
}

/// Serves `bytes` to any client; the threads end with their connections, or with the test.
fn serve(bytes: &Arc<Mutex<Vec<u8>>>, readonly: bool) -> (TempDir, NbdOptions) {
    let dir = tempdir();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let memory = Memory { bytes: Arc::clone(bytes), at: 0 };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, memory) = (stream.unwrap(), memory.clone());
            std::thread::spawn(move || {
                let export = |name: &str| match name {
                    "disk" => {
                        Ok(Export { size: SIZE, readonly, send_flush: !readonly, ..Export::<()>::default() })
                    }
                    _ => Err(std::io::ErrorKind::NotFound.into()),
                };
                // The handshake of a client that lists exports, or names none that exists, ends in an error.
                if handshake(&mut stream, export).is_ok() {
                    let _ = transmission(&mut stream, memory);
                }
            });
        }
    });
    (dir, NbdOptions::new(NbdAddress::Unix(socket), "disk"))
}

#[tokio::test]
async fn a_server_that_knows_only_the_old_ways_is_read_and_written() {
    let content = noise(7, SIZE as usize);
    let shared = Arc::new(Mutex::new(content.clone()));
    let (_dir, options) = serve(&shared, false);
    let disk = NbdDisk::open(options.writable()).await.unwrap();
    assert_eq!((disk.len(), disk.connections(), disk.contexts().count()), (SIZE, 1, 0));
    assert!(!disk.export().structured);
    let reads = (0..64u64).map(|n| disk.read_at(Offset(n * 16384), stale(16384)));
    let reads = in_time(futures::future::try_join_all(reads)).await.unwrap();
    assert!(reads.iter().flat_map(|data| data.iter()).eq(content.iter()));

    let new = noise(8, 100_000);
    in_time(disk.write(Offset(1234), buffer(&new), 0..100_000)).await.unwrap();
    in_time(disk.write_zeroes(extent(200_001, 300_000))).await.unwrap();
    in_time(disk.flush()).await.unwrap();
    let mut expected = content;
    expected[1234..101_234].copy_from_slice(&new);
    expected[200_001..500_001].fill(0);
    assert!(*shared.lock().unwrap() == expected);

    let all = in_time(disk.allocation(extent(0, SIZE))).await.unwrap();
    assert!(all.len() == 1 && !all[0].zero && all[0].extent == extent(0, SIZE));
    in_time(disk.close()).await;
}

#[tokio::test]
async fn its_read_only_exports_and_unknown_names_are_refused() {
    let shared = Arc::new(Mutex::new(noise(9, SIZE as usize)));
    let (_dir, options) = serve(&shared, true);
    let error = in_time(NbdDisk::open(options.clone().writable())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let unknown = NbdOptions { export: "other".into(), ..options.clone() };
    let error = in_time(NbdDisk::open(unknown)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "such a server can only hang up: {error}");
    let listed = in_time(list_exports(&options.address, options.connect_timeout)).await.unwrap();
    assert_eq!(listed.len(), 1);
}
