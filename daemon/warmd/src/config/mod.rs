//! What an operator writes: the daemon's configuration and plan files.
//!
//! Rule: unknown keys and relative paths are refused, every complaint says where it is and what to do, and
//! nothing is opened or changed by reading. Secrets are named here and never written here.

mod endpoints;
mod engine;
mod listen;
mod metrics;
mod name;
mod quotas;
mod secret;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};
use toml::Spanned;
use warmd_api::Listen;
use warmd_core::{
    model::{limit::LimitTable, quota::ConfiguredQuotas},
    plan_file::text::{self, Text},
};
use warmd_schedules::admission_queue::QuotaScope;
use warmd_store::Retention;

pub use self::{
    endpoints::EndpointConfig,
    engine::{EngineSettings, LogFormat, LogSettings},
    secret::{Secret, SecretError, SecretRef},
};
use self::{listen::ListenTable, metrics::MetricsTable, quotas::QuotaReader};
use crate::endpoints::{SourceSettings, TargetSettings};
pub use warmd_core::plan_file::{
    PlanErrors, load_plan,
    text::{Position, TextError},
};

/// `warmd.toml`.
pub type Config = DaemonConfig<SourceSettings, TargetSettings>;

/// `warmd.toml`, for any kinds of sources and targets.
#[derive(Clone, Debug)]
pub struct DaemonConfig<S, T> {
    /// The directory of the daemon's state.
    pub state_dir: PathBuf,
    pub listen: Listen,
    /// Where Prometheus may ask: a loopback address. Absent means no listener.
    pub metrics: Option<SocketAddr>,
    /// How much of the state is kept.
    pub state: Retention,
    pub engine: EngineSettings,
    pub log: LogSettings,
    /// Limits of the whole daemon.
    pub limits: LimitTable,
    /// Quotas by the time of day: of the daemon, of endpoints, hosts and datastores.
    pub quotas: ConfiguredQuotas,
    /// By name.
    pub sources: BTreeMap<String, EndpointConfig<S>>,
    /// By name.
    pub targets: BTreeMap<String, EndpointConfig<T>>,
}

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error(transparent)]
    Wrong(#[from] TextError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    state_dir: Option<Spanned<PathBuf>>,
    #[serde(default)]
    listen: ListenTable,
    metrics: Option<MetricsTable>,
    #[serde(default)]
    state: Retention,
    engine: Option<Spanned<EngineSettings>>,
    log: Option<Spanned<LogSettings>>,
    #[serde(default)]
    limits: LimitTable,
    // Those that were taken out before are named here, so that the error on an unknown key lists them all.
    #[serde(default, rename = "quotas")]
    _quotas: IgnoredAny,
    #[serde(default, rename = "source")]
    _source: IgnoredAny,
    #[serde(default, rename = "target")]
    _target: IgnoredAny,
    #[serde(default, rename = "host")]
    _host: IgnoredAny,
    #[serde(default, rename = "datastore")]
    _datastore: IgnoredAny,
    #[serde(default, rename = "zone")]
    _zone: IgnoredAny,
    #[serde(default, rename = "holidays")]
    _holidays: IgnoredAny,
}

const STATE_DIR: &str = "/var/lib/warmd";

impl<S: DeserializeOwned, T: DeserializeOwned> DaemonConfig<S, T> {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            text::read_file(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })??;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Checks the text; `file` is its name for the messages.
    pub fn parse(text: &str, file: &str) -> Result<Self, TextError> {
        let text = Text { file, text };
        let mut table = text.parse()?;
        let mut quotas = QuotaReader::begin(text, table.get_mut())?;
        quotas.take(table.get_mut(), QuotaScope::Global)?;
        let sources = endpoints::take(text, table.get_mut(), ("source", QuotaScope::Source), &mut quotas)?;
        let targets = endpoints::take(text, table.get_mut(), ("target", QuotaScope::Target), &mut quotas)?;
        quotas.places(table.get_mut(), &sources.keys().cloned().collect())?;
        let document: Document = text.read(table.clone())?;
        let state_dir = match document.state_dir {
            Some(path) => listen::absolute(path, text)?,
            None => PathBuf::from(STATE_DIR),
        };
        let engine = document.engine.map(Spanned::into_inner).unwrap_or_default();
        let log = document.log.map(Spanned::into_inner).unwrap_or_default();
        let state = document.state;
        for (section, problem) in
            [("engine", engine.problem()), ("log", log.problem()), ("state", state.problem())]
        {
            if let Some((key, problem)) = problem {
                let place = table.get_ref().get(section).map(|value| {
                    let inner = value.get_ref().as_table();
                    inner.and_then(|inner| inner.get(key)).map_or(value.span(), Spanned::span)
                });
                return Err(text.wrong(place, problem));
            }
        }
        let (listen, limits) = (document.listen.check(text)?, document.limits);
        let metrics = document.metrics.map(|table| table.check(text)).transpose()?;
        let quotas = quotas.end();
        Ok(Self { state_dir, listen, metrics, state, engine, log, limits, quotas, sources, targets })
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;

    /// Stands for any kind of source, with a table within.
    #[derive(Clone, Debug, PartialEq, Deserialize)]
    #[serde(tag = "kind", rename_all = "kebab-case")]
    enum Kinds {
        Near(Near),
        Far(Far),
    }

    #[derive(Clone, Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Near {
        uri: String,
        #[serde(default)]
        depth: u32,
    }

    #[derive(Clone, Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Far {
        host: String,
        login: Login,
    }

    #[derive(Clone, Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Login {
        user: String,
        password: SecretRef,
    }

    type Tested = DaemonConfig<Kinds, TargetSettings>;

    const GOOD: &str = r#"state_dir = "/srv/warmd"

[listen]
socket = "/srv/warmd.sock"

[engine]
chunk = "1MiB"
batch_time = "5s"

[log]
format = "json"
level = "info,warmd_daemon=debug"

[[source]]
name = "lab"
kind = "near"
uri = "qemu:///system"
limits = { rate = 1048576 }

[[source]]
name = "attic"
kind = "far"
host = "attic.example"
login = { user = "x", password = { env = "ATTIC" } }

[[target]]
name = "new"
kind = "disk"
directory = "/pool"

[target.limits]
requests = 8

[limits]
rate = "200MiB/s"
requests = 256
"#;

    fn complaint(text: &str) -> String {
        Tested::parse(text, "warmd.toml").unwrap_err().to_string()
    }

    #[test]
    fn all_of_it_is_read() {
        let config = Tested::parse(GOOD, "warmd.toml").unwrap();
        assert_eq!(config.state_dir, Path::new("/srv/warmd"));
        assert_eq!(config.listen, Listen::unix("/srv/warmd.sock"));
        assert_eq!((config.engine.chunk, config.engine.batch_time.as_secs()), (1 << 20, 5));
        assert_eq!(
            (config.log.format, config.log.level.as_str()),
            (LogFormat::Json, "info,warmd_daemon=debug")
        );
        let lab = Kinds::Near(Near { uri: "qemu:///system".to_owned(), depth: 0 });
        assert_eq!(config.sources["lab"].settings, lab);
        assert!(matches!(&config.sources["attic"].settings, Kinds::Far(far) if far.login.user == "x"));
        assert_eq!(config.targets["new"].settings.kind(), "disk");
        let limits =
            |rate, requests| LimitTable { rate: NonZeroU64::new(rate), requests: NonZeroU32::new(requests) };
        assert_eq!(config.limits, limits(200 << 20, 256));
        assert_eq!(config.sources["lab"].limits, limits(1 << 20, 0));
        assert_eq!(config.sources["attic"].limits, LimitTable::default());
        assert_eq!(config.targets["new"].limits, limits(0, 8));
        assert_eq!((config.sources.len(), config.targets.len()), (2, 1));
    }

    #[test]
    fn the_kinds_that_there_are() {
        let text = r#"
            [[source]]
            name = "lab"
            kind = "libvirt"
            uri = "qemu:///session"

            [[target]]
            name = "disks"
            kind = "disk"
            directory = "/pool"
            provisioner = { address = "unix:/run/provisioner" }
        "#;
        let config = Config::parse(text, "warmd.toml").unwrap();
        assert_eq!(
            (config.sources["lab"].settings.kind(), config.sources["lab"].settings.address().as_str()),
            ("libvirt", "qemu:///session")
        );
        assert_eq!(
            (config.targets["disks"].settings.kind(), config.targets["disks"].settings.address().as_str()),
            ("disk", "/pool")
        );
        let error = Config::parse(&text.replace("{ address =", "{ adress ="), "warmd.toml").unwrap_err();
        assert!(error.to_string().starts_with("warmd.toml:11:29: unknown key `adress`"), "{error}");
    }

    #[test]
    fn nothing_said_means_the_defaults() {
        let config = Tested::parse("", "warmd.toml").unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/warmd"));
        assert_eq!(config.listen, Listen::unix("/run/warmd/warmd.sock"));
        assert_eq!((config.engine, config.log), (EngineSettings::default(), LogSettings::default()));
        assert!(config.sources.is_empty() && config.targets.is_empty());
    }

    const LONG_SOCKET: &str = "socket = \"/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

    #[test]
    fn every_mistake_has_its_place() {
        let cases = [
            ("state_dir", "statedir", "warmd.toml:1:1: unknown key `statedir`, expected one of `state_dir`"),
            ("\"/srv/warmd\"", "7", "warmd.toml:1:13: invalid type: integer `7`"),
            ("\"/srv/warmd\"", "\"srv\"", "warmd.toml:1:13: `srv` is a relative path"),
            ("socket = \"/srv", "socket = \"srv", "warmd.toml:4:10: `srv/warmd.sock` is a relative path"),
            (
                "socket = \"/srv",
                LONG_SOCKET,
                "warmd.toml:4:10: the path of a Unix socket has at most 107 bytes, and this one has 112",
            ),
            ("socket", "sock", "warmd.toml:4:1: unknown key `sock`"),
            ("\"1MiB\"", "\"1MB\"", "warmd.toml:7:9: \"1MB\" is no size"),
            ("\"1MiB\"", "true", "warmd.toml:7:9: a size in bytes"),
            ("\"1MiB\"", "100000", "warmd.toml:7:9: `chunk` is 100000 bytes: use a multiple of 64 KiB"),
            ("\"1MiB\"", "\"1GiB\"", "warmd.toml:7:9: `chunk` is 1073741824 bytes: use 65536 to 33554432"),
            (
                "chunk = \"1MiB\"",
                "read_latency_factor = 1",
                "warmd.toml:7:23: `read_latency_factor` is 1: use 0",
            ),
            ("chunk = \"1MiB\"", "buffers = 0", "warmd.toml:7:11: `buffers` is 0: use 2 to 65536"),
            ("chunk = \"1MiB\"", "buffers = -1", "warmd.toml:7:11: invalid value: integer `-1`"),
            ("\"5s\"", "\"5 parsecs\"", "warmd.toml:8:14: \"5 parsecs\" is no duration"),
            ("\"json\"", "\"xml\"", "warmd.toml:11:10: unknown value `xml`, expected `text` or `json`"),
            ("\"info,warmd_daemon=debug\"", "\"a=b=c\"", "warmd.toml:12:9: `level` is \"a=b=c\""),
            ("name = \"lab\"", "", "warmd.toml:14:1: missing key `name`"),
            ("name = \"lab\"", "name = 5", "warmd.toml:15:8: `name` is a text in quotes"),
            ("\"lab\"", "\"the lab\"", "warmd.toml:15:8: the name \"the lab\" cannot be used"),
            ("\"attic\"", "\"lab\"", "warmd.toml:21:8: there is another source \"lab\""),
            ("\"near\"", "\"nearby\"", "warmd.toml:16:8: unknown value `nearby`, expected `near` or `far`"),
            ("kind = \"near\"", "", "warmd.toml:14:1: missing key `kind`"),
            ("uri = \"qemu", "url = \"qemu", "warmd.toml:17:1: unknown key `url`"),
            ("uri = \"qemu:///system\"", "depth = 3", "warmd.toml:14:1: missing key `uri`"),
            ("uri = \"qemu:///system\"", "uri = 3", "warmd.toml:17:7: invalid type: integer `3`"),
            ("user = \"x\"", "user = []", "warmd.toml:24:18: invalid type: sequence"),
            ("user = \"x\"", "usr = \"x\"", "warmd.toml:24:11: unknown key `usr`"),
            ("user = \"x\", ", "", "warmd.toml:24:9: missing key `user`"),
            ("{ env = \"ATTIC\" }", "\"hunter2\"", "warmd.toml:24:34: unknown value `hunter2`"),
            ("[[target]]", "[target]", "warmd.toml:26:1: `target` is written as `[[target]]`"),
            ("directory = \"/pool\"", "directory = 1", "warmd.toml:29:13: invalid type: integer"),
            ("[engine]", "[engine", "warmd.toml:6:8: "),
            ("1048576", "\"1MB/s\"", "warmd.toml:18:19: \"1MB/s\" is no rate such as \"200MiB/s\""),
            ("1048576", "1000", "warmd.toml:18:19: a rate of 1000B/s is too low: use at least 64KiB/s"),
            ("{ rate = 1048576 }", "{ speed = 1 }", "warmd.toml:18:12: unknown key `speed`"),
            ("{ rate = 1048576 }", "\"slow\"", "warmd.toml:18:10: `limits` is a table: { rate = "),
            ("requests = 8", "requests = 0", "warmd.toml:32:12: no requests at all would stop everything"),
            ("\"200MiB/s\"", "true", "warmd.toml:35:8: a rate such as \"200MiB/s\", or a number"),
            ("\"200MiB/s\"", "0", "warmd.toml:35:8: a rate of nothing would stop everything"),
            ("requests = 256", "requests = -1", "warmd.toml:36:12: invalid value: integer `-1`"),
            ("requests = 256", "disk_rate = 1", "warmd.toml:36:1: unknown key `disk_rate`"),
        ];
        for (old, new, wanted) in cases {
            assert!(GOOD.contains(old), "{old}");
            let message = complaint(&GOOD.replacen(old, new, 1));
            assert!(message.starts_with(wanted), "{old} → {new}:\n {message}\n {wanted}");
        }
    }

    #[test]
    fn tcp_only_with_certificates_on_both_sides() {
        let tls = "tls = { cert = \"/c\", key = \"/k\", client_ca = \"/a\" }\n";
        let tcp = "[listen]\ntcp = \"0.0.0.0:7443\"\n";
        let config = Tested::parse(&format!("{tcp}{tls}"), "warmd.toml").unwrap();
        assert_eq!(config.listen.socket, Listen::unix("/run/warmd/warmd.sock").socket);
        assert!(matches!(config.listen.tcp, Some(tcp) if tcp.tls.client_ca == Path::new("/a")));
        let both = format!("[listen]\nsocket = \"/s\"\ngroup = \"ops\"\ntcp = \"0.0.0.0:7443\"\n{tls}");
        let both = Tested::parse(&both, "warmd.toml").unwrap().listen;
        assert_eq!((both.socket.group.as_deref(), both.tcp.is_some()), (Some("ops"), true));
        for (text, wanted) in [
            (tcp.to_owned(), "warmd.toml:2:7: a TCP address is served only with certificates on both sides"),
            (
                format!("{tcp}tls = {{ cert = \"/c\", key = \"/k\" }}"),
                "warmd.toml:3:7: missing key `client_ca`",
            ),
            (format!("{tcp}{}", tls.replace("/k", "k")), "warmd.toml:3:28: `k` is a relative path"),
            (format!("[listen]\n{tls}"), "warmd.toml:2:7: `tls` is for a TCP address"),
            (tcp.replace("7443", "port"), "warmd.toml:2:7: invalid socket address"),
        ] {
            let message = complaint(&text);
            assert!(message.starts_with(wanted), "{message}\n {wanted}");
        }
    }

    #[test]
    fn metrics_only_on_a_loopback_address() {
        let read = |value: &str| Tested::parse(&format!("[metrics]\n{value}\n"), "warmd.toml");
        assert_eq!(Tested::parse("", "warmd.toml").unwrap().metrics, None);
        for address in ["127.0.0.1:9464", "127.8.8.8:0", "[::1]:9464"] {
            let config = read(&format!("listen = \"{address}\"")).unwrap();
            assert_eq!(config.metrics.map(|found| found.to_string()).as_deref(), Some(address));
        }
        for (value, wanted) in [
            (
                "listen = \"0.0.0.0:9464\"",
                "warmd.toml:2:10: metrics are served to everybody who can connect, so not on 0.0.0.0:9464: use",
            ),
            ("listen = \"[::]:9464\"", "warmd.toml:2:10: metrics are served to everybody"),
            ("listen = \"192.0.2.1:9464\"", "warmd.toml:2:10: metrics are served to everybody"),
            ("listen = \"127.0.0.1\"", "warmd.toml:2:10: invalid socket address"),
            ("listen = 9464", "warmd.toml:2:10: "),
            ("lisen = \"127.0.0.1:9464\"", "warmd.toml:2:1: unknown key `lisen`"),
            ("", "warmd.toml:1:1: missing key `listen`"),
        ] {
            let message = read(value).unwrap_err().to_string();
            assert!(message.starts_with(wanted), "{message}\n {wanted}");
        }
    }

    #[test]
    fn what_is_no_configuration_is_refused_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("warmd.toml");
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Tested::load(&path).unwrap_err().to_string()
        };
        assert!(
            load(b"state_dir = \"/a\"\n\xff\xfe")
                .ends_with(":2:1: this is no UTF-8 text: is it the right file?")
        );
        assert!(load(b"\x7fELF\x02\x01\x01").contains("warmd.toml:1:"));
        assert!(load(&vec![b'#'; 2 << 20]).contains("more than 1024 KiB"));
        assert!(load("a = ".repeat(1000).as_bytes()).contains("warmd.toml:1:"));
        std::fs::remove_file(&path).unwrap();
        let missing = Tested::load(&path).unwrap_err();
        assert!(matches!(missing, ConfigError::Read { .. }), "{missing}");
        assert!(missing.to_string().contains("warmd.toml: No such file"), "{missing}");
        assert!(matches!(Tested::load(dir.path()), Err(ConfigError::Read { .. })));
        let endless = Tested::load(Path::new("/dev/zero")).unwrap_err();
        assert!(endless.to_string().contains("more than 1024 KiB"), "{endless}");
    }
}
