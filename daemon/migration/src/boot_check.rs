//! The boot check: what must be seen of the target VM before the cutover is finished.
//!
//! Rule: it only observes. The cutover decides what follows a failed check, and never runs both VMs because
//! of it.

use std::time::Duration;

use tokio::{net::TcpStream, time::timeout};
use warmd_core::{model::boot::BootCheck, targets::GuestSign};

use super::context::Context;

/// The time limit of one look, so that the next one follows.
const LOOK: Duration = Duration::from_secs(5);

/// The checks of one start, until each has succeeded once.
#[derive(Debug)]
pub(super) struct BootChecks {
    pending: Vec<Check>,
    seen: Vec<String>,
}

#[derive(Debug)]
struct Check {
    what: SignCheck,
    /// The last finding of a check that has not succeeded.
    instead: String,
}

#[derive(Debug)]
enum SignCheck {
    Tcp(String),
    Sign(GuestSign),
}

impl BootChecks {
    pub(super) fn new(wanted: &BootCheck) -> Self {
        let tcp = wanted.tcp.clone().map(SignCheck::Tcp);
        let serial = wanted.serial.clone().map(|text| SignCheck::Sign(GuestSign::Serial(text)));
        let agent = wanted.guest_agent.then_some(SignCheck::Sign(GuestSign::Agent));
        let pending = [tcp, serial, agent].into_iter().flatten();
        let pending = pending.map(|what| Check { what, instead: "it was not looked at".to_owned() });
        Self { pending: pending.collect(), seen: Vec::new() }
    }

    /// Looks once at each check that has not succeeded yet.
    pub(super) async fn look(&mut self, context: &Context) {
        let mut pending = Vec::new();
        for mut check in std::mem::take(&mut self.pending) {
            let looked = timeout(LOOK, check.what.look(context)).await;
            match looked.unwrap_or_else(|_| Err(format!("no answer within {} s", LOOK.as_secs()))) {
                Ok(()) => self.seen.push(check.what.to_string()),
                Err(instead) => {
                    check.instead = instead;
                    pending.push(check);
                }
            }
        }
        self.pending = pending;
    }

    pub(super) fn all_seen(&self) -> bool {
        self.pending.is_empty()
    }

    /// The succeeded checks in words, after `first`.
    pub(super) fn seen(mut self, first: String) -> String {
        self.seen.insert(0, first);
        self.seen.join("; ")
    }

    /// The missing checks in words.
    pub(super) fn missing(&self) -> String {
        let missing =
            self.pending.iter().map(|check| format!("not seen: {} ({})", check.what, check.instead));
        missing.collect::<Vec<_>>().join("; ")
    }
}

impl SignCheck {
    async fn look(&self, context: &Context) -> Result<(), String> {
        match self {
            Self::Tcp(address) => {
                TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
            }
            Self::Sign(sign) => {
                context.target.sign(context.id, sign).await.map_err(|error| error.to_string())
            }
        }
    }
}

impl std::fmt::Display for SignCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address} takes connections"),
            Self::Sign(GuestSign::Serial(text)) => write!(f, "its serial console says {text:?}"),
            Self::Sign(GuestSign::Agent) => f.write_str("its guest agent answers"),
        }
    }
}
