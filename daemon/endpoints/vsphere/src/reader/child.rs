//! A child that serves one disk: started, watched, started again when it dies or does not read, ended.
//!
//! Rule: it is ended with SIGTERM, so that the library closes its connection: what it leaves open keeps the
//! host's memory for minutes. A child is not replaced for a reason that the next one would meet, too: each
//! logs in, and a user who fails to is locked out.

use std::{
    io,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::Child,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use warmd_disks::spawner;

use crate::{settings::ReaderSettings, snapshot::Owner};

use super::{
    command::{Order, command},
    health::Health,
    place::SocketDirectory,
    said::Said,
    why::{Complaint, ReaderError},
};

/// For being ready: nbdkit loads a library of some tens of MB.
const READY: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
/// For closing connections in order.
const END: Duration = Duration::from_secs(10);
/// How long after a failure its reason may come.
const SAY: Duration = Duration::from_secs(2);
/// How long a new child, which has a read to do, may say nothing but refusals and read nothing.
const REFUSING: Duration = Duration::from_secs(2);
/// Deaths, and ends because it did not read, that are made good, with pauses that grow.
const RESTARTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A child that has lived so long begins a new count.
const STABLE: Duration = Duration::from_mins(5);

/// A child that serves a disk.
#[derive(Debug)]
pub struct Serving {
    place: Arc<SocketDirectory>,
    said: Said,
    end: Option<oneshot::Sender<()>>,
    watching: Option<JoinHandle<()>>,
    health: Health,
}

impl Serving {
    /// Starts it, and waits until it can be connected to.
    pub(super) async fn start(
        settings: &ReaderSettings,
        order: &Order,
        owner: &Owner,
    ) -> Result<Self, ReaderError> {
        let place = SocketDirectory::make(&settings.runtime_dir, owner).await.map_err(|error| {
            let shown = settings.runtime_dir.display();
            ReaderError::new(Complaint::Unknown, format!("a folder for the socket in {shown}: {error}"))
        })?;
        let place = Arc::new(place);
        let said = Said::default();
        let child = launch(settings, order, &place, &said).await?;
        let (end, ended) = oneshot::channel();
        let health = Health::default();
        health.started();
        let keeper = Keeper {
            settings: settings.clone(),
            order: order.clone(),
            place: Arc::clone(&place),
            said: said.clone(),
            health: health.clone(),
        };
        let watching = tokio::spawn(keeper.watch_over(child, ended));
        Ok(Self { place, said, end: Some(end), watching: Some(watching), health })
    }

    /// Where it serves.
    pub fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    pub(super) async fn complaint(&self) -> Option<ReaderError> {
        timeout(SAY, self.said.explained()).await.ok();
        self.said.complaint().or_else(|| self.health.gave_up())
    }

    /// Whether it reads, for those who read.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    pub(super) async fn close(mut self) {
        drop(self.end.take());
        if let Some(watching) = self.watching.take() {
            // It has its own deadline.
            watching.await.ok();
        }
    }
}

/// Starts nbdkit, and waits until it serves.
async fn launch(
    settings: &ReaderSettings,
    order: &Order,
    place: &SocketDirectory,
    said: &Said,
) -> Result<Child, ReaderError> {
    let (socket, pid) = (place.socket(), place.pid());
    for file in [&socket, &pid] {
        tokio::fs::remove_file(file).await.ok();
    }
    let mut command = command(settings, order, &socket, &pid);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let deadline = Instant::now() + READY;
    said.begin();
    let spawned = timeout_at(deadline, spawner::spawn(command)).await;
    let spawned = spawned.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut child = spawned.map_err(|error| {
        let what = format!("{}: {error}", settings.nbdkit.display());
        ReaderError::new(Complaint::NoProgram, what)
    })?;
    if let Some(output) = child.stderr.take() {
        tokio::spawn(listen(output, said.clone()));
    }
    loop {
        if tokio::fs::try_exists(&pid).await.unwrap_or_default() {
            return Ok(child);
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Its last lines may not be read yet.
            sleep(POLL).await;
            return Err(said.complaint().unwrap_or_else(|| {
                ReaderError::new(Complaint::Unknown, format!("nbdkit ended at once ({status})"))
            }));
        }
        if Instant::now() >= deadline {
            end(&mut child).await;
            let what = format!("nbdkit does not serve within {} s", READY.as_secs());
            return Err(said.complaint().unwrap_or_else(|| ReaderError::new(Complaint::Unknown, what)));
        }
        sleep(POLL).await;
    }
}

/// Keeps the last lines of an output.
async fn listen(output: impl AsyncRead + Unpin, said: Said) {
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line is bounded too: what is longer comes as several.
        let mut bounded = tokio::io::AsyncReadExt::take(&mut lines, 16 * 1024);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                tracing::debug!(line = text.trim_end(), "nbdkit");
                said.push(text.trim_end());
            }
        }
    }
}

/// Why a child is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaced {
    Died,
    /// Its reads failed.
    Failed,
}

/// What keeps a child serving.
#[derive(Debug)]
struct Keeper {
    settings: ReaderSettings,
    order: Order,
    place: Arc<SocketDirectory>,
    said: Said,
    health: Health,
}

impl Keeper {
    async fn watch_over(self, mut child: Child, mut ended: oneshot::Receiver<()>) {
        let mut deaths = 0;
        let mut since = Instant::now();
        let mut replaced = Replaced::Died;
        loop {
            let number = self.health.child();
            replaced = tokio::select! {
                _ = &mut ended => {
                    end(&mut child).await;
                    return self.give_up(ReaderError::new(Complaint::Unknown, "the disk was closed"));
                }
                status = child.wait() => {
                    tell_death(status, &self.order.file);
                    Replaced::Died
                }
                () = self.health.failed(number) => {
                    tracing::warn!(file = self.order.file, "reads of nbdkit fail; ending it and starting it again");
                    end(&mut child).await;
                    // Its last lines may not be read yet.
                    sleep(POLL).await;
                    if let Some(why) = self.said.refusal() {
                        return self.give_up(why);
                    }
                    Replaced::Failed
                }
                why = self.refusal(number), if replaced == Replaced::Failed => {
                    end(&mut child).await;
                    return self.give_up(why);
                }
            };
            if since.elapsed() > STABLE {
                deaths = 0;
            }
            let Some(next) = self.replace(&mut deaths, &mut ended).await else { return };
            child = next;
            since = Instant::now();
            self.health.started();
        }
    }

    /// Starts another child, after a pause; `None` if there is no other.
    async fn replace(&self, deaths: &mut u32, ended: &mut oneshot::Receiver<()>) -> Option<Child> {
        loop {
            *deaths += 1;
            if *deaths > RESTARTS {
                let silent =
                    || ReaderError::new(Complaint::Unknown, "nbdkit ends again and again, without a word");
                self.give_up(self.said.complaint().unwrap_or_else(silent));
                return None;
            }
            let pause = FIRST_PAUSE * 2_u32.pow(*deaths - 1);
            if timeout(pause, &mut *ended).await.is_ok() {
                self.give_up(ReaderError::new(Complaint::Unknown, "the disk was closed"));
                return None;
            }
            match launch(&self.settings, &self.order, &self.place, &self.said).await {
                Ok(next) => return Some(next),
                Err(error) => tracing::warn!(file = self.order.file, %error, "nbdkit does not start again"),
            }
        }
    }

    /// Waits until the child refuses to read. A library also warns of what it then puts up with, so that a
    /// child that reads, whatever it said, does not refuse.
    async fn refusal(&self, number: u64) -> ReaderError {
        loop {
            self.said.refused().await;
            sleep(REFUSING).await;
            match self.said.refusal() {
                Some(_) if self.health.has_read(number) => std::future::pending().await,
                Some(why) => return why,
                None => {}
            }
        }
    }

    fn give_up(&self, why: ReaderError) {
        tracing::info!(file = self.order.file, %why, "nbdkit is not started again");
        self.health.give_up(why);
    }
}

fn tell_death(status: io::Result<ExitStatus>, file: &str) {
    match status {
        Ok(status) => tracing::warn!(file, %status, "nbdkit ended while it served; starting it again"),
        Err(error) => tracing::warn!(file, %error, "nbdkit cannot be waited for; starting it again"),
    }
}

/// Asks it to end, then makes it end.
async fn end(child: &mut Child) {
    let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(id) = id
        && kill_process(id, Signal::TERM).is_ok()
        && timeout(END, child.wait()).await.is_ok()
    {
        return;
    }
    if let Err(error) = child.kill().await {
        tracing::debug!(%error, "nbdkit had ended");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{client::Server, reader::Access, settings::ReaderKind};

    /// A stand-in for nbdkit: a shell script that does `what`. `$PIDFILE` is where it says that it serves.
    fn stand_in(dir: &Path, what: &str) -> ReaderSettings {
        use std::os::unix::fs::PermissionsExt as _;
        let program = dir.join("nbdkit");
        let find = "while [ $# -gt 0 ]; do [ \"$1\" = --pidfile ] && PIDFILE=$2; shift; done";
        std::fs::write(&program, format!("#!/bin/sh\n{find}\n{what}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        ReaderSettings {
            kind: ReaderKind::Nfc,
            nbdkit: program,
            runtime_dir: dir.join("run"),
            ..ReaderSettings::default()
        }
    }

    fn order() -> Order {
        let access = Access {
            server: Server { host: "vc.example".to_owned(), port: 443 },
            user: "u".to_owned(),
            password_file: "/p".into(),
            thumbprint: "AA".repeat(20).parse().unwrap(),
            vm: "vm-57".to_owned(),
            snapshot: "snapshot-70".to_owned(),
        };
        Order { access, file: "[DS 1] web1/web1.vmdk".to_owned() }
    }

    fn owner() -> Owner {
        Owner::new("m-1")
    }

    /// What a stand-in does that serves until SIGTERM; it adds a line to each file.
    fn serves(starts: &Path, ends: &Path) -> String {
        format!(
            "echo x >> {}; echo $$ > $PIDFILE; trap 'echo x >> {}; exit 0' TERM; while :; do sleep 0.1; done",
            starts.display(),
            ends.display()
        )
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).map(|text| text.lines().count()).unwrap_or_default()
    }

    async fn until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !what() {
            assert!(Instant::now() < deadline, "it did not come");
            sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn a_child_that_says_why_it_cannot_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let settings =
            stand_in(dir.path(), "echo 'nbdkit: error: cannot open plugin \"nfc\": no' >&2; exit 1");
        let error = Serving::start(&settings, &order(), &owner()).await.map(drop).unwrap_err();
        assert_eq!(error.complaint, Complaint::PluginMissing);
        let silent = stand_in(dir.path(), "exit 3");
        let error = Serving::start(&silent, &order(), &owner()).await.map(drop).unwrap_err();
        assert!(error.said.contains("exit status: 3"), "{error}");
        let gone = ReaderSettings { nbdkit: dir.path().join("gone"), ..silent };
        let error = Serving::start(&gone, &order(), &owner()).await.map(drop).unwrap_err();
        assert_eq!(error.complaint, Complaint::NoProgram);
        assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0, "a folder is left");
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again_and_ends_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (starts, ends) = (dir.path().join("starts"), dir.path().join("ends"));
        let serves = serves(&starts, &ends);
        let serving = Serving::start(&stand_in(dir.path(), &serves), &order(), &owner()).await.unwrap();
        let pid: i32 = std::fs::read_to_string(serving.place.pid()).unwrap().trim().parse().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        until(|| lines(&starts) == 2).await;
        until(|| serving.place.pid().exists()).await;
        serving.close().await;
        assert_eq!((lines(&starts), lines(&ends)), (2, 1));
        assert_eq!(std::fs::read_dir(dir.path().join("run")).unwrap().count(), 0, "a folder is left");
    }

    #[tokio::test]
    async fn what_a_child_says_while_it_serves_is_its_complaint() {
        let dir = tempfile::tempdir().unwrap();
        let what = "echo $$ > $PIDFILE; i=0; while [ $i -lt 500 ]; do echo \"nbdkit: debug: $i\" >&2; i=$((i+1)); done; \
                    echo 'nbdkit: vddk[1]: error: Cannot complete login due to an incorrect user name or password' >&2; \
                    exec sleep 60";
        let serving = Serving::start(&stand_in(dir.path(), what), &order(), &owner()).await.unwrap();
        let complaint = serving.complaint().await.unwrap();
        assert_eq!(complaint.complaint, Complaint::Login);
        serving.close().await;
    }

    #[tokio::test]
    async fn a_child_that_does_not_read_is_ended_and_replaced_once() {
        let dir = tempfile::tempdir().unwrap();
        let (starts, ends) = (dir.path().join("starts"), dir.path().join("ends"));
        let serves = serves(&starts, &ends);
        let serving = Serving::start(&stand_in(dir.path(), &serves), &order(), &owner()).await.unwrap();
        let health = serving.health();
        let (one, other) = tokio::join!(health.renew(1), health.renew(1));
        assert_eq!((one, other, health.child()), (Ok(()), Ok(()), 2));
        assert_eq!((lines(&starts), lines(&ends)), (2, 1));
        assert_eq!(health.gave_up(), None);
        serving.close().await;
        assert_eq!((lines(&starts), lines(&ends)), (2, 2));
    }

    #[tokio::test]
    async fn a_reason_that_no_restart_mends_ends_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let starts = dir.path().join("starts");
        let says = |text: &str| {
            let log = starts.display();
            format!("echo x >> {log}; echo '{text}' >&2; echo $$ > $PIDFILE; exec sleep 60")
        };
        let login = "nbdkit: vddk[1]: error: Cannot complete login due to an incorrect user name or password";
        // Said before the read failed.
        let serving = Serving::start(&stand_in(dir.path(), &says(login)), &order(), &owner()).await.unwrap();
        let why = serving.health().renew(1).await.unwrap_err();
        assert_eq!((why.complaint, lines(&starts)), (Complaint::Login, 1));
        serving.close().await;

        // Said by the next child: the session had expired, and the password had changed.
        let log = starts.display();
        let what = format!(
            "echo x >> {log}; [ $(wc -l < {log}) = 2 ] || echo '{login}' >&2; echo $$ > $PIDFILE; exec sleep 60"
        );
        let serving = Serving::start(&stand_in(dir.path(), &what), &order(), &owner()).await.unwrap();
        let health = serving.health();
        assert_eq!(health.renew(1).await, Ok(()));
        timeout(Duration::from_secs(20), health.has_ended()).await.expect("it ends");
        assert_eq!(health.gave_up().map(|why| why.complaint), Some(Complaint::Login));
        assert_eq!(lines(&starts), 3, "a user who cannot log in tries once");
        serving.close().await;
    }

    #[tokio::test]
    async fn a_warning_of_a_child_that_reads_is_no_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let what = "echo 'nbdkit: vddk[1]: error: the host certificate has a problem' >&2; echo $$ > $PIDFILE; \
                    trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let serving = Serving::start(&stand_in(dir.path(), what), &order(), &owner()).await.unwrap();
        let keeper = Keeper {
            settings: ReaderSettings::default(),
            order: order(),
            place: Arc::clone(&serving.place),
            said: serving.said.clone(),
            health: serving.health(),
        };
        keeper.health.record_read(1);
        assert!(timeout(REFUSING * 2, keeper.refusal(1)).await.is_err(), "a child that reads refuses");
        assert_eq!(timeout(REFUSING * 2, keeper.refusal(2)).await.unwrap().complaint, Complaint::Thumbprint);
        serving.close().await;
    }
}
