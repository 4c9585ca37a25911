//! The environment of libguestfs' tools: which QEMU runs their VM (the appliance), with how much memory, and
//! what becomes of discarded blocks.
//!
//! Rule: it works under the daemon's hardened unit and without privileges, as far as that is possible:
//! QEMU's translator runs without pages that can be written and executed, and the tools write only to the
//! conversion's folder and the cache. What the daemon's environment sets wins.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use crate::tools;

/// Memory of the appliance in MiB; virt-v2v itself takes twice as much.
const MEMORY: &str = "384";

/// The folder of temporary files within the conversion's folder.
const TEMPORARY: &str = "tmp";

/// The wrapper of QEMU without KVM. A page is never writable and executable at once, and the translator's
/// cache is bounded: by default it takes 1 GiB.
const QEMU: &str = r#"#!/bin/bash
args=() translated=
for arg; do
    case $arg in
        accel=tcg*) args+=("graphics=off") translated=1 ;;
        accel=kvm:tcg*) if [[ -w /dev/kvm ]]; then args+=("$arg"); else args+=("graphics=off") translated=1; fi ;;
        *) args+=("$arg") ;;
    esac
done
exec @QEMU@ ${translated:+-accel tcg,split-wx=on,tb-size=128} "${args[@]}"
"#;

/// The wrapper of qemu-nbd. virt-v2v trims the guest's file systems at its end; without this wrapper all
/// their free space would be written to the overlay as zeroes, and count as changed.
const NBD: &str = r#"#!/bin/bash
args=()
for arg; do case $arg in --discard=*) ;; *) args+=("$arg") ;; esac; done
exec @NBD@ --discard=ignore "${args[@]}"
"#;

/// The environment in which a run's tools are started.
#[derive(Debug)]
pub(crate) struct Appliance {
    path: OsString,
    hypervisor: Option<PathBuf>,
    temporary: PathBuf,
    cache: PathBuf,
}

impl Appliance {
    /// Writes the wrappers into `folder`, which is for this run alone, and becomes the working directory.
    pub(crate) fn prepare(folder: &Path) -> io::Result<Self> {
        let programs = folder.join("bin");
        fs::create_dir_all(&programs)?;
        fs::create_dir_all(folder.join(TEMPORARY))?;
        env::set_current_dir(folder)?;
        let temporary = short_way_to(TEMPORARY);
        let mut hypervisor = None;
        let qemu = ["qemu-system-x86_64", "qemu-kvm"].into_iter().find_map(tools::find);
        let qemu = qemu.or_else(|| Some(PathBuf::from("/usr/libexec/qemu-kvm")).filter(|path| path.exists()));
        if let Some(qemu) = qemu {
            hypervisor = Some(write(&programs.join("qemu"), &wrapper(QEMU, "@QEMU@", &qemu))?);
        }
        if let Some(nbd) = tools::find(tools::QEMU_NBD) {
            write(&programs.join(tools::QEMU_NBD), &wrapper(NBD, "@NBD@", &nbd))?;
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([programs].into_iter().chain(env::split_paths(&path)));
        let cache = env::var_os("CACHE_DIRECTORY").map_or_else(|| temporary.clone(), PathBuf::from);
        Ok(Self { path: path.map_err(io::Error::other)?, hypervisor, temporary, cache })
    }

    /// A program with this environment, without input.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut default = |name: &str, value: &OsStr| {
            if env::var_os(name).is_none() {
                command.env(name, value);
            }
        };
        // libvirt would start the appliance where the daemon cannot end it.
        default("LIBGUESTFS_BACKEND", OsStr::new("direct"));
        default("LIBGUESTFS_MEMSIZE", OsStr::new(MEMORY));
        default("LIBGUESTFS_CACHEDIR", self.cache.as_os_str());
        if let Some(hypervisor) = &self.hypervisor {
            default("LIBGUESTFS_HV", hypervisor.as_os_str());
        }
        command.env("PATH", &self.path).env("TMPDIR", &self.temporary).stdin(Stdio::null());
        command
    }
}

/// A path of the working directory that is short wherever that is. The tools create sockets there, whose
/// paths have at most 107 bytes; a replica's folder alone can take as many.
fn short_way_to(name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/cwd", process::id())).join(name)
}

fn wrapper(text: &str, mark: &str, program: &Path) -> String {
    let quoted = program.to_string_lossy().replace('\'', r"'\''");
    text.replace(mark, &format!("'{quoted}'"))
}

fn write(path: &Path, text: &str) -> io::Result<PathBuf> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What the wrapper passes on.
    fn passes(text: &str, mark: &str, args: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder.path().join("x"), &wrapper(text, mark, Path::new("/bin/echo"))).unwrap();
        let out = Command::new("bash").arg(path).args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn a_translator_gets_no_page_to_write_and_execute() {
        let args = ["-machine", "accel=tcg", "-m", "a b"];
        assert_eq!(
            passes(QEMU, "@QEMU@", &args),
            "-accel tcg,split-wx=on,tb-size=128 -machine graphics=off -m a b"
        );
        assert_eq!(passes(QEMU, "@QEMU@", &["-version"]), "-version");
    }

    #[test]
    fn a_socket_in_the_deepest_folder_has_a_short_path() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100));
        fs::create_dir(&deep).unwrap();
        let appliance = Appliance::prepare(&deep).unwrap();
        UnixListener::bind(appliance.temporary.join("socket")).unwrap();
        assert!(deep.join("tmp/socket").exists());
    }

    #[test]
    fn what_virt_v2v_discards_stays() {
        let args = ["-t", "--discard=unmap", "--socket", "/s x"];
        assert_eq!(passes(NBD, "@NBD@", &args), "--discard=ignore -t --socket /s x");
    }
}
