//! The TLS of the API's TCP address: TLS 1.3, with a certificate on both sides.
//!
//! Rule: without a certificate that the configured CA has signed, no byte of a request is read. The files
//! are read again when they change; files that cannot be used leave the earlier ones in use.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustix::fs::Mode;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};

use super::{ApiError, TlsFiles};

/// The protocol of gRPC.
const HTTP_2: &[u8] = b"h2";

/// The largest file of certificates or a key, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What shows that a file was changed or replaced: its time of change, device, inode and size.
type Stamp = Option<(SystemTime, u64, u64, u64)>;
type Stamps = [Stamp; 4];

/// The present settings of TLS.
#[derive(Debug)]
pub(super) struct Identity {
    files: TlsFiles,
    loaded: Mutex<(Stamps, Arc<ServerConfig>)>,
}

impl Identity {
    /// Reads the files.
    pub(super) fn load(files: TlsFiles) -> Result<Self, ApiError> {
        let stamps = stamps(&files);
        let settings = settings(&files)?;
        Ok(Self { files, loaded: Mutex::new((stamps, settings)) })
    }

    /// The settings for the next connection. Looks at the files.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.files);
        if now != loaded.0 {
            // Files that are bad are not read again until they change once more.
            loaded.0 = now;
            match settings(&self.files) {
                Ok(settings) => {
                    tracing::info!("the API's TLS files changed: the new ones are in use");
                    loaded.1 = settings;
                }
                Err(error) => {
                    tracing::error!(%error, "the API's new TLS files cannot be used: the earlier ones stay in use");
                }
            }
        }
        Arc::clone(&loaded.1)
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    [Some(&files.certificate), Some(&files.key), Some(&files.client_ca), files.client_crl.as_ref()].map(
        |path| {
            let meta = fs::metadata(path?).ok()?;
            Some((meta.modified().ok()?, meta.dev(), meta.ino(), meta.len()))
        },
    )
}

fn settings(files: &TlsFiles) -> Result<Arc<ServerConfig>, ApiError> {
    let certificate = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&files.client_ca)? {
        roots.add(root).map_err(|error| unusable("trust the CA in", &files.client_ca, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if let Some(path) = &files.client_crl {
        // A list that is out of date says nothing about what was revoked since.
        verifier = verifier.with_crls(revocations(path)?).enforce_revocation_expiration();
    }
    let verifier = verifier.build().map_err(|error| match &files.client_crl {
        Some(path) if matches!(error, VerifierBuilderError::InvalidCrl(_)) => {
            unusable("use the revoked certificates in", path, error)
        }
        _ => unusable("trust the CA in", &files.client_ca, error),
    })?;
    let mut settings = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(certificate, key))
        .map_err(|error| unusable("use the certificate in", &files.certificate, error))?;
    settings.alpn_protocols = vec![HTTP_2.to_vec()];
    // Without resumed sessions each connection's certificate is checked, also against the
    // current revocation list.
    settings.send_tls13_tickets = 0;
    Ok(Arc::new(settings))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ApiError> {
    items(path, "read the certificates in", "CERTIFICATE")
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ApiError> {
    items(path, "read the revoked certificates in", "X509 CRL")
}

/// What stands under this label in a PEM file; at least one.
fn items<T: PemObject>(path: &Path, what: &str, label: &str) -> Result<Vec<T>, ApiError> {
    let found: Result<Vec<_>, _> = T::pem_slice_iter(&read(path)?.0).collect();
    let found = found.map_err(|error| unusable(what, path, error))?;
    if found.is_empty() {
        return Err(unusable(what, path, format!("there is no `{label}` in it (PEM)")));
    }
    Ok(found)
}

/// The private key. One that any user of the host can read identifies the daemon no more.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ApiError> {
    let (text, mode) = read(path)?;
    if Mode::from_raw_mode(mode).intersects(Mode::RWXO) {
        let shown = path.display();
        let why =
            format!("every user of the host may open it (mode {:04o}): chmod o= {shown}", mode & 0o7777);
        return Err(unusable("use the private key in", path, why));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable("read the private key in", path, error))
}

/// The content and the mode of a file, both through one file descriptor: if the file is replaced in between,
/// they still belong together.
fn read(path: &Path) -> Result<(Vec<u8>, u32), ApiError> {
    let failed = |error| unusable("read", path, error);
    let file = fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        let why = format!("it has more than {MAX_FILE} bytes, and certificates have less");
        return Err(unusable("read", path, why));
    }
    Ok((text, mode))
}

fn unusable(what: &str, path: &Path, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ApiError {
    ApiError::Io { doing: format!("{what} {}", path.display()), cause: io::Error::other(cause) }
}
