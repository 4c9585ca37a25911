//! Verification orders: what of a disk is verified, and the resulting certainty.
//!
//! Rule: these are terms of plan files, requests and reports; each is written in the form in which it is
//! read.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{plan::VerifyMode, state::State};
use crate::format;

/// Seeds above this would lose digits in the JSON of many readers.
pub const MAX_SEED: u64 = (1 << 53) - 1;

/// How much of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Amount {
    /// Millionths of the disk.
    Share(u32),
    /// Bytes of the disk.
    Bytes(u64),
}

impl Amount {
    /// This amount of a disk of `size` bytes, in bytes, rounded up.
    pub fn of(self, size: u64) -> u64 {
        match self {
            Self::Share(millionths) => (u128::from(size) * u128::from(millionths)).div_ceil(1_000_000) as u64,
            Self::Bytes(bytes) => bytes.min(size),
        }
    }

    /// Whether the amount is zero.
    pub fn is_none(self) -> bool {
        matches!(self, Self::Share(0) | Self::Bytes(0))
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no part of a disk, such as \"1%\", \"0.5%\" or \"10GiB\"");
        match text.strip_suffix('%') {
            Some(number) => {
                let (whole, part) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), "0"));
                let digits = |text: &str| !text.is_empty() && text.bytes().all(|each| each.is_ascii_digit());
                if !digits(whole) || !digits(part) || part.len() > 4 {
                    return Err(wrong());
                }
                let millionths = format!("{whole}{part:0<4}").parse().map_err(|_| wrong())?;
                if millionths > 1_000_000 {
                    return Err(format!("{text:?} is more than a disk: use 0% to 100%"));
                }
                Ok(Self::Share(millionths))
            }
            None => format::parse_size(text).map(Self::Bytes).ok_or_else(wrong),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(millionths) => {
                let (whole, part) = (millionths / 10_000, millionths % 10_000);
                let part = format!("{part:04}");
                match part.trim_end_matches('0') {
                    "" => write!(f, "{whole}%"),
                    part => write!(f, "{whole}.{part}%"),
                }
            }
            Self::Bytes(bytes) => match bytes.trailing_zeros() {
                _ if *bytes == 0 => f.write_str("0"),
                30.. => write!(f, "{}GiB", bytes >> 30),
                20..30 => write!(f, "{}MiB", bytes >> 20),
                10..20 => write!(f, "{}KiB", bytes >> 10),
                0..10 => write!(f, "{bytes}"),
            },
        }
    }
}

/// Which blocks of each disk are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum VerifyScope {
    /// All of them.
    #[default]
    Full,
    /// Blocks copied again since a verification of them passed, or else since the full pass.
    Changed,
    /// This amount of them, drawn at random from the whole disk.
    Sample(Amount),
}

impl FromStr for VerifyScope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("sample=")) {
            ("full", _) => Ok(Self::Full),
            ("changed", _) => Ok(Self::Changed),
            (_, Some(amount)) => match amount.parse::<Amount>()? {
                amount if amount.is_none() => Err(format!("{text:?} is a sample of nothing")),
                amount => Ok(Self::Sample(amount)),
            },
            _ => Err(format!("{text:?} is no scope: use full, changed, sample=1% or sample=10GiB")),
        }
    }
}

impl fmt::Display for VerifyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::Changed => f.write_str("changed"),
            Self::Sample(amount) => write!(f, "sample={amount}"),
        }
    }
}

/// A requested verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyOrder {
    /// The id by which the caller finds the verification again; empty without a request.
    pub id: String,
    pub mode: VerifyMode,
    pub scope: VerifyScope,
    /// The seed of a sample; drawn if absent.
    pub seed: Option<u64>,
    /// Disk → location of a snapshot of its target volume: a path or an NBD URI. Only these disks are
    /// verified then.
    pub images: BTreeMap<String, String>,
}

impl Default for VerifyOrder {
    fn default() -> Self {
        Self {
            id: String::new(),
            mode: VerifyMode::Readback,
            scope: VerifyScope::Full,
            seed: None,
            images: BTreeMap::new(),
        }
    }
}

/// The request in words: `readback, sample=1%, seed 7, image vda=/snapshots/web`.
impl fmt::Display for VerifyOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.mode, self.scope)?;
        if let Some(seed) = self.seed {
            write!(f, ", seed {seed}")?;
        }
        self.images.iter().try_for_each(|(disk, place)| write!(f, ", image {disk}={place}"))
    }
}

impl VerifyOrder {
    /// Why the request cannot be carried out on a migration in `state`, beyond the rules for every
    /// verification.
    pub fn refusal(&self, state: &State) -> Option<String> {
        let is_sample = matches!(self.scope, VerifyScope::Sample(_));
        let why = match self.mode {
            VerifyMode::None => "there is nothing to do in mode none: use readback or compare",
            VerifyMode::Compare if *state == State::Done => {
                "a compare needs the source's snapshot, which was released with the cutover: use readback"
            }
            VerifyMode::Compare if !self.images.is_empty() => {
                "images are read back: they do not go with mode compare"
            }
            _ if !self.images.is_empty() && *state != State::Done => {
                "images are for migrations that are done: until then the target itself is at rest"
            }
            _ if self.seed.is_some() && !is_sample => "a seed only goes with a sample",
            _ if self.seed.is_some_and(|seed| seed > MAX_SEED) => "the seed is above 9007199254740991",
            _ => return None,
        };
        Some(format!("verify is refused: {why}"))
    }
}

/// The probability that a sample misses all of this many bad blocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MissProbability {
    /// Bad blocks of 64 KiB, at any position.
    pub blocks: u64,
    /// Upper bound; 1 is certain.
    #[serde(alias = "chance")]
    pub probability: f64,
}

macro_rules! as_text {
    ($kind:ty) => {
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

as_text!(Amount);
as_text!(VerifyScope);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_scopes_are_written_as_they_are_read() {
        for text in
            ["full", "changed", "sample=1%", "sample=0.05%", "sample=100%", "sample=10GiB", "sample=7"]
        {
            let scope: VerifyScope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
            let json = serde_json::to_string(&scope).unwrap();
            assert_eq!(serde_json::from_str::<VerifyScope>(&json).unwrap(), scope);
        }
        for text in [
            "",
            "Full",
            "sample",
            "sample=",
            "sample=0",
            "sample=0%",
            "sample=101%",
            "sample=-1%",
            "sample=1.00001%",
            "sample=.5%",
            "sample=1GB",
            "sample=%",
            "sample=99999999999%",
        ] {
            assert!(text.parse::<VerifyScope>().is_err(), "{text}");
        }
        assert_eq!("0".parse::<Amount>().map(Amount::is_none), Ok(true));
        assert_eq!("1 %".parse::<Amount>(), Ok(Amount::Share(10_000)));
    }

    #[test]
    fn amounts_of_disks_are_rounded_up_and_never_more_than_the_disk() {
        assert_eq!(Amount::Share(10_000).of(1 << 40), 10_995_116_278);
        assert_eq!(Amount::Share(1_000_000).of(u64::MAX), u64::MAX);
        assert_eq!((Amount::Share(1).of(5), Amount::Bytes(9).of(5)), (1, 5));
    }

    #[test]
    fn an_order_says_all_that_was_asked_for() {
        let order = VerifyOrder::default();
        assert_eq!(order.to_string(), "readback, full");
        let images = [("vda", "/x"), ("vdb", "nbd://h/b")].map(|(disk, at)| (disk.to_owned(), at.to_owned()));
        let scope = VerifyScope::Sample(Amount::Share(10_000));
        let order = VerifyOrder { scope, seed: Some(7), images: images.into(), ..order };
        assert_eq!(order.to_string(), "readback, sample=1%, seed 7, image vda=/x, image vdb=nbd://h/b");
    }

    #[test]
    fn orders_that_cannot_be_are_refused_with_why() {
        let order = |mode| VerifyOrder { mode, ..VerifyOrder::default() };
        let image = BTreeMap::from([("vda".to_owned(), "/x".to_owned())]);
        let refused = |order: VerifyOrder, state: State| order.refusal(&state).is_some();
        assert!(!refused(order(VerifyMode::Readback), State::Synced));
        assert!(!refused(order(VerifyMode::Compare), State::Synced));
        assert!(!refused(order(VerifyMode::Readback), State::Done));
        assert!(refused(order(VerifyMode::Compare), State::Done));
        assert!(refused(order(VerifyMode::None), State::Synced));
        let with = |mode| VerifyOrder { images: image.clone(), ..order(mode) };
        assert!(!refused(with(VerifyMode::Readback), State::Done));
        assert!(refused(with(VerifyMode::Readback), State::Synced));
        assert!(refused(VerifyOrder { seed: Some(1), ..VerifyOrder::default() }, State::Synced));
        let sample = VerifyScope::Sample(Amount::Share(1));
        let seeded = |seed| VerifyOrder { scope: sample, seed: Some(seed), ..VerifyOrder::default() };
        assert!(!refused(seeded(MAX_SEED), State::Synced));
        assert!(refused(seeded(MAX_SEED + 1), State::Synced));
    }
}
