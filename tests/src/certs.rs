//! A CA for tests, and what it signs: certificates, keys, lists of what it revoked.
//!
//! Rule: it depends on no other file of this package, so that tests of other packages can use it too.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

/// A CA, with its files in a directory.
pub struct Ca {
    dir: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Ca {
    /// A new CA; its certificate is the file `ca`.
    pub fn new(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key)?;
        let ca = Self { dir: dir.to_owned(), name: name.to_owned(), issuer: Issuer::new(params, key) };
        fs::write(ca.file("ca"), certificate.pem())?;
        Ok(ca)
    }

    /// The path of one of its files.
    pub fn file(&self, what: &str) -> PathBuf {
        self.dir.join(format!("{}-{what}.pem", self.name))
    }

    /// The path of the key of a certificate.
    pub fn key(&self, name: &str) -> PathBuf {
        self.file(&format!("{name}-key"))
    }

    /// Signs a certificate with this common name, for the host `localhost`.
    pub fn sign(&self, name: &str) -> Result<()> {
        self.sign_as(name, |_| {})
    }

    /// Signs a certificate that differs from the usual ones; it replaces an earlier one of the same name.
    pub fn sign_as(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?;
        self.replace(&self.key(name), &key.serialize_pem())?;
        self.replace(&self.file(name), &certificate.pem())
    }

    /// Writes the list of revoked certificates, `crl`, with these serial numbers.
    pub fn revoke(&self, serials: &[u64]) -> Result<()> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2126, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.replace(&self.file("crl"), &list.signed_by(&self.issuer)?.pem()?)
    }

    /// Puts a file in place as a whole, readable by its owner alone.
    fn replace(&self, path: &Path, text: &str) -> Result<()> {
        let new = self.dir.join(format!("{}-new.pem", self.name));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        Ok(fs::rename(&new, path)?)
    }
}
