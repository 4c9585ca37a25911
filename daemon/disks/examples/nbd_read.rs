//! Reads a whole export in order and says how fast: `nbd_read URI [CONNECTIONS [IN_FLIGHT [BYTES]]]`.

use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use warmd_cbt::{buffer::BufferPool, units::Offset};
use warmd_disks::nbd::{NbdDisk, NbdOptions, NbdUri};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let uri: NbdUri = arguments.next().context("which export? give an NBD URI")?.parse()?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (connections, in_flight, bytes) = (number(4)?, number(16)?, number(256 << 10)?);
    anyhow::ensure!(bytes > 0, "requests of no bytes lead nowhere");

    let disk = NbdDisk::open(NbdOptions { connections, in_flight, ..uri.into() }).await?;
    let lanes = disk.connections() * in_flight.max(1);
    let pool = BufferPool::new(lanes, bytes);
    let began = Instant::now();
    let starts = (0..disk.len()).step_by(bytes);
    stream::iter(starts)
        .map(|at| {
            let (disk, pool) = (&disk, &pool);
            async move {
                let length = (disk.len() - at).min(bytes as u64) as usize;
                disk.read_at(Offset(at), pool.take(length).await).await.map(drop)
            }
        })
        .buffer_unordered(lanes)
        .try_collect::<()>()
        .await?;
    let took = began.elapsed();
    let rate = disk.len() as f64 / took.as_secs_f64() / 1e6;
    let (size, connections) = (disk.len(), disk.connections());
    println!(
        "{size} bytes in {took:.2?}: {rate:.0} MB/s ({connections} connections, {in_flight} in flight each)"
    );
    disk.close().await;
    Ok(())
}
