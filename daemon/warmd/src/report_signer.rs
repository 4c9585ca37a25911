//! Signs reports with the key beside the state.
//!
//! Rule: a key that cannot be used stops the daemon before the state is upgraded, and a key is made only
//! beside a state that is whole.

use std::path::PathBuf;

use warmd_core::{
    model::report::Report,
    signed_report::{ReportKeyText, SignReports, SignedReport},
};
use warmd_report::signing::{self, KEY_FILE, ReportKey};
use warmd_store::Store;

/// Opens the state in `dir` and the key beside it, and notes the key in the state.
pub async fn open_state(dir: PathBuf) -> anyhow::Result<(Store, ReportKey)> {
    let open = move || -> anyhow::Result<_> {
        let found = ReportKey::load(&dir)?;
        let store = Store::open(&dir)?;
        let is_new = found.is_none();
        let key = found.map_or_else(|| ReportKey::make(&dir), Ok)?;
        Ok((store, key, is_new))
    };
    let (store, key, is_new) = tokio::task::spawn_blocking(open).await??;
    store.note_report_key(key.public().to_string(), KEY_FILE, is_new).await?;
    Ok((store, key))
}

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

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    async fn key(dir: &Path) -> anyhow::Result<String> {
        let (store, key) = open_state(dir.to_owned()).await?;
        let noted = store.report_keys().await?.pop().map(|row| row.key);
        store.close().await?;
        assert_eq!(noted, Some(key.public().to_string()));
        Ok(key.public().to_string())
    }

    #[tokio::test]
    async fn a_key_that_others_can_read_keeps_the_state_closed() {
        let dir = tempfile::tempdir().unwrap();
        let first = key(dir.path()).await.unwrap();
        let file = dir.path().join(KEY_FILE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::remove_file(dir.path().join(warmd_store::FILE_NAME)).unwrap();
        let error = key(dir.path()).await.unwrap_err();
        assert!(error.to_string().contains("mode 0644"), "{error}");
        assert!(!dir.path().join(warmd_store::FILE_NAME).exists(), "the state was touched");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(key(dir.path()).await.unwrap(), first);
    }

    #[tokio::test]
    async fn no_key_is_made_beside_a_state_that_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(warmd_store::FILE_NAME), "a letter").unwrap();
        key(dir.path()).await.unwrap_err();
        assert!(!dir.path().join(KEY_FILE).exists());
    }
}
