//! The key that signs reports, and its file.
//!
//! Rule: it is created once, whole or not at all, and only its owner can read it. A key that others could
//! have read is no evidence: it is refused with an error, never used and never replaced.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rustix::rand::{GetRandomFlags, getrandom};

use super::hex;

/// The key's name in the state directory.
pub const KEY_FILE: &str = "report.key";
/// What its only line begins with; the secret follows in hexadecimal.
const MARK: &str = "warmd-report-key-1 ";
/// An Ed25519 public key in DER (RFC 8410) is this and its 32 bytes.
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Signs reports.
#[derive(Clone)]
pub struct ReportKey(SigningKey);

/// Checks signatures; 32 bytes, in hexadecimal where it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub(super) VerifyingKey);

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {what} the report key {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// Another user may know it.
    #[error(
        "the report key {path} {what}: any process that read it could sign reports; if none did, give it to warmd's user with \
         mode 0600, else move it away, and a new one is made at the next start"
    )]
    Exposed { path: PathBuf, what: String },
    /// The file has other content.
    #[error(
        "the report key {path} cannot be used ({what}): restore it from a backup, or move it away, and a new one is \
         made at the next start"
    )]
    Broken { path: PathBuf, what: &'static str },
}

impl ReportKey {
    /// The key in `dir`, if there is one. The caller holds the directory's lock.
    pub fn load(dir: &Path) -> Result<Option<Self>, KeyError> {
        read(&dir.join(KEY_FILE))
    }

    /// Creates the key in `dir`, where there is none, durably and for its owner alone. The caller holds the
    /// directory's lock.
    pub fn make(dir: &Path) -> Result<Self, KeyError> {
        make(dir, &dir.join(KEY_FILE))
    }

    /// A key from its secret.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// What checks its signatures.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(super) fn sign(&self, message: &[u8]) -> Signature {
        self.0.sign(message)
    }
}

impl fmt::Debug for ReportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReportKey({})", self.public())
    }
}

impl PublicKey {
    /// From 64 lower-case hexadecimal digits; `None` if they are no key.
    pub fn from_hex(text: &str) -> Option<Self> {
        let key = VerifyingKey::from_bytes(&hex::decode(text)?).ok()?;
        // Under a weak key a signature fits more than one message.
        (!key.is_weak()).then_some(Self(key))
    }

    /// From a user's text, which holds it in hexadecimal of either case or in PEM.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        let Some(body) = text.strip_prefix("-----BEGIN PUBLIC KEY-----") else {
            return Self::from_hex(&text.to_ascii_lowercase());
        };
        let body: String = body.strip_suffix("-----END PUBLIC KEY-----")?.split_whitespace().collect();
        let der = STANDARD.decode(body).ok()?;
        Self::from_hex(&hex::encode(der.strip_prefix(&SPKI)?))
    }

    /// In PEM, as OpenSSL reads it.
    pub fn to_pem(self) -> String {
        let der = [SPKI.as_slice(), self.0.as_bytes()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

fn read(path: &Path) -> Result<Option<ReportKey>, KeyError> {
    // No link: what it leads to may be another user's tomorrow.
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(doing("read", path)(cause)),
    };
    let meta = file.metadata().map_err(doing("look at", path))?;
    let exposed = |what: String| KeyError::Exposed { path: path.to_owned(), what };
    let broken = |what| KeyError::Broken { path: path.to_owned(), what };
    if !meta.is_file() {
        return Err(broken("it is no file"));
    }
    let (mode, owner, own) = (meta.mode() & 0o7777, meta.uid(), rustix::process::geteuid().as_raw());
    if mode & 0o077 != 0 {
        return Err(exposed(format!("has mode {mode:04o}, which lets others in")));
    }
    if owner != own {
        return Err(exposed(format!("belongs to user {owner}, and warmd runs as {own}")));
    }
    let mut text = String::new();
    match (&mut file).take(256).read_to_string(&mut text) {
        Ok(_) => {}
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => return Err(broken("it is no text")),
        Err(cause) => return Err(doing("read", path)(cause)),
    }
    let secret = text.strip_prefix(MARK).and_then(|line| hex::decode(line.strip_suffix('\n')?));
    let secret = secret.ok_or_else(|| broken("it does not hold what warmd writes there"))?;
    Ok(Some(ReportKey::from_secret(&secret)))
}

fn make(dir: &Path, path: &Path) -> Result<ReportKey, KeyError> {
    let mut secret = [0; 32];
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = secret.get_mut(filled..) {
        filled += match getrandom(rest, GetRandomFlags::empty()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(doing("make", path)(errno.into())),
        };
    }
    // Under its own name only when it is whole and durable.
    let draft = dir.join("report.key.new");
    match fs::remove_file(&draft) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(doing("make", &draft)(cause)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(doing("make", &draft))?;
    writeln!(file, "{MARK}{}", hex::encode(&secret)).map_err(doing("write", &draft))?;
    file.sync_all().map_err(doing("write", &draft))?;
    fs::rename(&draft, path).map_err(doing("make", path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(doing("make", path))?;
    let key = ReportKey::from_secret(&secret);
    tracing::info!(key = %key.public(), path = %path.display(), "made the key that signs reports");
    Ok(key)
}

fn doing(what: &'static str, path: &Path) -> impl Fn(io::Error) -> KeyError {
    move |cause| KeyError::Io { what, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn load_or_make(dir: &Path) -> Result<ReportKey, KeyError> {
        ReportKey::load(dir)?.map_or_else(|| ReportKey::make(dir), Ok)
    }

    #[test]
    fn it_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        // What a crash leaves while a key is created.
        fs::write(dir.path().join("report.key.new"), "warmd-re").unwrap();
        let made = load_or_make(dir.path()).unwrap();
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(load_or_make(dir.path()).unwrap().public(), made.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(load_or_make(other.path()).unwrap().public(), made.public());
        assert!(!format!("{made:?}").contains(&hex::encode(made.0.as_bytes())));
    }

    #[test]
    fn exposed_or_broken_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        load_or_make(dir.path()).unwrap();
        let whole = fs::read(&path).unwrap();
        let refused = || load_or_make(dir.path()).unwrap_err().to_string();
        for mode in [0o640, 0o604, 0o660, 0o610, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(refused().contains(&format!("mode 0{mode:o}")), "{}", refused());
        }
        assert_eq!(fs::read(&path).unwrap(), whole);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for half in [&whole[..0], &whole[..40], &whole[..whole.len() - 1], b"\xff\xff".as_slice()] {
            fs::write(&path, half).unwrap();
            assert!(refused().contains("cannot be used"), "{}", refused());
            assert_eq!(fs::read(&path).unwrap(), half);
        }
        fs::remove_file(&path).unwrap();
        fs::write(dir.path().join("elsewhere"), &whole).unwrap();
        symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(refused().contains("cannot read"), "{}", refused());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refused().contains("no file"), "{}", refused());
    }

    #[test]
    fn a_public_key_is_read_as_it_is_written() {
        let key = ReportKey::from_secret(&[7; 32]).public();
        assert_eq!(PublicKey::from_text(&format!("{key}\n")), Some(key));
        assert_eq!(PublicKey::from_text(&key.to_pem()), Some(key));
        let shouted = key.to_string().to_ascii_uppercase();
        assert_eq!((PublicKey::from_text(&shouted), PublicKey::from_hex(&shouted)), (Some(key), None));
        for wrong in ["", "00", &"0".repeat(64), &key.to_pem().replace("MCowBQ", "MCowBR")] {
            assert_eq!(PublicKey::from_text(wrong), None, "{wrong}");
        }
    }
}
