//! The Unix socket: created so that at no moment any user but its owner may open it.
//!
//! Rule: a socket on which a process answers is never taken from it, and only our own is removed at the end.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
};

use nix::unistd::Group;
use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};
use tokio::net::{UnixListener, UnixStream};

use super::{ApiError, UnixListen};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that listens; dropping it removes the file.
#[derive(Debug)]
pub(super) struct OwnSocket {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

/// Listens at `path`; a stale socket there is replaced.
pub(super) async fn bind_unix(listen: &UnixListen) -> Result<(UnixListener, OwnSocket), ApiError> {
    let path = listen.path.as_path();
    let group = listen.group.as_deref().map(group).transpose()?;
    make_directory(path, group)?;
    clear(path).await?;
    let listener = private_listener(path).map_err(doing("listen on the socket", path))?;
    let listener = UnixListener::from_std(listener).map_err(doing("listen on the socket", path))?;
    // The socket got its mode before its name; kernels that do not keep it need a second call.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(doing("set the mode of the socket", path))?;
    if group.is_some() {
        open_to(path, group, 0o660)?;
    }
    let meta = fs::symlink_metadata(path).map_err(doing("look at the socket", path))?;
    let own = OwnSocket { path: path.to_owned(), device_and_inode: (meta.dev(), meta.ino()) };
    Ok((listener, own))
}

fn make_directory(path: &Path, group: Option<u32>) -> Result<(), ApiError> {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => {
            let is_new = !directory.exists();
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(doing("make the socket's directory", directory))?;
            if is_new && group.is_some() {
                open_to(directory, group, 0o750)?;
            }
            judge_directory(directory, group)
        }
        _ => Ok(()),
    }
}

/// Lets the group in: first it gets the group, then the mode.
fn open_to(path: &Path, group: Option<u32>, mode: u32) -> Result<(), ApiError> {
    std::os::unix::fs::chown(path, None, group).map_err(doing("give the group to", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(doing("set the mode of", path))
}

/// The number of the group with this name.
fn group(name: &str) -> Result<u32, ApiError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(ApiError::NoGroup { group: name.to_owned() }),
        Err(error) => Err(ApiError::Io { doing: format!("find the group {name}"), cause: error.into() }),
    }
}

/// Another user who can rename its files could put another socket in place of ours. The group must be able to
/// come to the socket.
fn judge_directory(directory: &Path, group: Option<u32>) -> Result<(), ApiError> {
    let meta = fs::metadata(directory).map_err(doing("look at the socket's directory", directory))?;
    let (mode, me, shown) = (meta.mode() & 0o7777, rustix::process::geteuid().as_raw(), directory.display());
    let why = if meta.uid() != me && meta.uid() != 0 {
        format!("it belongs to user {}, and warmd runs as user {me}: chown {me} {shown}", meta.uid())
    } else if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        format!("others can write into it (mode {mode:04o}): chmod go-w {shown}")
    } else if group.is_some_and(|group| mode & 0o001 == 0 && (meta.gid() != group || mode & 0o010 == 0)) {
        format!(
            "the members of `group` cannot enter it (mode {mode:04o}): chmod a+x {shown}, or under systemd \
             RuntimeDirectoryMode=0711"
        )
    } else {
        return Ok(());
    };
    let cause = io::Error::new(io::ErrorKind::PermissionDenied, why);
    Err(doing("use the socket's directory", directory)(cause))
}

/// Removes a socket that no process listens on.
async fn clear(path: &Path) -> Result<(), ApiError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(doing("look at the socket", path)(cause)),
    };
    if !meta.file_type().is_socket() {
        return Err(ApiError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a stale socket");
            fs::remove_file(path).map_err(doing("remove the stale socket", path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog means a listener too.
        Ok(_) => Err(ApiError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ApiError::InUse { path: path.to_owned() })
        }
        Err(cause) => Err(doing("find out whether a process listens on the socket", path)(cause)),
    }
}

/// A bound socket file takes its mode from the socket: set before `bind`, there is no moment with a wider
/// one.
fn private_listener(path: &Path) -> io::Result<StdListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(StdListener::from(socket))
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_and_inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

fn doing(what: &str, path: &Path) -> impl FnOnce(io::Error) -> ApiError {
    let doing = format!("{what} {}", path.display());
    move |cause| ApiError::Io { doing, cause }
}
