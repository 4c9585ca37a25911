//! The client against nbdkit: filters that fail, delay and restrict, and a server that dies.

use std::time::Duration;

use crate::common::{
    buffer, dirty, extent, in_time, noise,
    server::{Server, tempdir},
    stale, wait_for, write_file,
};
use futures::{StreamExt, TryStreamExt, stream};
use warmd_cbt::{
    disk::{ErrorKind, ReadDisk, WriteDisk},
    units::Offset,
};
use warmd_disks::nbd::{Errno, NbdCause, NbdDisk, NbdOptions, ZeroFlags, list_exports};

const MIB: u64 = 1 << 20;

/// A server of 8 MiB of noise in a file named `disk`, with these filters before the file plugin.
async fn file_server(filters: &[&str], settings: &[&str]) -> (Server, Vec<u8>) {
    let dir = tempdir();
    let content = noise(1, 8 << 20);
    write_file(&dir.path().join("disk"), &content);
    let mut arguments: Vec<String> = filters.iter().map(|filter| format!("--filter={filter}")).collect();
    arguments.push("file".into());
    arguments.push(dir.path().join("disk").display().to_string());
    arguments.extend(settings.iter().map(ToString::to_string));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    (Server::nbdkit_in(dir, &arguments).await, content)
}

/// The file's content, as the file system has it.
fn file_of(server: &Server) -> Vec<u8> {
    std::fs::read(server.path("disk")).unwrap()
}

#[tokio::test]
async fn many_reads_over_several_connections_all_arrive() {
    let (server, content) = file_server(&[], &[]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    assert_eq!(disk.connections(), 4, "nbdkit's file plugin announces multi-conn");
    assert_eq!((disk.len(), disk.limits().in_flight), (8 * MIB, 64));
    let reads = stream::iter(0..512u64).map(|n| {
        let disk = disk.clone();
        let at = (n * 7919 * 512) % (8 * MIB - 65536);
        async move { disk.read_at(Offset(at), stale(65536)).await.map(|data| (at as usize, data)) }
    });
    let reads: Vec<_> = in_time(reads.buffer_unordered(128).try_collect()).await.unwrap();
    for (at, data) in reads {
        assert!(data[..] == content[at..at + 65536], "wrong bytes at {at}");
    }
    in_time(disk.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_any_size_is_cut_to_what_the_server_takes() {
    let policy = ["blocksize-minimum=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"];
    let (server, mut content) = file_server(&["blocksize-policy"], &policy).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    assert_eq!((disk.export().blocks.minimum, disk.limits().max_request), (4096, 65536));
    for (at, len) in [(0, 8 << 20), (1, 1), (4095, 2), (100, 300_000), ((8 << 20) - 1, 1), (4096, 4096)] {
        let read = in_time(disk.read_at(Offset(at as u64), stale(len))).await.unwrap();
        assert!(read[..] == content[at..at + len], "wrong bytes of {len} at {at}");
    }
    let new = noise(2, 1 << 20);
    in_time(disk.write_at(Offset(8192), buffer(&new), 4096..1 << 20, true)).await.unwrap();
    content[8192..8192 + (1 << 20) - 4096].copy_from_slice(&new[4096..]);
    assert!(file_of(&server) == content);

    let error = in_time(disk.write_at(Offset(512), buffer(&new), 0..4096, false)).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::Misaligned { minimum: 4096 }), "{error}");
    let error = in_time(disk.write_zeroes(extent(4096, 100))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(file_of(&server) == content, "a refused write changed the disk");
}

#[tokio::test]
async fn requests_past_the_end_never_leave_the_client() {
    let (server, _) = file_server(&[], &[]).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    let error = disk.read_at(Offset(8 * MIB - 1), stale(2)).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::PastEnd { size } if size == 8 * MIB), "{error}");
    let error = disk.read_at(Offset(u64::MAX), stale(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(disk.write_at(Offset(8 * MIB), buffer(&[1]), 0..1, false).await.is_err());
    assert!(disk.write_zeroes(extent(0, 8 * MIB + 1)).await.is_err());
    assert!(disk.block_status(extent(8 * MIB, 1), false).await.is_err());
    assert!(disk.read_at(Offset(8 * MIB), stale(0)).await.unwrap().is_empty());
}

#[tokio::test]
async fn writes_zeroes_trims_and_flushes_reach_the_file() {
    let (server, mut content) = file_server(&[], &[]).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    let new = noise(3, 300_000);
    in_time(disk.write(Offset(12_345), buffer(&new), 0..300_000)).await.unwrap();
    content[12_345..312_345].copy_from_slice(&new);
    in_time(disk.write_zeroes(extent(MIB, 2 * MIB))).await.unwrap();
    content[1 << 20..3 << 20].fill(0);
    in_time(disk.zero_range(extent(4 * MIB, MIB), ZeroFlags { no_hole: true, fast: false, fua: true }))
        .await
        .unwrap();
    content[4 << 20..5 << 20].fill(0);
    in_time(disk.trim(extent(6 * MIB, MIB), false)).await.unwrap();
    content[6 << 20..7 << 20].fill(0);
    in_time(disk.flush()).await.unwrap();
    assert!(file_of(&server) == content);

    let zero: Vec<_> = in_time(disk.allocation(extent(0, 8 * MIB))).await.unwrap();
    let holes: u64 = zero.iter().filter(|run| run.zero).map(|run| run.extent.len().0).sum();
    assert_eq!(holes, 3 * MIB, "{zero:?}");
    assert_eq!(zero.last().unwrap().extent.end(), Offset(8 * MIB));
}

#[tokio::test]
async fn zeroes_are_written_where_the_server_cannot_zero() {
    let (server, mut content) = file_server(&["nozero"], &[]).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    let error = in_time(disk.zero_range(extent(0, MIB), ZeroFlags::default())).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::Unsupported("WRITE_ZEROES")), "{error}");
    in_time(disk.write_zeroes(extent(1000, 5 * MIB))).await.unwrap();
    content[1000..1000 + (5 << 20)].fill(0);
    assert!(file_of(&server) == content);
}

#[tokio::test]
async fn cached_block_status_past_the_request_is_cut() {
    let (server, _) = file_server(&["cacheextents"], &[]).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    in_time(disk.trim(extent(2 * MIB, 2 * MIB), false)).await.unwrap();
    let whole = in_time(disk.allocation(extent(0, 8 * MIB))).await.unwrap();
    let (first, hole) = (whole[0].extent, whole[1].extent);
    assert_eq!((first, hole), (extent(0, 2 * MIB), extent(2 * MIB, 2 * MIB)), "{whole:?}");
    // The filter answers with all that it knows, also with what begins at the request's end.
    for (asked, zero) in
        [(first, false), (hole, true), (extent(3 * MIB, MIB), true), (extent(MIB, 512), false)]
    {
        let told = in_time(disk.allocation(asked)).await.unwrap();
        let told: Vec<_> = told.iter().map(|run| (run.extent, run.zero)).collect();
        assert_eq!(told, [(asked, zero)]);
    }
}

#[tokio::test]
async fn without_block_status_nothing_is_known_to_be_zero() {
    let server = Server::nbdkit(&["--filter=noextents", "memory", "1M"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    let all = in_time(disk.allocation(extent(0, MIB))).await.unwrap();
    assert!(all.iter().all(|run| !run.zero), "{all:?}");
    let server = Server::nbdkit(&["--no-sr", "memory", "1M"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    assert!(!disk.export().structured);
    let all = in_time(disk.allocation(extent(5, 100))).await.unwrap();
    assert_eq!(all.iter().map(|run| (run.extent, run.zero)).collect::<Vec<_>>(), [(extent(5, 100), false)]);
    let error = in_time(dirty(&disk, "qemu:dirty-bitmap:x", extent(0, MIB))).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::NoContext(_)), "{error}");
}

#[tokio::test]
async fn errors_of_the_server_keep_number_place_and_kind() {
    for (name, errno, kind) in [
        ("EIO", Errno::EIO, ErrorKind::Media),
        ("ENOSPC", Errno::ENOSPC, ErrorKind::NoSpace),
        ("EPERM", Errno::EPERM, ErrorKind::Refused),
        ("EINVAL", Errno::EINVAL, ErrorKind::Refused),
    ] {
        let setting = format!("error={name}");
        let (server, content) = file_server(
            &["error"],
            &[
                &setting,
                "error-pread-rate=0",
                "error-pwrite-rate=100%",
                "error-zero-rate=0",
                "error-trim-rate=0",
            ],
        )
        .await;
        let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
        let error = in_time(disk.write_at(Offset(4096), buffer(&[1; 512]), 0..512, false)).await.unwrap_err();
        assert_eq!((error.errno(), error.kind()), (Some(errno), kind), "{error}");
        let seen = in_time(disk.write(Offset(4096), buffer(&[1; 512]), 0..512)).await.unwrap_err();
        assert_eq!((seen.kind, seen.extent), (kind, Some(extent(4096, 512))));
        let read = in_time(disk.read_at(Offset(0), stale(512))).await.unwrap();
        assert!(read[..] == content[..512], "an error of one request must not end the connection");
    }
}

#[tokio::test]
async fn a_slow_server_serves_many_requests_at_once() {
    let (server, content) = file_server(&["delay"], &["rdelay=200ms"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    // One after the other these would take longer than the test's patience.
    let reads = stream::iter(0..512usize).map(|n| disk.read_at(Offset(n as u64 * 16384), stale(16384)));
    let reads: Vec<_> = in_time(reads.buffered(128).try_collect::<Vec<_>>()).await.unwrap();
    for (n, data) in reads.iter().enumerate() {
        assert!(data[..] == content[n * 16384..(n + 1) * 16384]);
    }
}

#[tokio::test]
async fn an_overdue_request_is_a_timeout_and_the_next_one_reconnects() {
    let (server, content) = file_server(&["delay"], &["rdelay=0", "wdelay=10"]).await;
    // Enough for the read that follows, also on a busy machine.
    let options = NbdOptions { request_timeout: Duration::from_secs(3), ..server.options("").writable() };
    let disk = NbdDisk::open(options).await.unwrap();
    let error = in_time(disk.write_at(Offset(0), buffer(&[1; 512]), 0..512, false)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    let read = in_time(disk.read_at(Offset(4096), stale(512))).await.unwrap();
    assert!(read[..] == content[4096..4608]);
}

#[tokio::test]
async fn reads_survive_a_server_that_is_killed_and_comes_back() {
    let (mut server, content) = file_server(&["delay"], &["rdelay=50ms"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    let reader = tokio::spawn(async move {
        let reads = stream::iter(0..2048u64).map(|n| {
            let disk = disk.clone();
            async move { disk.read_at(Offset(n * 4096), stale(4096)).await }
        });
        reads.buffered(64).try_collect::<Vec<_>>().await
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!reader.is_finished(), "the reads were over before the server was killed");
        server.kill();
        // Long enough that attempts to reach it fail.
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.restart().await;
    }
    let reads = in_time(reader).await.unwrap().unwrap();
    let read: Vec<u8> = reads.iter().flat_map(|data| data.iter().copied()).collect();
    assert!(read == content);
}

#[tokio::test]
async fn a_server_that_stays_away_is_an_error_in_time() {
    let (mut server, _) = file_server(&[], &[]).await;
    let options = NbdOptions { reconnect_for: Duration::from_millis(400), ..server.options("") };
    let disk = NbdDisk::open(options).await.unwrap();
    server.kill();
    let reads = (0..128u64).map(|n| disk.read_at(Offset(n * 512), stale(512)));
    let began = tokio::time::Instant::now();
    for read in in_time(futures::future::join_all(reads)).await {
        let kind = read.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Connection | ErrorKind::Timeout), "{kind:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "each request waited for its own turn to give up");
}

#[tokio::test]
async fn a_flush_after_a_lost_connection_fails_once() {
    let (mut server, _) = file_server(&[], &[]).await;
    let disk = NbdDisk::open(server.options("").writable()).await.unwrap();
    in_time(disk.write(Offset(0), buffer(&[1; 512]), 0..512)).await.unwrap();
    in_time(disk.flush()).await.unwrap();
    server.restart().await;
    in_time(disk.read(Offset(0), stale(512))).await.unwrap();
    in_time(disk.flush()).await.expect("nothing was written since the last flush");

    in_time(disk.write(Offset(0), buffer(&[2; 512]), 0..512)).await.unwrap();
    server.restart().await;
    in_time(disk.write(Offset(512), buffer(&[3; 512]), 0..512)).await.unwrap();
    let error = in_time(disk.flush()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection, "{error}");
    assert!(error.to_string().contains("may be lost"), "{error}");
    in_time(disk.flush()).await.expect("the loss was reported");
}

#[tokio::test]
async fn a_server_that_comes_back_with_another_size_is_refused() {
    let (mut server, content) = file_server(&[], &[]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    write_file(&server.path("disk"), &content[..4 << 20]);
    server.restart().await;
    let error = in_time(disk.read_at(Offset(0), stale(512))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(matches!(error.cause, NbdCause::Changed(_)), "{error}");
}

#[tokio::test]
async fn the_last_handle_takes_leave_of_the_server() {
    let mut server = Server::nbdkit(&["--filter=exitlast", "memory", "1M"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    let other = disk.clone();
    in_time(disk.read_at(Offset(0), stale(4096))).await.unwrap();
    drop(disk);
    in_time(other.read_at(Offset(0), stale(4096))).await.unwrap();
    drop(other);
    wait_for("nbdkit to see the last client go", || server.has_ended()).await;
}

#[tokio::test]
async fn tcp_works_as_unix_sockets_do() {
    let server = Server::nbdkit_tcp(&["--filter=cow", "pattern", "2M"]).await;
    let uri = format!("nbd://{}/", server.address).parse::<warmd_disks::nbd::NbdUri>().unwrap();
    let disk = NbdDisk::open(NbdOptions::from(uri).writable()).await.unwrap();
    let data = in_time(disk.read_at(Offset(4096), stale(1 << 20))).await.unwrap();
    for (n, word) in data.as_chunks::<8>().0.iter().enumerate() {
        assert_eq!(u64::from_be_bytes(*word), 4096 + n as u64 * 8);
    }
    in_time(disk.write_at(Offset(0), data, 100..200, false)).await.unwrap();
    in_time(disk.flush()).await.unwrap();
}

#[tokio::test]
async fn exports_are_listed() {
    let dir = tempdir();
    let exports = dir.path().join("exports");
    std::fs::create_dir(&exports).unwrap();
    write_file(&exports.join("sda"), &[0; 512]);
    write_file(&exports.join("sdb"), &[0; 512]);
    let folder = format!("dir={}", exports.display());
    let server = Server::nbdkit_in(dir, &["file", &folder]).await;
    let listed = in_time(list_exports(&server.address, Duration::from_secs(9))).await.unwrap();
    let mut names: Vec<_> = listed.iter().map(|export| export.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["sda", "sdb"]);
    let error = in_time(NbdDisk::open(server.options("sdc"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn read_only_export_is_refused_for_writing() {
    let server = Server::nbdkit(&["-r", "memory", "1M"]).await;
    let error = in_time(NbdDisk::open(server.options("").writable())).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::ReadOnly), "{error}");
    let server = Server::nbdkit(&["memory", "1M"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    let error = disk.write(Offset(0), buffer(&[1]), 0..1).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
}
