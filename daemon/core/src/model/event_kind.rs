//! The kinds of lines in the journal.
//!
//! Rule: a kind is stored and sent as its word. A word of another release is kept as it is, and decides
//! nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// The kind of a line in the journal.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
            /// Of another release.
            Other(String),
        }

        impl EventKind {
            /// All kinds of this release.
            #[cfg(test)]
            const ALL: &[(Self, &str)] = &[$((Self::$kind, $word)),*];

            /// Its word in the store, in the API and in the CLI.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$kind => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<String> for EventKind {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $($word => Self::$kind,)*
                    _ => Self::Other(word),
                }
            }
        }
    };
}

kinds! {
    /// A migration or a group has another state.
    State = "state",
    /// A request was accepted, refused, or changes nothing.
    Request = "request",
    /// A plan was applied or deleted.
    Plan = "plan",
    /// A limit was changed.
    Limit = "limit",
    /// A role was granted or revoked.
    Access = "access",
    /// The schedule begins, suspends or preempts something.
    Schedule = "schedule",
    /// An operator should look at it.
    Warning = "warning",
    /// Both VMs may run, or the source VM is not where it is expected.
    Error = "error",
    /// Work failed, and is tried again.
    Failure = "failure",
    Verification = "verification",
    Hook = "hook",
    Conversion = "conversion",
    /// What a guest is, as it was read on its replica.
    Inspection = "inspection",
    Rollback = "rollback",
    /// A source's change tracking was found wrong.
    TrackingFault = "tracking-fault",
    /// A copy is older than its RPO target.
    Alarm = "alarm",
    /// It is not any more.
    AlarmOver = "alarm over",
}

impl From<EventKind> for String {
    fn from(kind: EventKind) -> Self {
        kind.as_str().to_owned()
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for (kind, word) in EventKind::ALL {
            assert_eq!(kind.as_str(), *word);
            assert_eq!(EventKind::from((*word).to_owned()), *kind);
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("{word:?}"));
        }
        let strange = EventKind::from("pass".to_owned());
        assert_eq!((strange.as_str(), &strange), ("pass", &EventKind::Other("pass".to_owned())));
    }
}
