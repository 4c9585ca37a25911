//! Secrets: named in the configuration, never written in it.
//!
//! Rule: a secret's contents are in no log, no error and no `Debug`.

use std::{env, fmt, fs::File, io, io::Read, path::PathBuf};

use serde::Deserialize;

const MAX_SECRET: u64 = 64 << 10;

/// Where a secret is: `{ file = "/path" }` or `{ env = "NAME" }`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SecretRef {
    /// The contents of a file, without the newline at its end.
    File(PathBuf),
    /// An environment variable of the daemon.
    Env(String),
}

/// A secret's contents.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The contents, for the one call that needs them.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a secret cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret in {path}: {cause}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the secret in {place} {what}")]
    Unusable { place: String, what: &'static str },
}

impl SecretRef {
    /// Gets the secret, as it is now.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let unusable = |what| SecretError::Unusable { place: self.to_string(), what };
        let bytes = match self {
            Self::File(path) => {
                let mut bytes = Vec::new();
                File::open(path)
                    .and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut bytes))
                    .map_err(|cause| SecretError::Read { path: path.clone(), cause })?;
                bytes
            }
            Self::Env(name) => match env::var_os(name) {
                Some(value) => value.into_encoded_bytes(),
                None => return Err(unusable("is not set")),
            },
        };
        if bytes.len() as u64 > MAX_SECRET {
            return Err(unusable("has more than 64 KiB"));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| unusable("is no UTF-8 text"))?;
        if matches!(self, Self::File(_)) {
            let kept = text.trim_end_matches(['\r', '\n']).len();
            text.truncate(kept);
        }
        if text.is_empty() {
            return Err(unusable("is empty"));
        }
        Ok(Secret(text))
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        password: SecretRef,
    }

    fn parse(value: &str) -> Result<SecretRef, String> {
        toml::from_str(&format!("password = {value}"))
            .map(|holder: Holder| holder.password)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_named_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "open sesame\n").unwrap();
        let reference = parse(&format!("{{ file = {path:?} }}")).unwrap();
        let secret = reference.read().unwrap();
        assert_eq!(secret.reveal(), "open sesame");
        assert!(!format!("{secret:?} {reference:?}").contains("sesame"));

        std::fs::write(&path, b"sesame \xff").unwrap();
        let error = reference.read().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("sesame"), "{error:?}");
        std::fs::write(&path, "\n").unwrap();
        assert!(reference.read().unwrap_err().to_string().contains("is empty"));
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(reference.read().unwrap_err().to_string().contains("64 KiB"));
        std::fs::remove_file(&path).unwrap();
        assert!(reference.read().unwrap_err().to_string().contains("password"));
    }

    #[test]
    fn a_secret_from_the_environment() {
        let Ok(secret) = parse(r#"{ env = "PATH" }"#).unwrap().read() else { panic!("PATH is set") };
        assert!(!secret.reveal().is_empty());
        let error = parse(r#"{ env = "WARMD_NO_SUCH_VARIABLE" }"#).unwrap().read().unwrap_err();
        assert_eq!(error.to_string(), "the secret in environment variable WARMD_NO_SUCH_VARIABLE is not set");
    }

    #[test]
    fn a_secret_written_out_is_refused() {
        for value in [r#""hunter2""#, r#"{ value = "hunter2" }"#, r#"{ file = "/a", env = "B" }"#, "7"] {
            assert!(parse(value).is_err(), "{value}");
        }
    }
}
