//! Movers of one CA for tests, and a server of one disk on loopback.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod proxy;

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, string::Ia5String};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{net::TcpListener, task::JoinHandle};
use warmd_cbt::{buffer::BufferPool, disk::ReadDisk};
use warmd_wire::{Exports, MoverExport, RemoteOptions, ServerOptions, TlsIdentity, serve};

pub(crate) const SECRET: [u8; 32] = [42; 32];

/// A CA, and whom it signs.
pub(crate) struct Movers {
    ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Movers {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "movers");
        let ca = params.self_signed(&key).unwrap().der().clone();
        Self { ca, issuer: Issuer::new(params, key) }
    }

    /// The identity of the mover of this name; of no mover for `operator`.
    pub(crate) fn identity(&self, name: &str) -> TlsIdentity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if name != "operator" {
            let uri = Ia5String::try_from(format!("warmd://mover/{name}")).unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsIdentity { certificates: vec![certificate], key, ca: self.ca.clone() }
    }

    /// The mover `source` serves this disk to `target` as `disk`.
    pub(crate) async fn serve(&self, disk: Arc<dyn ReadDisk>) -> TestServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let exports = Exports::default();
        let (id, reader) = ("disk".to_owned(), "target".to_owned());
        exports.add(MoverExport { id, secret: SECRET, reader, disk });
        let pool = BufferPool::new(32, 1 << 20);
        let tls = self.identity("source").server().unwrap();
        let options = ServerOptions { pool: pool.clone(), connections: 16 };
        let task = tokio::spawn(serve(listener, tls, exports.clone(), options));
        TestServer { address, exports, pool, task }
    }
}

pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) exports: Exports,
    pub(crate) pool: BufferPool,
    task: JoinHandle<()>,
}

impl TestServer {
    /// What this mover reads the disk with.
    pub(crate) fn options(&self, movers: &Movers, reader: &str) -> RemoteOptions {
        let tls = movers.identity(reader).client("source").unwrap();
        RemoteOptions::new(self.address.to_string(), tls, "disk", SECRET)
    }

    /// Ends as a mover that is killed.
    pub(crate) fn kill(&self) {
        self.task.abort();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
