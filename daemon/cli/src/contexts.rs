//! `context …`: daemons by name, in a file of the user.
//!
//! Rule: the file is replaced as a whole, by a rename; a file that cannot be understood is never overwritten.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args as ClapArgs, Subcommand, parser::ValueSource};
use serde::{Deserialize, Serialize};

use super::{
    address::{DaemonAddress, TlsAddress},
    failure::{CliFailure, Exit},
    out::Out,
    table::Column,
    tls,
};

const COLUMNS: [Column; 3] = [Column::text(""), Column::text("NAME"), Column::text("DAEMON").cut(1, 20)];

#[derive(Debug, Subcommand)]
pub(super) enum ContextCommand {
    /// List the contexts; a star marks the one in use
    List,
    /// Give a name to a daemon: to a Unix socket, or to an address with certificates
    Add {
        name: String,
        #[command(flatten)]
        to: ContextTarget,
    },
    /// Use this daemon from now on, where neither --socket nor --context is given
    Use { name: String },
    /// Remove a context
    Remove { name: String },
}

#[derive(Debug, ClapArgs)]
pub(super) struct ContextTarget {
    /// Host and port of a daemon that listens on TCP ([listen] tcp)
    #[arg(long, value_name = "HOST:PORT", requires = "ca", requires = "cert", requires = "key")]
    address: Option<String>,
    /// The CA that signed the daemon's certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "address")]
    ca: Option<PathBuf>,
    /// Your client certificate (PEM); its common name is your name in `access`
    #[arg(long, value_name = "FILE", requires = "address")]
    cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "address")]
    key: Option<PathBuf>,
    /// The name in the daemon's certificate, if it is not the host of the address
    #[arg(long, value_name = "NAME", requires = "address")]
    server_name: Option<String>,
}

/// The user's file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, DaemonAddress>,
}

/// The contexts, as JSON.
#[derive(Serialize)]
struct ContextList<'a> {
    contexts: Vec<ContextView<'a>>,
}

#[derive(Serialize)]
struct ContextView<'a> {
    name: &'a str,
    /// Whether it is the one in use.
    current: bool,
    #[serde(flatten)]
    daemon: &'a DaemonAddress,
}

/// What the command line and the environment say about the daemon.
#[derive(Debug)]
pub(super) struct ChosenDaemon {
    /// `--socket` and `--context`.
    socket: Option<PathBuf>,
    context: Option<String>,
    /// `WARMD_SOCKET` and `WARMD_CONTEXT`.
    usual_socket: Option<PathBuf>,
    usual_context: Option<String>,
}

impl ChosenDaemon {
    pub(super) fn of(matches: &ArgMatches) -> Self {
        Self {
            socket: given(matches, "socket", ValueSource::CommandLine),
            context: given(matches, "context", ValueSource::CommandLine),
            usual_socket: given(matches, "socket", ValueSource::EnvVariable),
            usual_context: given(matches, "context", ValueSource::EnvVariable),
        }
    }
}

fn given<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str, by: ValueSource) -> Option<T> {
    matches.get_one::<T>(name).filter(|_| matches.value_source(name) == Some(by)).cloned()
}

/// The daemon that a command is for: what the command line names, else the environment, else the context in
/// use, else the default socket.
pub(super) fn resolve(chosen: &ChosenDaemon) -> Result<DaemonAddress, CliFailure> {
    let context = match (&chosen.socket, &chosen.context) {
        (Some(_), Some(_)) => {
            return Err(CliFailure::new(Exit::Usage, "give either --socket or --context, not both"));
        }
        (Some(socket), None) => return Ok(DaemonAddress::socket(socket)),
        (None, Some(context)) => Some(context),
        (None, None) => match &chosen.usual_socket {
            Some(socket) => return Ok(DaemonAddress::socket(socket)),
            None => chosen.usual_context.as_ref(),
        },
    };
    let known = file().map_or_else(|| Ok(Contexts::default()), |path| read(&path))?;
    let Some(name) = context.or(known.current.as_ref()) else {
        return Ok(DaemonAddress::socket(DEFAULT_SOCKET));
    };
    known.contexts.get(name).cloned().ok_or_else(|| unknown(name, &known))
}

/// Where warmd listens if its configuration says nothing else.
pub(super) const DEFAULT_SOCKET: &str = "/run/warmd/warmd.sock";

pub(super) fn run(chosen: ChosenDaemon, out: &Out, command: ContextCommand) -> Result<(), CliFailure> {
    let path = file().ok_or_else(|| {
        CliFailure::new(
            Exit::Usage,
            "set HOME or XDG_CONFIG_HOME: warmctl keeps its contexts in a file there",
        )
    })?;
    let mut known = read(&path)?;
    match command {
        ContextCommand::List => return list(out, &known),
        ContextCommand::Add { name, to } => {
            if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
                let why =
                    format!("`{}` is no name of a context: write one without spaces", name.escape_debug());
                return Err(CliFailure::new(Exit::Usage, why));
            }
            let address = address(chosen.socket, to)?;
            known.contexts.insert(name.clone(), address);
            if known.contexts.len() == 1 {
                known.current = Some(name);
            }
        }
        ContextCommand::Use { name } => {
            if !known.contexts.contains_key(&name) {
                return Err(unknown(&name, &known));
            }
            known.current = Some(name);
        }
        ContextCommand::Remove { name } => {
            if known.contexts.remove(&name).is_none() {
                return Err(unknown(&name, &known));
            }
            known.current.take_if(|current| *current == name);
        }
    }
    write(&path, &known)?;
    list(out, &known)
}

fn address(socket: Option<PathBuf>, to: ContextTarget) -> Result<DaemonAddress, CliFailure> {
    match (socket, to) {
        (
            None,
            ContextTarget {
                address: Some(address),
                ca: Some(ca),
                cert: Some(cert),
                key: Some(key),
                server_name,
            },
        ) => {
            let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
            let has_port =
                address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && is_port(port));
            if !has_port || address.contains('/') {
                let why = format!("`{address}` is no address: write HOST:PORT, as in warmd.example.org:7443");
                return Err(CliFailure::new(Exit::Usage, why));
            }
            let whole = |path: PathBuf| {
                fs::canonicalize(&path).map_err(|error| {
                    CliFailure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()))
                })
            };
            let (ca, cert, key) = (whole(ca)?, whole(cert)?, whole(key)?);
            let to = TlsAddress { address, ca, cert, key, server_name };
            tls::check(&to)?;
            Ok(DaemonAddress::Tls(to))
        }
        (Some(socket), ContextTarget { address: None, .. }) => match std::path::absolute(&socket) {
            Ok(socket) => Ok(DaemonAddress::socket(socket)),
            Err(error) => {
                Err(CliFailure::new(Exit::Usage, format!("cannot use {}: {error}", socket.display())))
            }
        },
        (Some(_), _) => Err(CliFailure::new(Exit::Usage, "give either --socket or --address, not both")),
        (None, _) => {
            Err(CliFailure::new(Exit::Usage, "give --address with --ca, --cert and --key, or --socket"))
        }
    }
}

fn list(out: &Out, known: &Contexts) -> Result<(), CliFailure> {
    if out.is_json() {
        let contexts = known.contexts.iter().map(|(name, daemon)| {
            let is_current = known.current.as_ref() == Some(name);
            ContextView { name, current: is_current, daemon }
        });
        return out.json(&ContextList { contexts: contexts.collect() });
    }
    let row = |(name, address): (&String, &DaemonAddress)| {
        let mark = if known.current.as_ref() == Some(name) { "*" } else { "" };
        [mark.to_owned(), name.clone(), address.to_string()]
    };
    out.table(&COLUMNS, known.contexts.iter().map(row))
}

fn names(known: &Contexts) -> String {
    match known.contexts.len() {
        0 => "there are none; add one with `warmctl context add`".to_owned(),
        _ => {
            format!("there are: {}", known.contexts.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
        }
    }
}

fn unknown(name: &str, known: &Contexts) -> CliFailure {
    CliFailure::new(Exit::NotFound, format!("no context {name:?}; {}", names(known)))
}

fn file() -> Option<PathBuf> {
    let of = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = of("XDG_CONFIG_HOME").or_else(|| Some(of("HOME")?.join(".config")))?;
    Some(config.join("warmctl/contexts.toml"))
}

fn read(path: &Path) -> Result<Contexts, CliFailure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Contexts::default());
        }
        Err(error) => {
            return Err(CliFailure::new(Exit::Usage, format!("cannot read {}: {error}", path.display())));
        }
    };
    toml::from_str(&text).map_err(|error| {
        let why = format!("{} is not understood; correct or remove it: {error}", path.display());
        CliFailure::new(Exit::Usage, why.trim_end())
    })
}

fn write(path: &Path, known: &Contexts) -> Result<(), CliFailure> {
    let failed = |error: std::io::Error| {
        CliFailure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
    };
    let text = toml::to_string_pretty(known).map_err(|error| failed(std::io::Error::other(error)))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let mut new = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    new.write_all(text.as_bytes()).map_err(failed)?;
    new.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
