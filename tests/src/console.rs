//! The output of a guest on its serial console. Rule: only whole lines count.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::wait::wait_until;

/// The number of console lines in the error of a wait that timed out.
const LAST_WORDS: usize = 8;

/// A serial console that is logged to a file, over all boots of a guest.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
}

/// One boot of a guest, as it reported itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSeen {
    /// Counted on the guest's disk, from 1: a copy of the disk continues the count.
    pub n: u16,
    /// The machine's own uuid (DMI): distinguishes source and target if theirs differ.
    pub uuid: String,
    /// The MAC of the first NIC; `-` without one.
    pub mac: String,
    /// The last record that the guest found in its log, verified by it from the first byte on.
    pub log: Option<Result<u64, String>>,
    /// The record it continues with.
    pub resume: Option<u64>,
    /// The last record acknowledged in this boot; 0 before the first.
    pub acked: u64,
    /// It unmounted its disk and powered off in order.
    pub clean: bool,
}

impl Console {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The output so far; empty while there is no file.
    pub fn text(&self) -> Result<String> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(err) => Err(err).with_context(|| format!("cannot read {}", self.path.display())),
        }
    }

    /// All boots, the first one first.
    pub fn boots(&self) -> Result<Vec<BootSeen>> {
        parse(&self.text()?)
    }

    /// The highest record ever acknowledged here; 0 before the first.
    pub fn acked(&self) -> Result<u64> {
        Ok(self.boots()?.iter().map(|b| b.acked).max().unwrap_or(0))
    }

    /// Waits until record `n` is acknowledged.
    pub fn wait_for_acked(&self, n: u64, deadline: Duration) -> Result<u64> {
        wait_until(&format!("record {n} on {}", self.path.display()), deadline, || {
            Ok(Some(self.acked()?).filter(|&acked| acked >= n))
        })
        .with_context(|| self.last_words())
    }

    /// Waits until the `n`th boot seen here (from 1) has acknowledged a record.
    pub fn wait_for_boot(&self, n: usize, deadline: Duration) -> Result<BootSeen> {
        wait_until(&format!("boot {n} on {}", self.path.display()), deadline, || {
            Ok(self.boots()?.into_iter().nth(n.saturating_sub(1)).filter(|b| b.acked > 0))
        })
        .with_context(|| self.last_words())
    }

    /// How far the guest came, for the error of a wait that timed out.
    fn last_words(&self) -> String {
        let text = self.text().unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("its console ends with {:?}", &lines[lines.len().saturating_sub(LAST_WORDS)..])
    }
}

fn parse(text: &str) -> Result<Vec<BootSeen>> {
    let mut boots: Vec<BootSeen> = Vec::new();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines().map(str::trim) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "BOOT" {
            let field = |name: &str| {
                rest.split(' ').find_map(|f| f.strip_prefix(name)?.strip_prefix('=')).unwrap_or("").to_owned()
            };
            let n = field("n").parse().with_context(|| format!("odd console line {line:?}"))?;
            boots.push(BootSeen { n, uuid: field("uuid"), mac: field("mac"), ..BootSeen::default() });
            continue;
        }
        if matches!(line, "NO DISK" | "NO FILE SYSTEM") {
            bail!("the guest did not come up: {line}");
        }
        // Firmware and boot loader speak before the first boot introduces itself.
        let Some(boot) = boots.last_mut() else { continue };
        let number = |s: &str| s.parse().with_context(|| format!("odd console line {line:?}"));
        match word {
            "ACK" => boot.acked = number(rest)?,
            "RESUME" => boot.resume = Some(number(rest)?),
            "CLEAN" => boot.clean = true,
            "WRITER" => bail!("the guest's writer failed: {line}"),
            "LOG" => {
                boot.log = Some(match rest.split_once(' ') {
                    Some(("OK", last)) => Ok(number(last)?),
                    _ => Err(rest.to_owned()),
                });
            }
            _ => {}
        }
    }
    Ok(boots)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_BOOTS: &str = "SeaBIOS\r\nBOOT n=1 uuid=aa mac=52:54\r\nLOG OK 0\r\nRESUME 1\r\nACK 1\r\nACK 2\r\n\
        CLEAN\r\nBOOT n=2 uuid=bb mac=-\r\nLOG BAD byte 64: torn\r\nACK 3\r\nACK 456";

    #[test]
    fn boots_and_their_records_are_told_apart() {
        let boots = parse(TWO_BOOTS).unwrap();
        let first = BootSeen {
            n: 1,
            uuid: "aa".into(),
            mac: "52:54".into(),
            log: Some(Ok(0)),
            resume: Some(1),
            acked: 2,
            clean: true,
        };
        assert_eq!(boots[0], first);
        assert_eq!(boots[1].log, Some(Err("BAD byte 64: torn".into())));
        assert!(!boots[1].clean);
    }

    #[test]
    fn a_line_still_being_written_does_not_count() {
        assert_eq!(parse(TWO_BOOTS).unwrap()[1].acked, 3);
        assert_eq!(parse("BOOT n=1").unwrap(), []);
    }

    #[test]
    fn a_guest_without_its_disk_is_an_error() {
        assert!(parse("SeaBIOS\r\nNO DISK\r\n").is_err());
    }

    #[test]
    fn a_failed_writer_is_an_error() {
        assert!(parse("BOOT n=1 uuid=a mac=b\nWRITER FAILED no space\n").is_err());
    }
}
