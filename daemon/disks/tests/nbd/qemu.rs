//! The client against qemu-nbd: qcow2 images, dirty bitmaps, several meta contexts at once.

use crate::common::{
    buffer, dirty, extent, in_time, noise, run,
    server::{Server, path_text, tempdir},
    stale,
};
use tempfile::TempDir;
use warmd_cbt::{
    disk::{ErrorKind, ReadDisk, WriteDisk},
    units::Offset,
};
use warmd_disks::nbd::{NbdCause, NbdDisk, ZeroFlags};

const MIB: u64 = 1 << 20;
const BITMAP: &str = "qemu:dirty-bitmap:changes";

/// A qcow2 image of 64 MiB with data at 1 MiB and 33 MiB, then a bitmap, then changes of the bitmap's
/// granularity.
fn image_with_bitmap(changes: &[(u64, u64)]) -> TempDir {
    let dir = tempdir();
    let image = path_text(&dir.path().join("disk"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "64M"]);
    let write = |start: u64, len: u64, pattern: u8| {
        run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {pattern} {start} {len}"), &image]);
    };
    write(MIB, MIB, 1);
    write(33 * MIB, MIB, 2);
    run("qemu-img", &["bitmap", "--add", "-g", "65536", &image, "changes"]);
    for (start, len) in changes {
        write(*start, *len, 3);
    }
    dir
}

#[tokio::test]
async fn a_dirty_bitmap_tells_exactly_what_changed() {
    let changes = [(0, 512), (5 * MIB, 3 * 65536), (33 * MIB + 100, 65536), (64 * MIB - 512, 512)];
    let dir = image_with_bitmap(&changes);
    let server = Server::qemu(dir, &["-f", "qcow2", "-r", "-B", "changes", "-x", "vda", "disk"]).await;
    let options = server.options("vda").context(BITMAP).context("qemu:allocation-depth");
    let disk = NbdDisk::open(options).await.unwrap();
    assert_eq!(disk.contexts().collect::<Vec<_>>(), ["base:allocation", BITMAP], "depth needs qemu-nbd -A");

    let expected = [
        extent(0, 65536),
        extent(5 * MIB, 3 * 65536),
        extent(33 * MIB, 2 * 65536),
        extent(64 * MIB - 65536, 65536),
    ];
    let found = in_time(dirty(&disk, BITMAP, extent(0, 64 * MIB))).await.unwrap();
    assert_eq!(found, expected);
    let part = in_time(dirty(&disk, BITMAP, extent(5 * MIB + 100, 65536))).await.unwrap();
    assert_eq!(part, [extent(5 * MIB + 100, 65536)], "cut to what was asked");
    let none = in_time(dirty(&disk, BITMAP, extent(MIB, 4 * MIB))).await.unwrap();
    assert_eq!(none, []);
    let error = in_time(dirty(&disk, "qemu:dirty-bitmap:other", extent(0, MIB))).await.unwrap_err();
    assert!(matches!(error.cause, NbdCause::NoContext(_)), "{error}");

    for (start, len) in changes {
        let read = in_time(disk.read_at(Offset(start), stale(len as usize))).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 3), "at {start}");
    }
}

#[tokio::test]
async fn changes_beyond_what_one_request_can_ask_about_are_found() {
    let dir = tempdir();
    let image = path_text(&dir.path().join("disk"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "20G"]);
    run("qemu-img", &["bitmap", "--add", "-g", "65536", &image, "changes"]);
    // Around 4 GiB, far past it, and enough scattered ones that no short answer can hold them all.
    let mut starts = vec![(4 << 30) - 65536, 4 << 30, 9 << 30, (20 << 30) - 65536];
    starts.extend((0..3000).map(|n| (12 << 30) + n * 2 * 65536));
    for some in starts.chunks(500) {
        let writes: Vec<_> = some.iter().map(|at| format!("write -q {at} 512")).collect();
        let mut arguments = vec!["-f", "qcow2"];
        for write in &writes {
            arguments.extend(["-c", write.as_str()]);
        }
        arguments.push(&image);
        run("qemu-io", &arguments);
    }
    let server = Server::qemu(dir, &["-f", "qcow2", "-r", "-B", "changes", "disk"]).await;
    let disk = NbdDisk::open(server.options("").context(BITMAP)).await.unwrap();
    let found = in_time(dirty(&disk, BITMAP, extent(0, 20 << 30))).await.unwrap();
    let mut expected: Vec<_> = starts.iter().map(|at| extent(*at, 65536)).collect();
    expected.splice(0..2, [extent((4 << 30) - 65536, 2 * 65536)]);
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn several_contexts_answer_one_request_each_with_its_own_reach() {
    let dir = image_with_bitmap(&[(5 * MIB, 65536)]);
    let server = Server::qemu(dir, &["-f", "qcow2", "-r", "-A", "-B", "changes", "disk"]).await;
    let options = server.options("").context(BITMAP).context("qemu:allocation-depth");
    let disk = NbdDisk::open(options).await.unwrap();
    assert_eq!(disk.contexts().count(), 3);
    let all = in_time(disk.block_status(extent(MIB / 2, 8 * MIB), false)).await.unwrap();
    assert_eq!(all.len(), 3);
    for status in &all {
        let mut at = Offset(MIB / 2);
        for run in &status.runs {
            assert_eq!(run.extent.start(), at, "{} has a gap", status.context);
            at = run.extent.end();
        }
        assert!(at > Offset(MIB / 2) && at <= Offset(MIB / 2 + 8 * MIB), "{}", status.context);
    }
    let one = in_time(disk.block_status(extent(MIB / 2, 8 * MIB), true)).await.unwrap();
    assert!(one.iter().all(|status| status.runs.len() == 1), "{one:?}");
}

#[tokio::test]
async fn allocation_covers_the_disk_and_tells_zeroes() {
    let dir = image_with_bitmap(&[]);
    let server = Server::qemu(dir, &["-f", "qcow2", "-r", "disk"]).await;
    let disk = NbdDisk::open(server.options("")).await.unwrap();
    let (mut at, mut data) = (0, Vec::new());
    while at < 64 * MIB {
        for run in in_time(disk.allocation(extent(at, 64 * MIB - at))).await.unwrap() {
            assert_eq!(run.extent.start(), Offset(at));
            at = run.extent.end().0;
            if !run.zero {
                data.push(run.extent);
            }
        }
    }
    assert_eq!(data, [extent(MIB, MIB), extent(33 * MIB, MIB)]);
    // A hole is reported as such in a structured reply: the buffer's old bytes must not show.
    let read = in_time(disk.read_at(Offset(MIB - 4096), stale(8192))).await.unwrap();
    assert!(read[..] == [vec![0; 4096], vec![1; 4096]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_zeroes_trims_and_flushes_reach_the_image() {
    let dir = tempdir();
    let mut content = noise(4, 16 << 20);
    crate::common::write_file(&dir.path().join("disk"), &content);
    let server =
        Server::qemu(dir, &["-f", "raw", "--discard=unmap", "--shared=8", "-x", "out", "disk"]).await;
    let disk = NbdDisk::open(server.options("out").writable()).await.unwrap();
    assert!(disk.export().structured);
    // Larger than qemu-nbd's largest request, without changes around it in the buffer.
    let new = noise(5, 9 << 20);
    in_time(disk.write(Offset(512), buffer(&new), 1024..9 << 20)).await.unwrap();
    content[512..512 + (9 << 20) - 1024].copy_from_slice(&new[1024..]);
    for (start, flags) in [
        (10 * MIB, ZeroFlags::default()),
        (11 * MIB, ZeroFlags { no_hole: true, ..ZeroFlags::default() }),
        (12 * MIB, ZeroFlags { fua: true, ..ZeroFlags::default() }),
    ] {
        in_time(disk.zero_range(extent(start, MIB), flags)).await.unwrap();
        content[start as usize..(start + MIB) as usize].fill(0);
    }
    // Fast or not at all: both are right, but not a wrong answer.
    match in_time(disk.zero_range(extent(13 * MIB, MIB), ZeroFlags { fast: true, ..ZeroFlags::default() }))
        .await
    {
        Ok(()) => content[13 << 20..14 << 20].fill(0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{error}"),
    }
    in_time(disk.trim(extent(14 * MIB, MIB), false)).await.unwrap();
    content[14 << 20..15 << 20].fill(0);
    in_time(disk.write_zeroes(extent(15 * MIB + 1, 100))).await.unwrap();
    content[(15 << 20) + 1..(15 << 20) + 101].fill(0);
    in_time(disk.flush()).await.unwrap();
    assert!(std::fs::read(server.path("disk")).unwrap() == content);
    let back = in_time(disk.read_at(Offset(0), stale(16 << 20))).await.unwrap();
    assert!(back[..] == content);
}

#[tokio::test]
async fn a_server_for_few_clients_is_opened_with_fewer_connections() {
    let dir = tempdir();
    crate::common::write_file(&dir.path().join("disk"), &noise(6, 1 << 20));
    // It announces multi-conn, then leaves the third connection waiting.
    let server = Server::qemu(dir, &["-f", "raw", "-r", "--shared=2", "disk"]).await;
    let disk = in_time(NbdDisk::open(server.options(""))).await.unwrap();
    assert_eq!(disk.connections(), 2);
    assert_eq!(disk.limits().in_flight, 32);
    assert!(in_time(disk.read_at(Offset(0), stale(1 << 20))).await.unwrap()[..] == noise(6, 1 << 20));
}

#[tokio::test]
async fn an_unknown_export_is_refused_with_the_servers_words() {
    let dir = tempdir();
    crate::common::write_file(&dir.path().join("disk"), &[0; 512]);
    let server = Server::qemu(dir, &["-f", "raw", "-x", "vda", "disk"]).await;
    let error = in_time(NbdDisk::open(server.options("vdb"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("it has no export of that name"), "{error}");
    assert!(error.to_string().contains("vdb"), "{error}");
}
