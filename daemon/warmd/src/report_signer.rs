//! Signs reports with the key beside the state.

use warmd_core::{
    model::report::Report,
    signed_report::{ReportKeyText, SignReports, SignedReport},
};
use warmd_report::signing::{self, ReportKey};

/// Signs with this key.
#[derive(Clone, Debug)]
pub struct ReportSigner(pub ReportKey);

impl SignReports for ReportSigner {
    fn sign(&self, report: &Report) -> Result<SignedReport, String> {
        let signed = signing::sign(&self.0, report).map_err(|error| error.to_string())?;
        Ok(SignedReport { json: signed.json, digest: signed.digest, key: signed.key.to_string() })
    }

    fn key(&self) -> ReportKeyText {
        let key = self.0.public();
        ReportKeyText { hex: key.to_string(), pem: key.to_pem() }
    }
}
