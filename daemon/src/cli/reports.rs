//! `report …`: sealed reports, checked without a daemon; and how they are saved.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;
use warmd_proto::v1::{MigrationsReportKeyRequest, MigrationsReportResponse};

use super::{
    args::ReportCommand,
    client::{Client, asked},
    failure::{Exit, Failure},
    out::Out,
};
use crate::seal::{self, PublicKey, Verified};

/// The largest report that is read, in bytes; one with ten thousand journal lines and passes is far smaller.
const MAX_REPORT: u64 = 256 << 20;
const MAX_KEY: u64 = 64 << 10;

pub(super) async fn run(socket: &Path, out: &Out, command: ReportCommand) -> Result<(), Failure> {
    match command {
        ReportCommand::Verify { file, key } => verify(out, &file, key.as_deref()),
        ReportCommand::Key { pem } => {
            let client = Client::connect(socket).await?;
            let answer =
                client.migrations().report_key(asked(MigrationsReportKeyRequest {})).await?.into_inner();
            if out.is_json() {
                out.json(&answer)
            } else {
                out.text(if pem { &answer.pem } else { &answer.key })
            }
        }
    }
}

/// Writes both forms of a report beside each other; what is there already stays.
pub(super) fn save(out: &Out, base: &Path, report: &MigrationsReportResponse) -> Result<(), Failure> {
    for (ending, text) in [("json", &report.json), ("md", &report.markdown)] {
        let mut name = base.as_os_str().to_owned();
        name.push(format!(".{ending}"));
        let path = PathBuf::from(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| failed(format!("cannot write {}: {error}", path.display())))?;
        if !out.is_json() {
            out.text(&format!("wrote {}", path.display()))?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Answer {
    valid: bool,
    signed_by: String,
    key_checked: bool,
    migration: Option<String>,
    made: Option<String>,
    digest: String,
}

fn verify(out: &Out, file: &Path, key: Option<&str>) -> Result<(), Failure> {
    let wanted = key.map(read_key).transpose()?;
    let text = read_report(file)?;
    let verified = seal::verify(&text, wanted)
        .map_err(|unsound| failed(format!("{}: NOT VALID: {unsound}", file.display())))?;
    if out.is_json() {
        return out.json(&Answer {
            valid: true,
            signed_by: verified.key.to_string(),
            key_checked: wanted.is_some(),
            migration: field(&verified.report, "migration"),
            made: field(&verified.report, "made"),
            digest: verified.digest,
        });
    }
    told(out, &verified, wanted.is_some())
}

fn told(out: &Out, verified: &Verified, checked: bool) -> Result<(), Failure> {
    let report = &verified.report;
    let of = |name: &str| field(report, name).unwrap_or_else(|| "?".to_owned());
    let key = if checked {
        "it is the one that was given"
    } else {
        "NOT CHECKED: anybody can make a key. Compare it with what `warmctl report key` prints on the daemon's host, or \
         give that with --key"
    };
    let state = report.pointer("/state/name").and_then(Value::as_str).unwrap_or("?");
    let mut pairs = vec![
        ("Seal", "whole: the report is as it was signed".to_owned()),
        ("Signed by", verified.key.to_string()),
        ("That key", key.to_owned()),
        ("Migration", format!("{} of VM {}, {state}", of("migration"), of("vm_name"))),
        ("From, to", format!("{} to {}, plan {}", of("source"), of("target"), of("plan"))),
        ("Made", format!("{} by warmd {}", of("made"), of("warmd"))),
        ("Digest", verified.digest.clone()),
    ];
    for disk in report.get("disks").and_then(Value::as_array).into_iter().flatten() {
        let of = |name: &str| field(disk, name);
        let root = of("manifest_root").unwrap_or_else(|| "none: the disk was not drained".to_owned());
        let sealed =
            of("sealed").map_or_else(|| "not sealed by a cutover".to_owned(), |at| format!("sealed {at}"));
        pairs.push(("Root", format!("{root} {} ({sealed})", of("key").unwrap_or_else(|| "?".to_owned()))));
    }
    out.pairs(&pairs)
}

fn field(value: &Value, name: &str) -> Option<String> {
    match value.get(name)? {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn read_report(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().take(MAX_REPORT + 1).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|open| open.take(MAX_REPORT + 1).read_to_string(&mut text))
    };
    let read = read.map_err(|error| failed(format!("cannot read the report {}: {error}", file.display())))?;
    if read as u64 > MAX_REPORT {
        return Err(failed(format!("{}: NOT VALID: it is larger than any report", file.display())));
    }
    Ok(text)
}

/// A key in hexadecimal, or from a file.
fn read_key(key: &str) -> Result<PublicKey, Failure> {
    if let Some(key) = PublicKey::from_hex(key) {
        return Ok(key);
    }
    let usage = |what: String| Failure::new(Exit::Usage, what);
    let mut text = String::new();
    File::open(key).and_then(|open| open.take(MAX_KEY).read_to_string(&mut text)).map_err(|error| {
        usage(format!("--key {key} is no key of 64 hexadecimal digits, and no file: {error}"))
    })?;
    PublicKey::from_text(&text)
        .ok_or_else(|| usage(format!("{key} holds no public key, in hexadecimal or PEM")))
}

fn failed(what: String) -> Failure {
    Failure::new(Exit::Failed, what)
}
