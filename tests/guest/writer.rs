//! The guest's workload: appends a record, makes it durable on every disk, and only then acknowledges it.
//!
//! Beside it, scattered writes keep the disks changing. Its settings are in `warmd.conf` at the root of
//! the mounted disk. Std only: the image build compiles this file alone, statically linked.

#[path = "../src/record.rs"]
#[allow(dead_code, unreachable_pub, reason = "the harness needs more of it than the guest")]
mod record;

use std::fs::{File, OpenOptions, read_to_string, write};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use record::{BLOCK, RECORD, RING, encode, mix, ring_block, ring_offset, verify_log};

type Res<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MIB: u64 = 1 << 20;
const DATA: &str = "/data";

fn main() {
    if let Err(err) = run() {
        println!("WRITER FAILED {err}");
    }
}

fn run() -> Res<()> {
    let conf = read_to_string(Path::new(DATA).join("warmd.conf"))?;
    let boots = Path::new(DATA).join("boots");
    let boot = 1 + read_to_string(&boots).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0_u16);
    write(&boots, format!("{boot}\n"))?;
    File::open(&boots)?.sync_all()?;
    println!(
        "BOOT n={boot} uuid={} mac={}",
        word("/sys/class/dmi/id/product_uuid"),
        word("/sys/class/net/eth0/address")
    );

    let path = Path::new(DATA).join("log");
    let mut log = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let last = check(&mut log)?;
    println!("RESUME {}", last + 1);

    let extra = extra_disks((setting(&conf, "disks") as usize).saturating_sub(1))?;
    let churn = setting(&conf, "churn_kib_s");
    if churn > 0 {
        let area = setting(&conf, "churn_mib") * MIB;
        let file = Path::new(DATA).join("churn");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(file)?;
        file.set_len(area)?;
        let mut areas = vec![(file, 0, area)];
        for disk in &extra {
            let room = size(disk)?.saturating_sub(RING * BLOCK as u64);
            areas.push((disk.try_clone()?, RING * BLOCK as u64, area.min(room)));
        }
        std::thread::spawn(move || {
            if let Err(err) = scatter(&areas, churn, u64::from(boot)) {
                println!("WRITER FAILED churn: {err}");
            }
        });
    }
    let pause = Duration::from_millis(setting(&conf, "record_ms"));
    for seq in last + 1.. {
        log.write_all(&encode(seq, boot))?;
        log.sync_data()?;
        for disk in &extra {
            disk.write_all_at(&ring_block(seq, boot), ring_offset(seq))?;
            disk.sync_data()?;
        }
        println!("ACK {seq}");
        pause_for(pause);
    }
    Ok(())
}

/// Verifies the log that the earlier boots left, cuts a torn end off and leaves the file at its end.
fn check(log: &mut File) -> Res<u64> {
    let mut bytes = Vec::new();
    log.read_to_end(&mut bytes)?;
    match verify_log(&bytes) {
        Ok(good) => {
            println!("LOG OK {}", good.last);
            let end = good.last * RECORD as u64;
            log.set_len(end)?;
            log.seek(SeekFrom::Start(end))?;
            Ok(good.last)
        }
        Err(bad) => {
            println!("LOG BAD {bad}");
            Err(Box::new(bad))
        }
    }
}

/// Writes `kib_s` KiB per second in runs of 4 to 64 KiB at random offsets, in turn over the areas.
fn scatter(areas: &[(File, u64, u64)], kib_s: u64, boot: u64) -> Res<()> {
    let noise: Vec<u8> = (0..64 * 1024 / 8).flat_map(|n| mix(n ^ (boot << 32)).to_le_bytes()).collect();
    let tick = Duration::from_millis(100);
    for round in 0_u64.. {
        let began = Instant::now();
        let mut left = kib_s * 1024 / 10;
        while left > 0 {
            for (n, (file, start, len)) in areas.iter().enumerate() {
                let dice = mix((boot << 48) ^ (round << 20) ^ (left << 4) ^ n as u64);
                let run = (4096 * (1 + dice % 16)).min(*len) & !4095;
                if run == 0 {
                    continue;
                }
                let at = start + (dice >> 8) % (*len - run + 1) / 4096 * 4096;
                file.write_all_at(&noise[..run as usize], at)?;
                // Equal bytes at the same place again would be no change: every write carries its own mark.
                file.write_all_at(&dice.to_le_bytes(), at)?;
                left = left.saturating_sub(run);
            }
        }
        for (file, ..) in areas {
            file.sync_data()?;
        }
        pause_for(tick.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// Every whole disk but the one that is mounted: no other has partitions. A disk that was not found yet is
/// waited for.
fn extra_disks(expected: usize) -> Res<Vec<File>> {
    let began = Instant::now();
    let mut names = disks_without_partitions()?;
    while names.len() < expected && began.elapsed() < Duration::from_secs(30) {
        pause_for(Duration::from_millis(100));
        names = disks_without_partitions()?;
    }
    names
        .iter()
        .map(|n| Ok(OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(n))?))
        .collect()
}

fn disks_without_partitions() -> Res<Vec<String>> {
    let mut names: Vec<String> =
        std::fs::read_dir("/sys/block")?.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.retain(|n| {
        (n.starts_with("vd") || n.starts_with("sd")) && !Path::new(&format!("/sys/block/{n}/{n}1")).exists()
    });
    names.sort();
    Ok(names)
}

fn size(disk: &File) -> Res<u64> {
    Ok((&*disk).seek(SeekFrom::End(0))?)
}

fn word(path: &str) -> String {
    read_to_string(path).map_or_else(|_| "-".to_owned(), |s| s.trim().to_owned())
}

fn setting(conf: &str, key: &str) -> u64 {
    let line = conf.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
    line.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

#[allow(clippy::disallowed_methods, reason = "no runtime in the guest")]
fn pause_for(time: Duration) {
    std::thread::sleep(time);
}
