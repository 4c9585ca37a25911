//! The clients of the daemon: `warmctl` as a process, and a client that stays connected.
//!
//! Rule: both get complete answers. The client's time is from the call to the decoded message; that of
//! `warmctl` from before the process is created to its end, its output read. `warmctl --version` measures the
//! process alone.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};
use warmd_proto::v1::{
    Migration, MigrationState, MigrationsListRequest, PlansApplyRequest, PlansGetRequest,
    migrations_client::MigrationsClient, plans_client::PlansClient,
};
use warmd_tests::wait_until;

use super::{Size, plan::PLAN};

/// The largest accepted answer, in bytes.
const MOST: usize = 256 << 20;

/// The latency of one request.
#[derive(Clone, Debug, Serialize)]
pub struct AskLatency {
    pub question: String,
    /// What the daemon does during the requests.
    pub during: String,
    pub by: String,
    pub count: usize,
    pub median_ms: f64,
    pub p99_ms: f64,
    /// Whether it has a bar.
    #[serde(skip)]
    pub counts: bool,
}

impl AskLatency {
    pub(super) fn name(&self) -> String {
        format!("{} by {}, {}", self.question, self.by, self.during)
    }
}

pub(super) struct Asker {
    runtime: Runtime,
    socket: PathBuf,
    warmctl: PathBuf,
}

impl Asker {
    pub(super) fn new(socket: PathBuf, programs: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime, socket, warmctl: programs.join("warmctl") })
    }

    fn channel(&self) -> Result<Channel> {
        let socket = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://warmd");
        Ok(self.runtime.block_on(endpoint.connect_with_connector(connector))?)
    }

    /// Applies a plan.
    pub(super) fn apply(&self, toml: &str) -> Result<()> {
        let mut plans = PlansClient::new(self.channel()?).max_decoding_message_size(MOST);
        let request = PlansApplyRequest { toml: toml.to_owned(), dry_run: false };
        self.runtime.block_on(plans.apply(request)).context("plan apply").map(drop)
    }

    fn list(&self) -> Result<Vec<Migration>> {
        let mut migrations = MigrationsClient::new(self.channel()?).max_decoding_message_size(MOST);
        let answer = self.runtime.block_on(migrations.list(MigrationsListRequest::default()))?;
        Ok(answer.into_inner().migrations)
    }

    /// How many migrations there are.
    pub(super) fn listed(&self) -> Result<usize> {
        Ok(self.list()?.len())
    }

    /// Number of passes of all migrations so far.
    pub(super) fn passes(&self) -> Result<u64> {
        Ok(self.list()?.iter().map(|each| u64::from(number(each))).sum())
    }

    /// Waits until every migration has ended its pass of this number.
    pub(super) fn until_passed(&self, vms: usize, passes: u32, patience: Duration) -> Result<()> {
        self.until(&format!("{passes} passes of each"), vms, patience, |each| {
            let ended = each.pass.as_ref().is_some_and(|pass| pass.ended.is_some());
            number(each) + u32::from(ended) > passes
        })
    }

    /// Waits until no migration copies.
    pub(super) fn until_at_rest(&self, vms: usize, patience: Duration) -> Result<()> {
        self.until("all to be synced", vms, patience, |each| each.state() == MigrationState::Synced)
    }

    fn until(
        &self,
        what: &str,
        vms: usize,
        patience: Duration,
        is_so: impl Fn(&Migration) -> bool,
    ) -> Result<()> {
        let mut left = vms;
        let waited = wait_until(what, patience, || {
            let list = self.list()?;
            ensure!(list.len() == vms, "{} migrations", list.len());
            if let Some(failed) = list.iter().find(|each| each.state() == MigrationState::Failed) {
                anyhow::bail!("{} failed: {:?}", failed.vm_name, failed.reason);
            }
            left = list.iter().filter(|each| !is_so(each)).count();
            Ok((left == 0).then_some(()))
        });
        waited.with_context(|| format!("{left} are not"))
    }

    /// The latencies of answers while the daemon is in that activity.
    pub(super) fn latencies(&self, during: &str, size: Size) -> Result<Vec<AskLatency>> {
        let channel = self.channel()?;
        let mut plans = PlansClient::new(channel.clone()).max_decoding_message_size(MOST);
        let mut migrations = MigrationsClient::new(channel).max_decoding_message_size(MOST);
        let shown = times(size.calls, || {
            let answer = self.runtime.block_on(plans.get(PlansGetRequest { name: PLAN.to_owned() }))?;
            let vms = answer.into_inner().plan.map_or(0, |plan| plan.vms.len());
            ensure!(vms == size.vms, "the plan has {vms} VMs");
            Ok(())
        })?;
        let listed = times(size.calls, || {
            let answer = self.runtime.block_on(migrations.list(MigrationsListRequest::default()))?;
            ensure!(answer.into_inner().migrations.len() == size.vms, "not all are in the list");
            Ok(())
        })?;
        let [start, show, list] =
            [&["--version"][..], &["plan", "show", PLAN], &["migration", "list"]].map(|words| {
                times(size.runs, || {
                    let mut command = Command::new(&self.warmctl);
                    let out = command.arg("--socket").arg(&self.socket).args(words);
                    let out = out.stdin(Stdio::null()).output().context("warmctl")?;
                    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                    ensure!(words[0] == "--version" || out.stdout.len() > size.vms * 8, "a short answer");
                    Ok(())
                })
            });
        let latency = |question: &str, by: &str, times: &[f64], counts| AskLatency {
            question: question.to_owned(),
            during: during.to_owned(),
            by: by.to_owned(),
            count: times.len(),
            median_ms: part(times, 0.5) * 1e3,
            p99_ms: part(times, 0.99) * 1e3,
            counts,
        };
        let all = vec![
            latency("plan show", "a connected client", &shown, true),
            latency("migration list", "a connected client", &listed, true),
            latency("plan show", "warmctl", &show?, true),
            latency("migration list", "warmctl", &list?, true),
            latency("--version", "warmctl", &start?, false),
        ];
        for each in &all {
            println!("  {}: median {:.2} ms, p99 {:.2} ms", each.name(), each.median_ms, each.p99_ms);
        }
        Ok(all)
    }
}

fn number(migration: &Migration) -> u32 {
    migration.pass.as_ref().map_or(0, |pass| pass.number)
}

/// Seconds of each, in their order of size; one more is not counted.
fn times(count: usize, mut ask: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    ask()?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begun = Instant::now();
        ask()?;
        times.push(begun.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The value that this share of the samples does not exceed.
fn part(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_is_beyond_the_99th_percentile() {
        let hundred: Vec<_> = (1..=100).map(f64::from).collect();
        let of = |times: &[f64], share| part(times, share).round() as u64;
        assert_eq!([of(&hundred, 0.5), of(&hundred, 0.99)], [50, 99]);
        assert_eq!(of(&[7.0], 0.99), 7);
    }
}
