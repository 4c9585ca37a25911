//! Random numbers from a printed seed, and short ways to write times.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

/// Zones whose clocks behave differently.
pub(crate) const ZONES: [Tz; 8] = [
    Tz::Europe__Berlin,
    Tz::America__New_York,
    Tz::Australia__Lord_Howe, // by half an hour
    Tz::Asia__Kolkata,        // never, and half an hour off
    Tz::America__Sao_Paulo,   // at midnight, until 2019
    Tz::Pacific__Kiritimati,  // a day was left out in 1994
    Tz::America__St_Johns,    // at one minute past midnight, until 2011
    Tz::UTC,
];

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `WARMD_SEED`, or a new seed; it is printed, and shown if the test fails.
    pub(crate) fn seeded() -> Self {
        let given =
            std::env::var("WARMD_SEED").ok().map(|seed| seed.parse().expect("WARMD_SEED is a number"));
        let seed = given.unwrap_or_else(|| Utc::now().timestamp_nanos_opt().unwrap().unsigned_abs());
        println!("seed: run it again with WARMD_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal, with mean 0 and variance 1.
    pub(crate) fn normal(&mut self) -> f64 {
        let (one, other) = (self.unit().max(1e-300), self.unit());
        (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos()
    }

    /// A moment from 1990 to 2040, in whole seconds.
    pub(crate) fn moment(&mut self) -> DateTime<Utc> {
        DateTime::from_timestamp(631_152_000 + self.below(50 * 31_557_600).cast_signed(), 0).unwrap()
    }
}

/// `2026-11-28T21:00:00Z`.
pub(crate) fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
