//! A signed report as text, and the port to what signs reports.
//!
//! Rule: the secret key is outside of this package. Here are only texts that any client may have.

use std::fmt::Debug;

use crate::model::report::Report;

/// A report with its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReport {
    /// The readable report, with the signature as its last field.
    pub json: String,
    /// BLAKE3 of what is signed, in hexadecimal.
    pub digest: String,
    /// The public key, in hexadecimal.
    pub key: String,
}

/// A public key, as others take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportKeyText {
    /// In hexadecimal.
    pub hex: String,
    /// In PEM, as OpenSSL reads it.
    pub pem: String,
}

/// Signs reports.
pub trait SignReports: Send + Sync + Debug {
    /// The report, signed, in the form that can be checked later; else why not.
    fn sign(&self, report: &Report) -> Result<SignedReport, String>;

    /// What checks its signatures.
    fn key(&self) -> ReportKeyText;
}

/// Signs nothing, for programs without a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReportKey;

impl SignReports for NoReportKey {
    fn sign(&self, _report: &Report) -> Result<SignedReport, String> {
        Err("this program has no key to sign reports with".to_owned())
    }

    fn key(&self) -> ReportKeyText {
        ReportKeyText { hex: String::new(), pem: String::new() }
    }
}
