//! Contexts: which daemon `warmctl` talks to, and what its file and the certificates must be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod api_common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use api_common::{
    cases,
    certs::Ca,
    fake_control::FakeControl,
    served::{Ran, Served, run, warmctl},
};
use tempfile::TempDir;

/// A user with a home directory.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("warmctl/contexts.toml")
    }

    async fn with(&self, environment: &[(&str, &Path)], args: &[&str]) -> Ran {
        let mut command = warmctl("".as_ref());
        command.env_remove("WARMD_SOCKET").env("XDG_CONFIG_HOME", self.home.path()).args(args);
        for (name, value) in environment {
            command.env(name, value);
        }
        run(command, "").await
    }

    async fn ran(&self, args: &[&str]) -> Ran {
        self.with(&[], args).await
    }

    async fn fails(&self, args: &[&str], code: i32, wanted: &str) {
        let ran = self.ran(args).await;
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(wanted), "{args:?}: {ran:?}");
    }
}

#[tokio::test]
async fn command_line_counts_before_environment_before_context() {
    let served = Served::start(FakeControl::new([cases::synced(1, "web-1")])).await;
    let user = User::new();
    let here = served.socket.to_str().unwrap();
    user.ran(&["context", "add", "good", "--socket", here]).await.out(0);
    user.ran(&["context", "add", "bad", "--socket", "/nowhere"]).await.out(0);
    let list = user.ran(&["context", "list"]).await.out(0).to_owned();
    assert!(list.lines().any(|line| line.starts_with('*') && line.contains("good")), "{list}");

    let sees = |ran: Ran| ran.code == Some(0) && ran.stdout.contains("web-1");
    let (good, bad, nowhere) = (Path::new("good"), Path::new("bad"), Path::new("/nowhere"));
    let ask = ["migration", "list"];
    assert!(sees(user.ran(&ask).await), "the first context is in use");
    assert!(!sees(user.with(&[("WARMD_CONTEXT", bad)], &ask).await), "the environment counts before it");
    assert!(!sees(user.with(&[("WARMD_SOCKET", nowhere), ("WARMD_CONTEXT", good)], &ask).await));
    for more in [&["--context", "good"][..], &["--socket", here]] {
        let args = [&ask[..], more].concat();
        let ran = user.with(&[("WARMD_SOCKET", nowhere), ("WARMD_CONTEXT", bad)], &args).await;
        assert!(sees(ran), "the command line counts before the environment: {more:?}");
    }
    user.fails(&["--socket", here, "--context", "good", "migration", "list"], 2, "not both").await;

    user.ran(&["context", "use", "bad"]).await.out(0);
    assert!(!sees(user.ran(&ask).await));
    user.fails(&["context", "use", "none"], 4, "no context \"none\"; there are: bad, good").await;
    user.fails(&["--context", "none", "migration", "list"], 4, "no context \"none\"").await;
    // Without a context in use it is the default socket again.
    user.ran(&["context", "remove", "bad"]).await.out(0);
    user.fails(&["migration", "list"], 3, "/run/warmd/warmd.sock").await;
    let json = user.ran(&["context", "list", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_str(json.out(0)).unwrap();
    let wanted = serde_json::json!({"contexts": [{"name": "good", "current": false, "socket": here}]});
    assert_eq!(json, wanted);
}

#[tokio::test]
async fn file_of_contexts_is_private_and_never_lost() {
    let user = User::new();
    user.ran(&["context", "add", "a", "--socket", "/a"]).await.out(0);
    assert_eq!(fs::metadata(user.file()).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(user.file(), "current = 7\n").unwrap();
    for args in [&["context", "add", "b", "--socket", "/b"][..], &["context", "list"], &["migration", "list"]]
    {
        user.fails(args, 2, "contexts.toml").await;
    }
    assert_eq!(fs::read_to_string(user.file()).unwrap(), "current = 7\n");
    // What needs no daemon does not need the file.
    user.ran(&["completions", "bash"]).await.out(0);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_when_they_are_added() {
    let user = User::new();
    let dir = user.home.path();
    let (ours, theirs) = (Ca::new(dir, "ours").unwrap(), Ca::new(dir, "theirs").unwrap());
    ours.sign("anna").unwrap();
    theirs.sign("anna").unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (ca, cert, key) = (text(ours.file("ca")), text(ours.file("anna")), text(ours.key("anna")));
    let open = text(dir.join("open.pem"));
    fs::copy(&key, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let empty = text(dir.join("empty.pem"));
    fs::write(&empty, "").unwrap();
    let other_key = text(theirs.key("anna"));

    let add = |address: &str, ca: &str, cert: &str, key: &str| {
        let args = ["context", "add", "x", "--address", address, "--ca", ca, "--cert", cert, "--key", key];
        args.map(str::to_owned)
    };
    let at = "localhost:7443";
    for (args, wanted) in [
        (add(at, &ca, &cert, "/none.pem"), "cannot read /none.pem".to_owned()),
        (add(at, &empty, &cert, &key), format!("cannot use {empty}: there is no `CERTIFICATE` in it")),
        (add(at, &ca, &key, &key), format!("cannot use {key}: there is no `CERTIFICATE` in it")),
        (add(at, &ca, &cert, &cert), format!("cannot use {cert}: ")),
        (add(at, &ca, &cert, &other_key), format!("cannot use {other_key}: the key is not that of {cert}")),
        (add(at, &ca, &cert, &open), format!("(mode 0644): chmod o= {open}")),
        (add("localhost", &ca, &cert, &key), "write HOST:PORT".to_owned()),
        (add("localhost:0", &ca, &cert, &key), "write HOST:PORT".to_owned()),
        (add("a b:1", &ca, &cert, &key), "`a b` is no name of a host".to_owned()),
    ] {
        user.fails(&args.each_ref().map(String::as_str), 2, &wanted).await;
    }
    user.fails(&["context", "add", "x", "--address", at], 2, "--ca").await;
    user.fails(&["context", "add", "x"], 2, "give --address").await;
    assert!(!user.file().exists(), "a context that cannot be used was added");
    user.ran(&add("[::1]:7443", &ca, &cert, &key).each_ref().map(String::as_str)).await.out(0);
}
