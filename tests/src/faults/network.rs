//! The network between the daemon and the server of a target's disks: a proxy in the test, because Debian's
//! cloud kernels and many others have no `netem`.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Row, proxy::Proxy, row, stage::FaultStage};
use crate::{rig::WORK, scratch::NbdServer};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("network", "cut", "every connection is cut, again and again", true, cut),
    row("network", "half-open", "nothing arrives any more and no one is notified, longer than a request may take", false, half_open),
    row("network", "loss", "5 % of all packets are lost", false, |stage| weather(stage, |net| net.loss(50), Proxy::lost)),
    row("network", "latency", "200 ms of latency", false, |stage| weather(stage, |net| net.delay(Duration::from_millis(100)), Proxy::late)),
    row("network", "slow", "1 MB/s", false, |stage| weather(stage, |net| net.rate(1_000_000), Proxy::late)),
    row("network", "garbled", "a byte of an answer is changed, some times", false, garbled),
];

const NOISE: u64 = 16;

/// A rig whose second disk goes to a remote NBD server.
fn far_away(stage: &mut FaultStage<'_>) -> Result<std::sync::Arc<Proxy>> {
    let server = NbdServer::qemu(stage.dir, "far", 256 << 20)?;
    let net = std::sync::Arc::new(Proxy::tcp(&stage.dir.join("far.sock"))?);
    let place = format!("nbd://{}/", net.address());
    stage.keep(server);
    stage.keep(std::sync::Arc::clone(&net));
    let near = stage.dir.join("near.raw");
    std::fs::File::create(&near)?.set_len(256 << 20)?;
    stage.off(NOISE, |spec| {
        spec.places = vec![("vda", near.display().to_string()), ("vdb", place.clone())];
    })?;
    Ok(net)
}

/// In the full pass and in a delta; `seen` counts the faults that happened.
fn weather(stage: &mut FaultStage<'_>, set: impl Fn(&Proxy), seen: fn(&Proxy) -> u64) -> Result<()> {
    let net = far_away(stage)?;
    set(&net);
    stage.seed()?;
    ensure!(net.made() > 0, "nobody came over the network");
    ensure!(seen(&net) > 0, "the fault was never seen");
    stage.scribble(3)?;
    stage.sync()?;
    // A delta has too few packets to lose some of them with certainty.
    net.delay(Duration::ZERO);
    net.loss(0);
    net.rate(0);
    Ok(())
}

fn cut(stage: &mut FaultStage<'_>) -> Result<()> {
    let net = far_away(stage)?;
    // Slow enough to be cut in the middle of a pass.
    net.rate(1_000_000);
    stage.begin()?;
    for _ in 0..4 {
        cut_once(&net)?;
    }
    net.rate(0);
    stage.rig()?.wait_for("synced")?;
    stage.scribble(3)?;
    // A small delta may finish before the test looks: the silence keeps its connection open to be cut.
    net.silence(true);
    stage.rig()?.try_verb("sync", &["--no-wait"])?;
    cut_once(&net)?;
    net.silence(false);
    stage.rig()?.wait_for("synced").map(drop)
}

/// Cuts as soon as a connection exists.
fn cut_once(net: &Proxy) -> Result<()> {
    let cuts = net.cuts();
    crate::wait_until("a connection to be cut", WORK, || {
        net.cut();
        Ok((net.cuts() > cuts).then_some(()))
    })
}

fn half_open(stage: &mut FaultStage<'_>) -> Result<()> {
    let net = far_away(stage)?;
    net.rate(8_000_000);
    stage.freeze(2 << 20)?;
    net.silence(true);
    stage.thaw()?;
    stage.wait_for_words(&["failure", "within"])?;
    net.silence(false);
    net.rate(0);
    stage.rig()?.wait_for("synced")?;
    stage.scribble(3)?;
    stage.sync().map(drop)
}

fn garbled(stage: &mut FaultStage<'_>) -> Result<()> {
    let net = far_away(stage)?;
    // Slow enough that all three happen before the pass ends, on a busy machine too.
    net.rate(1_000_000);
    stage.begin()?;
    for _ in 0..3 {
        net.garble(1);
        crate::wait_until("a garbled answer", WORK, || Ok(net.has_garbled().then_some(())))?;
    }
    net.rate(0);
    stage.rig()?.wait_for("synced")?;
    stage.scribble(3)?;
    stage.sync().map(drop)
}
