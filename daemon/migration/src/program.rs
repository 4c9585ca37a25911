//! An operator's program, run on the daemon's host.
//!
//! Rule: never by a shell. The program gets only search paths of the daemon's environment, and so no secret;
//! the kept part of its output is bounded; and on every end of the wait, no process of its group is left.

use std::{collections::VecDeque, ffi::OsStr, fs, io, pin::pin, process::Stdio, time::Duration};

use rustix::{
    fs::{Access, access},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// What a program gets of the daemon's environment.
const PASSED_ON: [&str; 5] = ["PATH", "HOME", "USER", "TMPDIR", "TZ"];

/// The kept bytes of its output: of the beginning, and of the end.
const HEAD: usize = 1 << 10;
const TAIL: usize = 3 << 10;

/// The kept bytes of the beginning of a line that is reported while the program runs.
const LINE: usize = 200;

/// How long its output is read after its end, if another process keeps it open.
const GRACE: Duration = Duration::from_secs(1);

/// The interval at which its end is checked without a signal.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The end of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramResult {
    /// The error, if it failed.
    pub(super) fault: Option<String>,
    /// Its output on both streams, or the beginning and the end of it.
    pub(super) said: String,
}

/// Whether the daemon may run the program at `path`; if not, why and what to do.
pub(super) fn is_executable(path: &str) -> Result<(), String> {
    let here = "on the daemon's host: install it there, or correct its path";
    match fs::metadata(path) {
        Err(error) => Err(format!("{path:?} cannot be found {here}: {error}")),
        Ok(found) if !found.is_file() => Err(format!("{path:?} is no file {here}")),
        Ok(_) => access(path, Access::EXEC_OK)
            .map_err(|error| format!("{path:?} cannot be run by the daemon: {error}: make it executable")),
    }
}

/// A program to be run.
pub(super) struct Order<'a> {
    /// Its absolute path, and its arguments.
    pub(super) command: &'a [String],
    /// Its input.
    pub(super) input: &'a [u8],
    /// Its further environment variables.
    pub(super) variables: &'a [(&'a str, &'a OsStr)],
    pub(super) deadline: Duration,
}

/// Runs `command`, a program's absolute path and its arguments, with `input`. Dropping the future kills it.
pub(super) async fn run_program(command: &[String], input: &[u8], deadline: Duration) -> ProgramResult {
    run_told(&Order { command, input, variables: &[], deadline }, &mut |_| {}).await
}

/// Runs a program, and reports each line of either output stream, as text without terminal control sequences.
/// A carriage return ends a line too. Dropping the future kills it.
pub(super) async fn run_told(order: &Order<'_>, tell: &mut (dyn FnMut(&str) + Send)) -> ProgramResult {
    let deadline = order.deadline;
    let mut said =
        ProgramOutput { head: Vec::new(), tail: VecDeque::new(), left_out: 0, line: Vec::new(), tell };
    let fault = match timeout(deadline, attend(order, &mut said)).await {
        Ok(Ok(fault)) => fault,
        Ok(Err(error)) => Some(format!("it cannot be run: {error}")),
        Err(_) => {
            Some(format!("it did not end within {} and was killed", humantime::format_duration(deadline)))
        }
    };
    ProgramResult { fault, said: said.text() }
}

async fn attend(order: &Order<'_>, said: &mut ProgramOutput<'_>) -> io::Result<Option<String>> {
    let (mut group, output) = Group::start(order.command, order.variables)?;
    let mut stdin = group.child.stdin.take();
    let mut feed = pin!(async {
        if let Some(stdin) = &mut stdin {
            // A program that does not read its input reports the result by its exit code.
            stdin.write_all(order.input).await.ok();
        }
        drop(stdin.take());
    });
    let mut listen = pin!(said.listen(output));
    let (mut fed, mut silent) = (false, false);
    loop {
        tokio::select! {
            () = &mut feed, if !fed => fed = true,
            () = &mut listen, if !silent => silent = true,
            ended = group.ended() => {
                ended?;
                break;
            }
        }
    }
    // Background processes would keep the output open, and outlive their phase.
    group.kill();
    if !silent {
        timeout(GRACE, listen).await.ok();
    }
    let status = group.child.wait().await?;
    group.reaped = true;
    Ok((!status.success()).then(|| format!("it ended with {status}")))
}

/// A child process with all that it starts.
struct Group {
    child: Child,
    pid: Pid,
    /// Notifies when a child of the daemon has ended.
    endings: tokio::signal::unix::Signal,
    reaped: bool,
}

impl Group {
    fn start(command: &[String], variables: &[(&str, &OsStr)]) -> io::Result<(Self, Receiver)> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::other("there is no command"))?;
        let (output, says) = io::pipe()?;
        let output = Receiver::from_owned_fd(output.into())?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| PASSED_ON.iter().any(|passed| name == passed)))
            .env("LC_ALL", "C.UTF-8")
            .envs(variables.iter().copied())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(says.try_clone()?)
            .stderr(says)
            .process_group(0)
            .kill_on_drop(true);
        let endings = signal(SignalKind::child())?;
        let child = command.spawn()?;
        let gone = || io::Error::other("it has no process");
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or_else(gone)?;
        Ok((Self { child, pid, endings, reaped: false }, output))
    }

    /// Waits until the child has ended, without reaping it: until then its process id is not reused.
    async fn ended(&mut self) -> io::Result<()> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(self.pid), options)?.is_none() {
            timeout(LOOK_EVERY, self.endings.recv()).await.ok();
        }
        Ok(())
    }

    fn kill(&self) {
        kill_process_group(self.pid, Signal::KILL).ok();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

/// The output, without its middle if it is long.
struct ProgramOutput<'a> {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
    /// The last line, not yet complete.
    line: Vec<u8>,
    tell: &'a mut (dyn FnMut(&str) + Send),
}

impl ProgramOutput<'_> {
    async fn listen(&mut self, mut output: Receiver) {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = output.read(&mut buffer).await {
            self.add(buffer.get(..read).unwrap_or_default());
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end_line(),
                byte if self.line.len() < LINE => self.line.push(*byte),
                _ => {}
            }
        }
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
        self.head.extend(head);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
        self.left_out += over as u64;
    }

    fn end_line(&mut self) {
        let line = plain(&String::from_utf8_lossy(&self.line));
        let line = line.trim();
        if !line.is_empty() {
            (self.tell)(line);
        }
        self.line.clear();
    }

    /// As text without terminal control sequences.
    fn text(mut self) -> String {
        self.end_line();
        let (head, tail) = (self.head, Vec::from(self.tail));
        let text = if self.left_out == 0 {
            String::from_utf8_lossy(&[head, tail].concat()).into_owned()
        } else {
            let (head, tail) = (String::from_utf8_lossy(&head), String::from_utf8_lossy(&tail));
            format!("{head}\n[{} bytes are left out]\n{tail}", self.left_out)
        };
        plain(&text.replace("\r\n", "\n")).trim_end().to_owned()
    }
}

/// A text that is not a program's output, without its middle if it is long, and without terminal control
/// sequences.
pub(super) fn shortened(text: &str) -> String {
    let mut tell = |_: &str| {};
    let mut said = ProgramOutput {
        head: Vec::new(),
        tail: VecDeque::new(),
        left_out: 0,
        line: Vec::new(),
        tell: &mut tell,
    };
    said.add(text.as_bytes());
    said.text()
}

fn plain(text: &str) -> String {
    let plain = text.chars().map(|char| match char {
        '\n' | '\t' => char,
        char if char.is_control() => char::REPLACEMENT_CHARACTER,
        char => char,
    });
    plain.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    async fn well(script: &str, input: &str) -> String {
        let ended = run_program(&shell(script), input.as_bytes(), SOON).await;
        assert_eq!(ended.fault, None, "{}", ended.said);
        ended.said
    }

    #[tokio::test]
    async fn it_reads_its_input_and_both_outputs_are_kept_in_order() {
        assert_eq!(well("cat; echo two >&2; echo three", "one\n").await, "one\ntwo\nthree");
        // A program that does not read its input.
        assert_eq!(well("exec <&-; echo deaf", &"x".repeat(1 << 20)).await, "deaf");
        let ended = run_program(&shell("echo why; exit 3"), b"", SOON).await;
        assert_eq!(
            ended,
            ProgramResult { fault: Some("it ended with exit status: 3".to_owned()), said: "why".to_owned() }
        );
        let killed = run_program(&shell("kill -TERM $$"), b"", SOON).await.fault.unwrap();
        assert!(killed.contains("signal: 15"), "{killed}");
    }

    #[tokio::test]
    async fn no_shell_reads_the_arguments_and_a_missing_program_is_told() {
        let echo = ["/bin/echo", "$HOME;`id`", "a b"].map(str::to_owned);
        assert_eq!(run_program(&echo, b"", SOON).await.said, "$HOME;`id` a b");
        let missing = run_program(&["/nowhere/warmd".to_owned()], b"", SOON).await.fault.unwrap();
        assert!(missing.contains("cannot be run"), "{missing}");
    }

    #[tokio::test]
    async fn it_sees_no_more_of_the_environment_than_it_needs() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "there is nothing to hide");
        let seen = run_program(&["/usr/bin/env".to_owned()], b"", SOON).await.said;
        let names: Vec<_> = seen.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.contains(&"PATH"), "{seen}");
        assert!(names.iter().all(|name| *name == "LC_ALL" || PASSED_ON.contains(name)), "{seen}");
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_steers_no_terminal() {
        let said = well("echo first; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo last", "").await;
        assert!(said.len() < HEAD + TAIL + 64, "{} bytes are kept", said.len());
        assert!(said.starts_with("first\nxxx") && said.ends_with("xxx\nlast"), "{said}");
        assert!(said.contains("bytes are left out"), "{said}");
        assert_eq!(well("printf 'a\\033[2Jb\\377'", "").await, "a\u{fffd}[2Jb\u{fffd}");
    }

    #[tokio::test]
    async fn each_line_is_told_while_it_runs_and_variables_are_given() {
        let command =
            shell("printf 'a\\rb\\n\\n\\033[2J'; echo $GIVEN >&2; yes x | head -c 1000 | tr -d '\\n'");
        let variables = [("GIVEN", OsStr::new("c d"))];
        let order = Order { command: &command, input: b"", variables: &variables, deadline: SOON };
        let mut lines = Vec::new();
        let ended = run_told(&order, &mut |line| lines.push(line.to_owned())).await;
        assert_eq!(ended.fault, None);
        assert_eq!(lines, ["a", "b", "\u{fffd}[2Jc d", &"x".repeat(LINE)]);
    }

    /// Whether the process of this id runs; one that waits to be reaped does not.
    fn lives(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    }

    async fn until_dead(pid: &str) {
        let begun = Instant::now();
        while lives(pid) {
            assert!(begun.elapsed() < SOON, "process {pid} lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn at_the_deadline_all_of_its_group_is_killed() {
        let begun = Instant::now();
        let script = "sleep 1000 & echo $!; echo $$; trap '' TERM; wait";
        let ended = run_program(&shell(script), b"", Duration::from_millis(700)).await;
        assert!(ended.fault.unwrap().contains("did not end within 700ms"));
        assert_eq!(ended.said.lines().count(), 2, "{}", ended.said);
        for pid in ended.said.lines() {
            until_dead(pid).await;
        }
        assert!(begun.elapsed() < SOON);
    }

    #[tokio::test]
    async fn what_it_leaves_behind_ends_with_it_and_holds_nobody_up() {
        let begun = Instant::now();
        let left = well("sleep 1000 & echo $!", "").await;
        until_dead(&left).await;
        // A process that has left the group lives on, and its open output is not awaited.
        let away = well("setsid sleep 30 & echo $!", "").await;
        assert!(begun.elapsed() < SOON, "it was waited for");
        drop(away);
    }

    #[tokio::test]
    async fn a_dropped_wait_kills_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let command = shell(&format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000", file.display()));
        let waiting = tokio::spawn(async move { run_program(&command, b"", SOON).await });
        let begun = Instant::now();
        while !file.exists() {
            assert!(begun.elapsed() < SOON, "it never began");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        waiting.abort();
        waiting.await.unwrap_err();
        until_dead(&fs::read_to_string(&file).unwrap()).await;
    }
}
