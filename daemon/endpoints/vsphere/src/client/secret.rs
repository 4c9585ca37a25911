//! Passwords.
//!
//! Rule: a password comes from a file, is never printed, and goes nowhere but into a login.

use std::{fmt, path::Path};

use crate::error::{Kind, Result, VsphereError};

/// No password is longer.
const MAX_BYTES: u64 = 4096;

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Password {
    /// The first line of the file, as nbdkit reads it too.
    pub async fn read(path: &Path) -> Result<Self> {
        let context = || format!("reading the password in {}", path.display());
        let refused = |why: String| VsphereError::new(Kind::Refused, context(), why);
        let length = tokio::fs::metadata(path).await.map_err(|error| refused(error.to_string()))?.len();
        if length > MAX_BYTES {
            return Err(refused(format!("it has {length} bytes: a password file has one line")));
        }
        let text = tokio::fs::read_to_string(path).await.map_err(|error| refused(error.to_string()))?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(refused("its first line is empty: put the password there".to_owned()));
        }
        Ok(Self(line.to_owned()))
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_line_is_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        for (text, wanted) in [("s3cret\n", "s3cret"), ("a b \r\nmore\n", "a b "), ("x", "x")] {
            std::fs::write(&path, text).unwrap();
            let secret = Password::read(&path).await.unwrap();
            assert_eq!(secret.expose(), wanted);
            assert!(!format!("{secret:?}").contains(wanted));
        }
        for text in [String::new(), "\nx".to_owned(), "x".repeat(5000)] {
            std::fs::write(&path, text).unwrap();
            let error = Password::read(&path).await.unwrap_err();
            assert_eq!(error.kind, Kind::Refused);
        }
        let gone = Password::read(&dir.path().join("gone")).await.unwrap_err().to_string();
        assert!(gone.contains("gone"), "{gone}");
    }
}
