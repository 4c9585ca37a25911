//! `report …`: signed reports, checked without a daemon; and saved to files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::Serialize;
use serde_json::Value;
use warmd_proto::v1::{MigrationsReportKeyRequest, MigrationsReportResponse};
use warmd_report::signing::{self, PublicKey, Verified};

use super::{
    address::DaemonAddress,
    client::{Client, asked},
    failure::{CliFailure, Exit},
    labels,
    out::{Out, complain},
};

/// The largest report that is read, in bytes; one with ten thousand journal lines and passes is far smaller.
const MAX_REPORT: u64 = 256 << 20;
const MAX_KEY: u64 = 64 << 10;

/// Prints the key of this daemon's reports.
pub(super) async fn print_key(daemon: &DaemonAddress, out: &Out, pem: bool) -> Result<(), CliFailure> {
    let client = Client::connect(daemon).await?;
    let answer = client.migrations().report_key(asked(MigrationsReportKeyRequest {})).await?.into_inner();
    if out.is_json() {
        return out.json(&answer);
    }
    out.text(if pem { &answer.pem } else { &answer.key })?;
    for earlier in &answer.earlier {
        let since = labels::moment(earlier.since.as_ref());
        // Not on the stream that scripts read the key from.
        complain(&format!(
            "an earlier key signed the reports from {since} on: {}. Check these reports with that key; if \
             you did not replace it, find out how it was lost",
            earlier.key
        ));
    }
    Ok(())
}

/// Writes both forms of a report beside each other, both or none; existing files stay.
pub(super) fn save(out: &Out, base: &Path, report: &MigrationsReportResponse) -> Result<(), CliFailure> {
    let named = |ending: &str| {
        let mut name = base.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let forms = [("json", &report.json), ("md", &report.markdown)].map(|(ending, text)| Form {
        path: named(&format!(".{ending}")),
        // Another file of this name belongs to a killed or running command.
        draft: named(&format!(".{ending}.{}.new", std::process::id())),
        text,
    });
    let saved = save_all(&forms);
    for form in &forms {
        // There is none after success.
        fs::remove_file(&form.draft).ok();
    }
    saved.map_err(|(path, error)| failed(format!("cannot write {}: {error}", path.display())))?;
    if !out.is_json() {
        forms.iter().try_for_each(|form| out.text(&format!("wrote {}", form.path.display())))?;
    }
    Ok(())
}

struct Form<'a> {
    path: PathBuf,
    draft: PathBuf,
    text: &'a str,
}

fn save_all<'a>(forms: &'a [Form]) -> Result<(), (&'a Path, io::Error)> {
    for form in forms {
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&form.draft)
            .and_then(|mut file| file.write_all(form.text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|error| (form.path.as_path(), error))?;
    }
    for (nth, form) in forms.iter().enumerate() {
        if let Err(error) = rename_new(&form.draft, &form.path) {
            forms.iter().take(nth).for_each(|done| drop(fs::remove_file(&done.path)));
            return Err((&form.path, error));
        }
    }
    Ok(())
}

/// Renames a file to a free name.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot do it in one.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                Err(Errno::EXIST.into())
            } else {
                fs::rename(from, to)
            }
        }
        result => Ok(result?),
    }
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

pub(super) fn verify(out: &Out, file: &Path, key: Option<&str>) -> Result<(), CliFailure> {
    let wanted = key.map(read_key).transpose()?;
    let text = read_report(file)?;
    let verified = signing::verify(&text, wanted)
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
    print_verified(out, &verified, wanted.is_some())
}

fn print_verified(out: &Out, verified: &Verified, checked: bool) -> Result<(), CliFailure> {
    let report = &verified.report;
    let of = |name: &str| field(report, name).unwrap_or_else(|| "?".to_owned());
    let key = if checked {
        "it is the key of --key"
    } else {
        "NOT CHECKED: anyone can make a key. Compare it with the output of `warmctl report key` on the daemon's host, or \
         give that key with --key"
    };
    let state = report.pointer("/state/name").and_then(Value::as_str).unwrap_or("?");
    let mut pairs = vec![
        ("Signature", "valid: the report is unchanged since it was signed".to_owned()),
        ("Signed by", verified.key.to_string()),
        ("Key check", key.to_owned()),
        ("Migration", format!("{} of VM {}, {state}", of("migration"), of("vm_name"))),
        ("From, to", format!("{} to {}, plan {}", of("source"), of("target"), of("plan"))),
        ("Made", format!("{} by warmd {}", of("made"), of("warmd"))),
        ("Digest", verified.digest.clone()),
    ];
    for disk in report.get("disks").and_then(Value::as_array).into_iter().flatten() {
        let of = |name: &str| field(disk, name);
        let root =
            of("manifest_root").unwrap_or_else(|| "none: the disk was not copied completely".to_owned());
        let proof = match of("verified_by").as_deref() {
            None => "an older warmd does not say how it was verified".to_owned(),
            Some("none") => "NOT verified, as the plan says".to_owned(),
            Some(proof) => format!("verified by {proof}"),
        };
        let recorded = of("root_recorded")
            .map_or_else(|| "no recorded root".to_owned(), |at| format!("root recorded {at}, {proof}"));
        pairs.push(("Root", format!("{root} {} ({recorded})", of("key").unwrap_or_else(|| "?".to_owned()))));
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

fn read_report(file: &Path) -> Result<String, CliFailure> {
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
fn read_key(key: &str) -> Result<PublicKey, CliFailure> {
    if let Some(key) = PublicKey::from_text(key) {
        return Ok(key);
    }
    let usage = |what: String| CliFailure::new(Exit::Usage, what);
    let mut text = String::new();
    File::open(key).and_then(|open| open.take(MAX_KEY).read_to_string(&mut text)).map_err(|error| {
        usage(format!("--key {key} is no key of 64 hexadecimal digits, and no file: {error}"))
    })?;
    PublicKey::from_text(&text)
        .ok_or_else(|| usage(format!("{key} holds no public key, in hexadecimal or PEM")))
}

fn failed(what: String) -> CliFailure {
    CliFailure::new(Exit::Failed, what)
}
