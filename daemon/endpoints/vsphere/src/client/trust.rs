//! Which server is trusted: by the certificate authority of a file, or by the certificate's thumbprint.
//!
//! Rule: the default is to trust none. A pinned thumbprint stands for the name and the dates too, but the
//! server must still prove that it has the key. The refusal names the thumbprint that the server showed.

use std::{
    error::Error as StdError,
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
};

use ring::digest;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use thiserror::Error;

use crate::error::{Kind, Result, VsphereError};

/// What is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The very certificate.
    Thumbprint(Thumbprint),
    /// What the authorities in this PEM file have signed.
    CaFile(PathBuf),
}

/// A certificate's digest.
#[derive(Clone, PartialEq, Eq)]
pub enum Thumbprint {
    Sha1([u8; 20]),
    Sha256([u8; 32]),
}

/// Why a text is no thumbprint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no thumbprint: write the 20 bytes of SHA-1 or the 32 of SHA-256 in hexadecimal, as in AA:BB:…"
)]
pub struct ThumbprintError(String);

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    fn from_str(text: &str) -> std::result::Result<Self, ThumbprintError> {
        let wrong = || ThumbprintError(text.to_owned());
        let plain: String = text.trim().chars().filter(|character| *character != ':').collect();
        if !plain.is_ascii() || !plain.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let bytes: Vec<u8> = (0..plain.len() / 2)
            .map(|at| u8::from_str_radix(&plain[2 * at..2 * at + 2], 16))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| wrong())?;
        match bytes.len() {
            20 => bytes.try_into().map(Self::Sha1).map_err(|_| wrong()),
            32 => bytes.try_into().map(Self::Sha256).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Thumbprint {
    /// As VDDK and vCenter's pages write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha1(bytes) => bytes,
            Self::Sha256(bytes) => bytes,
        };
        for (at, byte) in bytes.iter().enumerate() {
            write!(f, "{}{byte:02X}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A certificate that a server showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenCertificate {
    /// The one that VDDK wants.
    pub sha1: Thumbprint,
    pub sha256: Thumbprint,
}

impl SeenCertificate {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut sha1 = [0; 20];
        sha1.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref());
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
        Self { sha1: Thumbprint::Sha1(sha1), sha256: Thumbprint::Sha256(sha256) }
    }

    fn has(&self, pinned: &Thumbprint) -> bool {
        *pinned == self.sha1 || *pinned == self.sha256
    }
}

/// Why a server is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum TrustError {
    #[error(
        "its thumbprint is {} (SHA-1) or {} (SHA-256), and {pinned} is pinned; if the certificate was renewed, compare \
         on the server and correct `thumbprint`",
        seen.sha1, seen.sha256
    )]
    Pinned { pinned: Thumbprint, seen: SeenCertificate },
    #[error(
        "{why}; its thumbprint is {} (SHA-1): see that `ca_file` has the authority of this server (vCenter offers it at \
         https://SERVER/certs/download.zip) and that `url` has the name in the certificate, or pin the thumbprint",
        seen.sha1
    )]
    Authority { why: String, seen: SeenCertificate },
}

/// Remembers the certificate that was last trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct Seer(Arc<Mutex<Option<SeenCertificate>>>);

impl Seer {
    pub(super) fn seen(&self) -> Option<SeenCertificate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, seen: SeenCertificate) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    judge: Judge,
    seer: Seer,
}

#[derive(Debug)]
enum Judge {
    Pinned(Thumbprint),
    Authority(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let seen = SeenCertificate::of(end_entity);
        let refused = match &self.judge {
            Judge::Pinned(pinned) if seen.has(pinned) => None,
            Judge::Pinned(pinned) => Some(TrustError::Pinned { pinned: pinned.clone(), seen: seen.clone() }),
            Judge::Authority(verifier) => verifier
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
                .err()
                .map(|error| TrustError::Authority { why: error.to_string(), seen: seen.clone() }),
        };
        if let Some(error) = refused {
            let error = CertificateError::Other(OtherError(Arc::new(error)));
            return Err(rustls::Error::InvalidCertificate(error));
        }
        self.seer.remember(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What TLS needs, and who tells which certificate was trusted.
pub(super) fn tls(trust: &Trust) -> Result<(ClientConfig, Seer)> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let judge = match trust {
        Trust::Thumbprint(pinned) => Judge::Pinned(pinned.clone()),
        Trust::CaFile(path) => {
            let context = || format!("reading the authorities in {}", path.display());
            let refused = |why: String| VsphereError::new(Kind::Refused, context(), why);
            let mut roots = RootCertStore::empty();
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| refused(error.to_string()))?;
                roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(refused("it has no certificate".to_owned()));
            }
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            Judge::Authority(builder.build().map_err(|error| refused(error.to_string()))?)
        }
    };
    let seer = Seer::default();
    let verifier = Verifier { provider: Arc::clone(&provider), judge, seer: seer.clone() };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| VsphereError::new(Kind::Failed, "setting up TLS", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((config, seer))
}

/// The refusal inside what the connection failed with.
pub(super) fn refusal(error: &(dyn StdError + 'static)) -> Option<TrustError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(trust) = error.downcast_ref::<TrustError>() {
            return Some(trust.clone());
        }
        if let Some(
            rustls::Error::Other(OtherError(inner))
            | rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))),
        ) = error.downcast_ref::<rustls::Error>()
        {
            let inner: &(dyn StdError + 'static) = &**inner;
            return inner.downcast_ref::<TrustError>().cloned();
        }
        // What an I/O error wraps is not its source, but its source's owner.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_are_read_with_and_without_colons() {
        let text = "AA:bb:CC:dd:EE:ff:00:11:22:33:44:55:66:77:88:99:aa:BB:cc:DD";
        let parsed: Thumbprint = text.parse().unwrap();
        assert_eq!(parsed.to_string(), text.to_uppercase());
        assert_eq!(text.replace(':', "").parse::<Thumbprint>(), Ok(parsed));
        assert!(matches!("ab".repeat(32).parse(), Ok(Thumbprint::Sha256(_))));
        for wrong in ["", "AA", "zz".repeat(20).as_str(), "a".repeat(39).as_str(), "ä".repeat(20).as_str()] {
            assert!(wrong.parse::<Thumbprint>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_is_known_by_either_digest() {
        let seen = SeenCertificate::of(&CertificateDer::from(b"certificate".to_vec()));
        assert!(seen.has(&seen.sha1) && seen.has(&seen.sha256));
        assert!(!seen.has(&Thumbprint::Sha1([0; 20])));
        let told = TrustError::Pinned { pinned: Thumbprint::Sha1([0; 20]), seen: seen.clone() }.to_string();
        assert!(told.contains(&seen.sha1.to_string()) && told.contains("00:00"), "{told}");
    }

    #[test]
    fn the_refusal_is_found_inside_of_what_wraps_it() {
        let seen = SeenCertificate::of(&CertificateDer::from(b"x".to_vec()));
        let trust = TrustError::Authority { why: "expired".to_owned(), seen };
        let tls =
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(trust.clone()))));
        let wrapped = std::io::Error::other(std::io::Error::other(tls));
        assert_eq!(refusal(&wrapped), Some(trust));
        assert_eq!(refusal(&std::io::Error::other("else")), None);
    }

    #[test]
    fn a_ca_file_without_certificates_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "no certificate\n").unwrap();
        for path in [path, dir.path().join("gone")] {
            assert_eq!(tls(&Trust::CaFile(path)).map(|_| ()).unwrap_err().kind, Kind::Refused);
        }
    }
}
