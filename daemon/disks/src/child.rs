//! A child process that can outlive neither its deadline nor the daemon, fed from memory, its output bounded.

use std::{ffi::OsStr, fs::File, io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use crate::spawner;

/// The most bytes that an answer may have.
pub const MAX_OUTPUT: usize = 4 << 20;

const MAX_STDERR: usize = 64 << 10;

/// A child that ended on its own.
#[derive(Debug)]
pub struct ChildOutput {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Why a child did not end on its own, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("{0} is not installed")]
    Missing(String),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("the answer is above {0} bytes")]
    TooLong(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The stdin of a child.
#[derive(Debug)]
pub enum ChildInput<'a> {
    Nothing,
    Text(&'a str),
    /// Not to be read: the file is only kept open, and with it its locks, for as long as the child lives.
    Held(File),
}

/// Runs `program` with the environment of [`spawner::command`]. Without `input` its stdin is empty. The child
/// ends with this future in all cases.
pub async fn run(
    program: impl AsRef<OsStr>,
    args: &[&str],
    input: Option<&str>,
    deadline: Duration,
) -> Result<ChildOutput, ChildError> {
    let input = input.map_or(ChildInput::Nothing, ChildInput::Text);
    run_with(program, args, input, deadline, MAX_OUTPUT).await
}

/// The same, with another stdin, and an answer of at most `most` bytes.
pub async fn run_with(
    program: impl AsRef<OsStr>,
    args: &[&str],
    input: ChildInput<'_>,
    deadline: Duration,
    most: usize,
) -> Result<ChildOutput, ChildError> {
    let (stdin, input) = match input {
        ChildInput::Nothing => (Stdio::null(), None),
        ChildInput::Text(text) => (Stdio::piped(), Some(text)),
        ChildInput::Held(file) => (Stdio::from(file), None),
    };
    let mut command = spawner::command(&program);
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    timeout(deadline, finish(command, input, most)).await.map_err(|_| ChildError::Timeout(deadline))?.map_err(
        |error| match error {
            ChildError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                ChildError::Missing(program.as_ref().to_string_lossy().into_owned())
            }
            other => other,
        },
    )
}

async fn finish(command: Command, input: Option<&str>, most: usize) -> Result<ChildOutput, ChildError> {
    let mut child = spawner::spawn(command).await?;
    let stdin = child.stdin.take();
    let feed = async {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // A child that ends early gives the reason on stderr; the broken pipe says less.
            stdin.write_all(input.as_bytes()).await.ok();
        }
    };
    let ((), stdout, stderr) =
        tokio::join!(feed, read(child.stdout.take(), most), read(child.stderr.take(), MAX_STDERR));
    // Dropping the child kills it.
    let stdout = stdout?.ok_or(ChildError::TooLong(most))?;
    let stderr = stderr?.unwrap_or_else(|| b"error: (a very long error)".to_vec());
    let success = child.wait().await?.success();
    Ok(ChildOutput { success, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

/// All of `stream`; `None` if it holds more than `limit` bytes.
async fn read(stream: Option<impl AsyncRead + Unpin>, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok((bytes.len() <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn output_is_bounded() {
        assert_eq!(read(Some(&[7_u8; 10][..]), 10).await.unwrap(), Some(vec![7; 10]));
        assert_eq!(read(Some(&[7_u8; 11][..]), 10).await.unwrap(), None);
        let endless = run("cat", &["/dev/zero"], None, SOON).await;
        assert!(matches!(endless, Err(ChildError::TooLong(MAX_OUTPUT))), "{endless:?}");
    }

    #[tokio::test]
    async fn a_child_reads_its_input_and_nothing_else() {
        let cat = run("cat", &[], Some("fed"), SOON).await.unwrap();
        assert_eq!((cat.success, cat.stdout.as_slice()), (true, &b"fed"[..]));
        assert!(run("cat", &[], None, SOON).await.unwrap().stdout.is_empty());
        // A child that does not read its input.
        assert!(run("true", &[], Some(&"x".repeat(1 << 20)), SOON).await.unwrap().success);
    }

    #[tokio::test]
    async fn a_child_sees_no_more_of_the_environment_than_it_needs() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "there is nothing to hide");
        let seen = String::from_utf8(run("env", &[], None, SOON).await.unwrap().stdout).unwrap();
        let names: Vec<_> = seen.lines().filter_map(|line| line.split('=').next()).collect();
        assert!(names.contains(&"PATH"), "{seen}");
        assert!(names.iter().all(|name| *name == "LC_ALL" || spawner::PASSED_ON.contains(name)), "{seen}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let missing = run("warmd-no-such-program", &[], None, SOON).await;
        assert!(matches!(missing, Err(ChildError::Missing(name)) if name == "warmd-no-such-program"));
    }
}
