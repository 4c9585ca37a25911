//! Roles: over TCP with certificates on both sides, and on the Unix socket for a group.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rcgen::{SerialNumber, date_time_ymd};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use warmd_tests::{Daemon, TestDir, certs::Ca, daemon::program, run, tool, wait_until};

const DEADLINE: Duration = Duration::from_mins(2);

/// `warmctl` of a user with contexts.
struct User {
    home: PathBuf,
}

impl User {
    /// A user who knows the daemon by this certificate, and the daemon's by `server`.
    fn new(dir: &TestDir, address: SocketAddr, server: &Ca, ca: &Ca, name: &str) -> Result<Self> {
        let cert = ca.file(name);
        let home = cert.file_name().context("no name")?.display().to_string();
        let user =
            Self { home: dir.join(format!("home-{home}-{}", server.file("ca").display()).replace('/', "-")) };
        let address = format!("localhost:{}", address.port());
        let of = |path: PathBuf| path.display().to_string();
        let (trusted, cert, key) = (of(server.file("ca")), of(cert), of(ca.key(name)));
        let add = ["context", "add", "prod", "--address", &address, "--ca", &trusted, "--cert", &cert];
        user.works(&[&add[..], &["--key", &key]].concat())?;
        Ok(user)
    }

    fn outcome(&self, args: &[&str]) -> Result<tool::ToolOutput> {
        let mut command = Command::new(program("warmctl")?);
        command.env("XDG_CONFIG_HOME", &self.home).env_remove("WARMD_SOCKET").args(args);
        tool::outcome(&mut command, DEADLINE)
    }

    fn works(&self, args: &[&str]) -> Result<String> {
        let out = self.outcome(args)?;
        ensure!(out.code == Some(0), "{args:?}: {:?} {}", out.code, out.stderr);
        Ok(out.stdout)
    }

    fn fails(&self, args: &[&str], code: i32, word: &str) -> Result<()> {
        let out = self.outcome(args)?;
        ensure!(
            out.code == Some(code) && out.stderr.contains(word),
            "{args:?}: {:?} {}",
            out.code,
            out.stderr
        );
        Ok(())
    }
}

/// A daemon without VMs, with these keys in `[listen]`.
fn daemon(dir: &TestDir, listen: &str) -> Result<Daemon> {
    let socket = dir.join("warmd.sock");
    let config = format!(
        "state_dir = {}\n[listen]\nsocket = {}\n{listen}\n\
         [[source]]\nname = \"old\"\nkind = \"libvirt\"\nuri = \"qemu:///system?socket={}\"\n\
         [[target]]\nname = \"new\"\nkind = \"disk\"\ndirectory = {}\n",
        quoted(&dir.join("state")),
        quoted(&socket),
        dir.join("no-libvirt").display(),
        quoted(&dir.join("disks")),
    );
    fs::create_dir_all(dir.join("disks"))?;
    let mut daemon = Daemon::configure(dir, socket, &config)?;
    daemon.start()?;
    Ok(daemon)
}

fn tcp_address(daemon: &Daemon) -> Result<SocketAddr> {
    let log = daemon.log()?;
    let told =
        log.lines().rev().find_map(|line| line.split_once("API on TCP address=")).map(|(_, told)| told);
    Ok(told.and_then(|told| told.split_whitespace().next()).context("no address in the log")?.parse()?)
}

/// TLS with the files of this CA; `more` are further keys of the table.
fn tls(ca: &Ca, more: &str) -> String {
    let [cert, key, client_ca] = [ca.file("warmd"), ca.key("warmd"), ca.file("ca")].map(|path| quoted(&path));
    format!("tcp = \"127.0.0.1:0\"\ntls = {{ cert = {cert}, key = {key}, client_ca = {client_ca}{more} }}")
}

/// A path as TOML writes it.
fn quoted(path: &Path) -> String {
    toml::Value::from(path.display().to_string()).to_string()
}

const LIST: [&str; 2] = ["source", "list"];

#[test]
fn certificate_has_the_role_that_was_granted() {
    run(|dir| {
        let ca = Ca::new(dir.path(), "ours")?;
        for name in ["warmd", "anna", "bob"] {
            ca.sign(name)?;
        }
        let daemon = daemon(dir, &tls(&ca, ""))?;
        let address = tcp_address(&daemon)?;
        let (anna, bob) =
            (User::new(dir, address, &ca, &ca, "anna")?, User::new(dir, address, &ca, &ca, "bob")?);

        anna.fails(&LIST, 5, "cert:anna has no role")?;
        daemon.ctl().text(&["access", "grant", "cert:anna", "--role", "viewer"])?;
        ensure!(anna.works(&LIST)?.contains("old"));
        let set = ["limit", "set", "global", "--rate", "1MiB/s"];
        anna.fails(&set, 5, "needs the role operator")?;
        anna.fails(&["access", "list"], 5, "needs the role admin")?;
        daemon.ctl().text(&["access", "grant", "cert:anna", "--role", "operator"])?;
        anna.works(&set)?;
        let journal = daemon.ctl().text(&["events"])?;
        ensure!(journal.contains("operator cert=anna 127.0.0.1:"), "it does not say who: {journal}");
        ensure!(journal.contains("cert:anna has the role operator"), "{journal}");
        bob.fails(&LIST, 5, "cert:bob has no role")?;

        daemon.ctl().text(&["access", "revoke", "cert:anna"])?;
        anna.fails(&LIST, 5, "has no role")?;
        let log = daemon.log()?;
        ensure!(log.contains("a request was refused: the caller lacks the role"), "{log}");
        Ok(())
    });
}

#[test]
fn bad_certificate_is_refused_with_the_reason_on_both_sides() {
    run(|dir| {
        let (ca, other) = (Ca::new(dir.path(), "ours")?, Ca::new(dir.path(), "theirs")?);
        for name in ["warmd", "anna", "two words"] {
            ca.sign(name)?;
        }
        other.sign("anna")?;
        ca.sign_as("late", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        })?;
        ca.sign_as("early", |params| params.not_before = date_time_ymd(2200, 1, 1))?;
        let daemon = daemon(dir, &tls(&ca, ""))?;
        let address = tcp_address(&daemon)?;
        daemon.ctl().text(&["access", "grant", "cert:anna", "--role", "admin"])?;

        for (signed_by, name, told, logged) in [
            (
                &other,
                "anna",
                "not signed by a CA that the daemon trusts",
                "not signed by a CA in `client_ca`",
            ),
            (&ca, "late", "it has expired, or is not valid yet", "certificate has expired"),
            (&ca, "early", "it has expired, or is not valid yet", "certificate is not valid yet"),
            (&ca, "two words", "the common name of", "common name `two words` cannot be granted a role"),
        ] {
            let user = User::new(dir, address, &ca, signed_by, name)?;
            user.fails(&LIST, 3, told)?;
            user.fails(&LIST, 3, &signed_by.file(name).display().to_string())?;
            let log = daemon.log()?;
            let line = log
                .lines()
                .find(|line| line.contains("a client of the API was refused") && line.contains(logged));
            ensure!(line.is_some(), "the log does not say `{logged}`: {log}");
        }

        // The client refuses a daemon that another CA signed, and one of another name.
        let wary = User::new(dir, address, &other, &ca, "anna")?;
        wary.fails(&LIST, 3, "is not signed by the CA in")?;
        let by_number = format!("127.0.0.1:{}", address.port());
        let (trusted, cert, key) = (ca.file("ca"), ca.file("anna"), ca.key("anna"));
        let text = |path: &Path| path.display().to_string();
        let (trusted, cert, key) = (text(&trusted), text(&cert), text(&key));
        let add = [
            "context",
            "add",
            "ip",
            "--address",
            &by_number,
            "--ca",
            &trusted,
            "--cert",
            &cert,
            "--key",
            &key,
        ];
        wary.works(&add)?;
        wary.fails(&[&LIST[..], &["--context", "ip"]].concat(), 3, "--server-name")?;
        wary.works(&[&add[..], &["--server-name", "localhost"]].concat())?;
        wary.works(&[&LIST[..], &["--context", "ip"]].concat())?;
        Ok(())
    });
}

#[test]
fn changed_certificates_count_without_a_restart() {
    run(|dir| {
        let (ca, next) = (Ca::new(dir.path(), "ours")?, Ca::new(dir.path(), "next")?);
        ca.sign("warmd")?;
        ca.sign_as("anna", |params| params.serial_number = Some(SerialNumber::from(11_u64)))?;
        ca.sign_as("bob", |params| params.serial_number = Some(SerialNumber::from(12_u64)))?;
        ca.revoke(&[])?;
        let daemon = daemon(dir, &tls(&ca, &format!(", client_crl = {:?}", ca.file("crl"))))?;
        let address = tcp_address(&daemon)?;
        for name in ["anna", "bob"] {
            daemon.ctl().text(&["access", "grant", name, "--role", "viewer"])?;
        }
        let (anna, bob) =
            (User::new(dir, address, &ca, &ca, "anna")?, User::new(dir, address, &ca, &ca, "bob")?);
        anna.works(&LIST)?;
        bob.works(&LIST)?;

        ca.revoke(&[11])?;
        anna.fails(&LIST, 3, "it is revoked")?;
        bob.works(&LIST)?;
        ensure!(daemon.log()?.contains("the client's certificate is revoked"), "the log does not say it");

        // What cannot be used changes nothing, and is reported.
        fs::write(ca.file("crl"), "no list")?;
        anna.fails(&LIST, 3, "it is revoked")?;
        bob.works(&LIST)?;
        let log = daemon.log()?;
        ensure!(log.contains("the earlier ones stay in use") && log.contains("ours-crl.pem"), "{log}");
        ca.revoke(&[])?;
        anna.works(&LIST)?;

        // A new CA of the daemon: the client notices at once.
        next.sign("warmd")?;
        fs::rename(next.key("warmd"), ca.key("warmd"))?;
        fs::rename(next.file("warmd"), ca.file("warmd"))?;
        bob.fails(&LIST, 3, "is not signed by the CA in")?;
        User::new(dir, address, &next, &ca, "bob")?.works(&LIST)?;
        Ok(())
    });
}

#[test]
fn bad_tls_file_stops_the_start_with_its_name() {
    run(|dir| {
        let ca = Ca::new(dir.path(), "ours")?;
        ca.sign("warmd")?;
        let check = |wanted: &str| -> Result<()> {
            let socket = dir.join("warmd.sock");
            let config = format!(
                "state_dir = {:?}\n[listen]\nsocket = {socket:?}\n{}\n",
                dir.join("state"),
                tls(&ca, "")
            );
            let mut daemon = Daemon::configure(dir, &socket, &config)?;
            ensure!(daemon.start().is_err(), "it started: {wanted}");
            let log = daemon.log()?;
            ensure!(log.contains(wanted), "no `{wanted}` in {log}");
            ensure!(!socket.exists(), "a socket stays behind");
            Ok(())
        };
        let (key, cert) = (ca.key("warmd"), ca.file("warmd"));
        fs::set_permissions(&key, PermissionsExt::from_mode(0o644))?;
        check(&format!("(mode 0644): chmod o= {}", key.display()))?;
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600))?;
        let good = fs::read(&cert)?;
        fs::write(&cert, "")?;
        check(&format!("read the certificates in {}: there is no `CERTIFICATE` in it", cert.display()))?;
        fs::remove_file(&cert)?;
        check(&format!("cannot read {}", cert.display()))?;
        fs::write(&cert, good)?;
        fs::copy(ca.file("warmd"), ca.file("ca-copy"))?;
        ca.sign("other")?;
        fs::rename(ca.key("other"), &key)?;
        check(&format!("use the certificate in {}", cert.display()))
    });
}

#[test]
fn grant_outlives_the_daemon_and_covers_its_plans_alone() {
    run(|dir| {
        let ca = Ca::new(dir.path(), "ours")?;
        for name in ["warmd", "web"] {
            ca.sign(name)?;
        }
        let mut daemon = daemon(dir, &tls(&ca, ""))?;
        daemon.ctl().text(&["access", "grant", "web", "--role", "planner", "--plans", "web-*"])?;
        daemon.kill()?;
        daemon.start()?;
        let user = User::new(dir, tcp_address(&daemon)?, &ca, &ca, "web")?;
        let plan = |name: &str, more: &str| -> Result<String> {
            let path = dir.join(format!("{name}.toml"));
            let text =
                format!("name = \"{name}\"\nsource = \"old\"\ntarget = \"new\"\nvms = [\"a\"]\n{more}");
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        user.fails(&["plan", "apply", "-f", &plan("db", "")?], 5, "not for the plan db, only for web-*")?;
        let hook = "[[hooks]]\nphase = \"stop-source\"\nwhen = \"before\"\ncommand = [\"/bin/true\"]\n";
        user.fails(&["plan", "apply", "-f", &plan("web-1", hook)?], 5, "the plan runs `/bin/true`")?;
        // The source cannot be reached: the plan is checked, and refused for that reason alone.
        let out = user.outcome(&["plan", "apply", "-f", &plan("web-1", "")?])?;
        ensure!(out.code != Some(0) && !out.stderr.contains("role"), "{}", out.stderr);
        user.fails(&["events"], 5, "this is about all plans")?;
        Ok(())
    });
}

#[test]
fn silent_connections_cost_others_nothing() {
    run(|dir| {
        let ca = Ca::new(dir.path(), "ours")?;
        for name in ["warmd", "anna"] {
            ca.sign(name)?;
        }
        let daemon = daemon(dir, &tls(&ca, ""))?;
        let address = tcp_address(&daemon)?;
        daemon.ctl().text(&["access", "grant", "anna", "--role", "viewer"])?;
        // From another address of this host, as from another client.
        let from = || -> Result<TcpStream> {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0)))?;
            connect(&socket, &address)?;
            Ok(socket.into())
        };
        let silent: Vec<_> = (0..200).map(|_| from()).collect::<Result<_>>()?;
        let anna = User::new(dir, address, &ca, &ca, "anna")?;
        ensure!(anna.works(&["source", "list"])?.contains("old"));
        // Most of them were refused at once, the others are when their handshake is late.
        let closed = |mut stream: &TcpStream| -> Result<bool> {
            stream.set_nonblocking(true)?;
            Ok(match stream.read(&mut [0; 16]) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            })
        };
        wait_until("the silent connections to be closed", DEADLINE, || {
            let open =
                silent.iter().map(closed).collect::<Result<Vec<_>>>()?.iter().filter(|it| !**it).count();
            Ok((open == 0).then_some(()))
        })?;
        ensure!(anna.works(&["source", "list"])?.contains("old"));
        Ok(())
    });
}

#[test]
fn member_of_the_sockets_group_has_the_role_that_was_granted() {
    run(|dir| {
        // A directory that other users may enter, unlike the test's.
        let open = tempfile::Builder::new().prefix("warmd-open").tempdir()?;
        fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755))?;
        let socket = open.path().join("run/warmd.sock");
        let config = format!(
            "state_dir = {:?}\n[listen]\nsocket = {socket:?}\ngroup = \"nogroup\"\n\
             [[target]]\nname = \"new\"\nkind = \"disk\"\ndirectory = {:?}\n",
            dir.join("state"),
            dir.join("disks"),
        );
        fs::create_dir_all(dir.join("disks"))?;
        let mut daemon = Daemon::configure(dir, &socket, &config)?;
        daemon.start()?;
        let warmctl = open.path().join("warmctl");
        fs::copy(program("warmctl")?, &warmctl)?;
        let as_other_user = |args: &[&str]| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--init-groups"]).arg(&warmctl);
            command.arg("--socket").arg(&socket).args(args).current_dir(Path::new("/"));
            tool::outcome(&mut command, DEADLINE)
        };
        let refused = as_other_user(&["target", "list"])?;
        ensure!(refused.code == Some(5) && refused.stdout.is_empty(), "{refused:?}");
        let refused = as_other_user(&["plan", "list"])?;
        ensure!(
            refused.code == Some(5) && refused.stderr.contains("user:nobody has no role"),
            "{}",
            refused.stderr
        );
        daemon.ctl().text(&["access", "grant", "group:nogroup", "--role", "viewer"])?;
        let seen = as_other_user(&["target", "list"])?;
        ensure!(seen.code == Some(0) && seen.stdout.contains("new"), "{}{}", seen.stdout, seen.stderr);
        Ok(())
    });
}
