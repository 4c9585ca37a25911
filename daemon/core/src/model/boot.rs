//! What must be seen of the target VM before the cutover is finished.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::duration;

/// The longest text that is searched for.
const MAX_SERIAL: usize = 256;

/// What must be seen of the target VM, besides that it keeps running. All of it must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootCheck {
    /// `HOST:PORT` that takes a connection from the daemon's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// A text that the guest writes to its first serial port after the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Whether the QEMU guest agent must answer.
    pub guest_agent: bool,
    /// How long after the start it may take until all of this is seen.
    #[serde(with = "duration")]
    pub deadline: Duration,
}

impl Default for BootCheck {
    fn default() -> Self {
        Self { tcp: None, serial: None, guest_agent: false, deadline: Duration::from_mins(5) }
    }
}

impl BootCheck {
    /// Whether all values are the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the check needs the target's access to the guest.
    pub fn needs_target(&self) -> bool {
        self.serial.is_some() || self.guest_agent
    }

    /// The problems of the values as written; `name` is the section's name in the plan.
    pub(super) fn problems(&self, name: &str) -> Vec<String> {
        let mut problems = Vec::new();
        if self.tcp.as_ref().is_some_and(|tcp| !is_address(tcp)) {
            problems.push(format!(
                "`{name}.tcp` is {:?}: write HOST:PORT",
                self.tcp.as_deref().unwrap_or_default()
            ));
        }
        if self.serial.as_ref().is_some_and(|text| text.is_empty() || text.len() > MAX_SERIAL) {
            problems.push(format!("`{name}.serial` must be 1 to {MAX_SERIAL} bytes long"));
        }
        if self.deadline.is_zero() {
            problems.push(format!("`{name}.deadline` is 0: no guest boots at once"));
        }
        problems
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["web:22", "10.0.0.1:443", "[fe80::1]:22", "localhost:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["web", ":22", "web:", "web:0", "web:65536", "we b:22", ""] {
            assert!(!is_address(bad), "{bad}");
        }
    }
}
