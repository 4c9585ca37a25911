//! Starts children that end with the daemon.
//!
//! Rule: a child is set to die with its parent before it runs anything. For the kernel a child's parent is
//! the thread that started it, and the runtime's threads come and go: so one thread starts them all, and it
//! never ends. A child gets no part of the daemon's environment that can have a secret.

#![allow(unsafe_code, reason = "what a child does between fork and exec; two system calls")]

use std::{
    ffi::OsStr,
    io,
    sync::{Mutex, PoisonError, mpsc},
};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::{
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};

/// The part of the daemon's environment that a child gets: search paths, and no secret that the configuration
/// names there.
pub(crate) const PASSED_ON: [&str; 6] = ["PATH", "HOME", "USER", "TMPDIR", "TZ", "XDG_RUNTIME_DIR"];

/// A child to start.
struct Order {
    command: Command,
    /// The runtime that drives the child's pipes.
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

static ORDERS: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);

/// A command in the C locale, with an environment of its own. The child ends when its handle is dropped.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| PASSED_ON.iter().any(|passed| name == passed)))
        .env("LC_ALL", "C")
        // A Ctrl-C for the daemon must not interrupt a running call.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Starts it. The child ends with the daemon in all cases.
pub async fn spawn(mut command: Command) -> io::Result<Child> {
    let daemon = getpid();
    let die_with_it = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The daemon may have ended before the signal was set.
        if getppid() == Some(daemon) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec it makes system calls alone, which take no lock and allocate nothing.
    unsafe { command.pre_exec(die_with_it) };
    let (answer, answered) = oneshot::channel();
    hand_over(Order { command, runtime: Handle::current(), answer })?;
    answered.await.map_err(io::Error::other)?
}

/// Sends the request to the thread, which is started with the first request.
fn hand_over(order: Order) -> io::Result<()> {
    let mut orders = ORDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let order = match &*orders {
        None => order,
        Some(thread) => match thread.send(order) {
            Ok(()) => return Ok(()),
            // The thread ended in a panic, and so did its children.
            Err(mpsc::SendError(order)) => order,
        },
    };
    let (thread, received) = mpsc::channel();
    std::thread::Builder::new().name("children".to_owned()).spawn(move || serve(&received))?;
    let sent = thread.send(order).map_err(|_| io::Error::other("the thread that starts children ended"));
    *orders = Some(thread);
    sent
}

fn serve(orders: &mpsc::Receiver<Order>) {
    for Order { mut command, runtime, answer } in orders {
        let _inside = runtime.enter();
        // A child without a waiting caller is dropped, and so ended.
        answer.send(command.spawn()).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::Stdio,
        time::{Duration, Instant},
    };

    use super::*;

    /// Runs this test in a process of its own, as the daemon that is killed.
    const DAEMON: &str = "WARMD_TEST_STARTS_A_CHILD";

    #[tokio::test]
    async fn a_child_ends_with_the_daemon() {
        if std::env::var_os(DAEMON).is_some() {
            let mut sleep = Command::new("sleep");
            sleep.arg("600");
            let mut child = spawn(sleep).await.unwrap();
            println!("\nchild {}", child.id().unwrap());
            child.wait().await.unwrap();
        }
        let name = std::thread::current().name().unwrap().to_owned();
        let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&name, "--exact", "--nocapture"])
            .env(DAEMON, "yes")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(daemon.stdout.take().unwrap()).lines().map_while(Result::ok);
        let child = lines.find_map(|line| line.strip_prefix("child ").map(str::to_owned)).unwrap();
        let stat = format!("/proc/{child}/stat");
        let runs = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(runs());
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let begun = Instant::now();
        while runs() {
            assert!(begun.elapsed() < Duration::from_secs(10), "the child {child} outlives its daemon");
            #[expect(clippy::disallowed_methods, reason = "a test of its own process")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[tokio::test]
    async fn a_child_outlives_the_thread_that_asked_for_it() {
        let runtime = Handle::current();
        let asking = std::thread::spawn(move || {
            let mut shell = Command::new("sh");
            shell.args(["-c", "sleep 0.3"]);
            runtime.block_on(spawn(shell)).unwrap()
        });
        let mut child = tokio::task::spawn_blocking(|| asking.join().unwrap()).await.unwrap();
        assert!(child.wait().await.unwrap().success());
    }
}
