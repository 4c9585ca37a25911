//! The TLS of movers: TLS 1.3, a certificate on both sides, and the name of a mover in it.
//!
//! Rule: a peer is a mover by the URI `warmd://mover/NAME` in its certificate, which the one CA has signed.
//! The name of a host counts for nothing: movers have addresses that change.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::error::WireError;

/// What a mover's certificate names it by, before its name.
const MOVER: &str = "warmd://mover/";
/// The protocol inside, so that a port can be shared.
const ALPN: &[u8] = b"warmd-wire/1";

/// What a mover shows to others, and whom it believes.
#[derive(Debug)]
pub struct TlsIdentity {
    /// Its certificate, and those between it and the CA.
    pub certificates: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// The CA of all movers.
    pub ca: CertificateDer<'static>,
}

impl TlsIdentity {
    fn roots(&self) -> Result<Arc<RootCertStore>, WireError> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.ca.clone())
            .map_err(|error| WireError::Tls("the CA cannot be used".to_owned(), error))?;
        Ok(Arc::new(roots))
    }

    /// The settings of the side that serves.
    pub fn server(&self) -> Result<Arc<ServerConfig>, WireError> {
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots()?, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| {
            WireError::Tls("the CA cannot be used".to_owned(), Error::General(error.to_string()))
        })?;
        let settings = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(verifier)
                    .with_single_cert(self.certificates.clone(), self.key.clone_key())
            });
        let mut settings = settings.map_err(own)?;
        settings.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection's certificate is checked: no session is resumed.
        settings.send_tls13_tickets = 0;
        Ok(Arc::new(settings))
    }

    /// The settings of the side that dials the mover of this name.
    pub fn client(&self, mover: &str) -> Result<Arc<ClientConfig>, WireError> {
        let provider = provider();
        let roots = self.roots()?;
        let verifier = MoverVerifier { provider: Arc::clone(&provider), roots, mover: mover.to_owned() };
        let settings = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .and_then(|builder| {
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(verifier))
                    .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            });
        let mut settings = settings.map_err(own)?;
        settings.alpn_protocols = vec![ALPN.to_vec()];
        settings.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(settings))
    }
}

fn own(error: Error) -> WireError {
    WireError::Tls("the mover's own certificate cannot be used".to_owned(), error)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The name of the mover whose certificate this is.
pub(super) fn mover_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut movers = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(MOVER),
        _ => None,
    });
    // A certificate is one mover's.
    let (first, None) = (movers.next()?, movers.next()) else { return None };
    (!first.is_empty()).then(|| first.to_owned())
}

/// Accepts the certificate of one mover alone.
#[derive(Debug)]
struct MoverVerifier {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    mover: String,
}

impl ServerCertVerifier for MoverVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        if mover_of(end_entity).is_some_and(|name| name == self.mover) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidForName))
    }

    // Only TLS 1.3 is offered.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether TLS itself refused, and not the network: a certificate of either side, or its protocol.
pub(super) fn refusal(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// What a refusal by TLS means, and what to do.
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(wrong) => {
            let what = match wrong {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "has expired: it must be renewed"
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is not valid yet: compare the clocks of the two hosts"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "is another mover's: check the address of the mover"
                }
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "is not signed by the CA of the movers: the peer must join this daemon"
                }
                CertificateError::Revoked => "is revoked: the peer must join again",
                _ => "cannot be used",
            };
            format!("the peer's certificate {what} ({error})")
        }
        Error::NoCertificatesPresented => "the peer has no certificate: it is no mover".to_owned(),
        Error::AlertReceived(_) => {
            format!("the peer refused this mover's certificate; the peer's log says why ({error})")
        }
        other => format!("TLS failed: {other}"),
    }
}
