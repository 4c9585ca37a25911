//! The kinds of endpoints that a configuration can name, opened by their settings.
//!
//! Rule: this is the one place that names every kind.

use std::sync::Arc;

use serde::Deserialize;
use warmd_core::{
    sources::{Source, SourceError},
    targets::{Target, TargetError},
};

/// A source's settings, as in the daemon's configuration: `kind` and what that kind needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SourceSettings {
    Libvirt(warmd_endpoint_libvirt::source::LibvirtSourceSettings),
    Vsphere(Box<warmd_vsphere::Settings>),
}

impl SourceSettings {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Libvirt(_) => "libvirt",
            Self::Vsphere(_) => "vsphere",
        }
    }

    /// Where it is, for display, without secrets.
    pub fn address(&self) -> String {
        match self {
            Self::Libvirt(settings) => settings.uri.clone(),
            Self::Vsphere(settings) => settings.url.clone(),
        }
    }

    /// The source by these settings, which are checked but not tried: [`Source::check`] does that. `name` is
    /// what the configuration calls it.
    pub fn open(&self, name: &str) -> Result<Arc<dyn Source>, SourceError> {
        let named = |error: SourceError| SourceError {
            context: format!("source {name}: {}", error.context),
            ..error
        };
        Ok(match self {
            Self::Libvirt(settings) => {
                Arc::new(warmd_endpoint_libvirt::source::LibvirtSource::new(settings).map_err(named)?)
            }
            Self::Vsphere(settings) => {
                Arc::new(warmd_vsphere::source::VsphereSource::new(settings).map_err(named)?)
            }
        })
    }
}

/// A target's settings, as in the daemon's configuration: `kind` and what that kind needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TargetSettings {
    Libvirt(warmd_endpoint_libvirt::target::LibvirtTargetSettings),
    Disk(warmd_endpoint_disk::DiskTargetSettings),
}

impl TargetSettings {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Libvirt(_) => "libvirt",
            Self::Disk(_) => "disk",
        }
    }

    /// Where it is, for display, without secrets.
    pub fn address(&self) -> String {
        match self {
            Self::Libvirt(settings) => settings.uri.clone(),
            Self::Disk(settings) => settings.directory.display().to_string(),
        }
    }

    /// The target by these settings, which are checked but not tried: [`Target::check`] does that. `name` is
    /// what the configuration calls it. Must be called within a tokio runtime.
    pub fn open(&self, name: &str) -> Result<Arc<dyn Target>, TargetError> {
        let named = |error: TargetError| TargetError {
            context: format!("target {name}: {}", error.context),
            ..error
        };
        Ok(match self {
            Self::Libvirt(settings) => {
                Arc::new(warmd_endpoint_libvirt::target::LibvirtTarget::new(settings).map_err(named)?)
            }
            Self::Disk(settings) => Arc::new(warmd_endpoint_disk::DiskTarget::new(settings).map_err(named)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use warmd_core::{sources::SourceErrorKind, targets::TargetErrorKind};

    #[derive(Debug, Deserialize)]
    struct File {
        target: TargetSettings,
    }

    fn settings(text: &str) -> Result<TargetSettings, String> {
        toml::from_str(text).map(|file: File| file.target).map_err(|error| error.to_string())
    }

    const VSPHERE: &str = "[[source]]\nname = 'old'\nkind = 'vsphere'\nurl = 'https://vcenter.example'\n\
                           user = 'warmd@vsphere.local'\npassword_file = '/etc/warmd/vcenter'\n";

    #[tokio::test]
    async fn a_vcenter_is_read_and_opened_as_part_of_a_configuration() {
        let thumbprint = format!("thumbprint = '{}'\n", "AB:".repeat(19) + "AB");
        let text = format!(
            "{VSPHERE}{thumbprint}enable_change_tracking = true\n[source.reader]\nlibdir = '/opt/vddk'\n\
             [source.capacity]\ndisks_per_host = 6\n[[source.hosts]]\nname = 'esx1.example'\nuser = 'root'\n\
             password_file = '/etc/warmd/esx1'\n{thumbprint}"
        );
        let config = Config::parse(&text, "warmd.toml").unwrap();
        let source = &config.sources["old"].settings;
        assert_eq!((source.kind(), source.address().as_str()), ("vsphere", "https://vcenter.example"));
        source.open("old").map(drop).unwrap();
        for (wrong, word) in [
            (text.replace("enable_change_tracking", "enable_tracking"), "enable_tracking"),
            (text.replace("disks_per_host", "disks_per_guest"), "disks_per_guest"),
            (text.replace("libdir", "lib_dir"), "lib_dir"),
            (text.replace("user = 'warmd@vsphere.local'\n", ""), "user"),
        ] {
            let error = Config::parse(&wrong, "warmd.toml").map(drop).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let config = Config::parse(VSPHERE, "warmd.toml").unwrap();
        let error = config.sources["old"].settings.open("old").err().unwrap();
        let text = error.to_string();
        assert!(error.kind == SourceErrorKind::Refused && text.contains("source old"), "{text}");
        assert!(text.contains("thumbprint"), "{text}");
    }

    #[tokio::test]
    async fn settings_are_read_and_opened() {
        for (text, kind, place) in [
            ("[target]\nkind = 'libvirt'\ndirectory = '/d'", "libvirt", "qemu:///system"),
            (
                "[target]\nkind = 'libvirt'\nuri = 'qemu:///session'\npool = 'p'\ndomain_type = 'qemu'\n\
                 disk_bus = 'keep'",
                "libvirt",
                "qemu:///session",
            ),
            ("[target]\nkind = 'disk'\ndirectory = '/d'", "disk", "/d"),
            ("[target]\nkind = 'disk'\ndirectory = '/d'\nstorages = { fast = '/f' }", "disk", "/d"),
            (
                "[target]\nkind = 'libvirt'\ndirectory = '/d'\n[target.storages]\nfast = '/f'\nslow = '/s'",
                "libvirt",
                "qemu:///system",
            ),
            (
                "[target]\nkind = 'disk'\ndirectory = '/d'\n\
                 [target.provisioner]\naddress = 'unix:/p'\ndeadline = '90s'",
                "disk",
                "/d",
            ),
        ] {
            let settings = settings(text).unwrap();
            assert_eq!((settings.kind(), settings.address().as_str()), (kind, place));
            assert!(settings.open("x").is_ok(), "{text}");
        }
    }

    #[tokio::test]
    async fn wrong_settings_are_refused() {
        for text in [
            "[target]\nkind = 'tape'",
            "[target]\nkind = 'disk'",
            "[target]\nkind = 'disk'\ndirectory = '/d'\nsize = 1",
            "[target]\nkind = 'libvirt'\ndirectory = '/d'\ndomain_type = 'xen'",
            "[target]\nkind = 'disk'\ndirectory = '/d'\n[target.provisioner]\naddress = 'unix:/p'\nretries = 3",
        ] {
            assert!(settings(text).is_err(), "{text}");
        }
        let relative = settings("[target]\nkind = 'disk'\ndirectory = 'd'").unwrap();
        let error = relative.open("cheap").err().unwrap();
        assert!(
            error.kind == TargetErrorKind::Refused && error.to_string().contains("target cheap"),
            "{error}"
        );
    }
}
