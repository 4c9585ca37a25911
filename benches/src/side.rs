//! A disk as the peers' loops see it: a file or an NBD export, one blocking call at a time.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};

use crate::client::BenchClient;

/// Where a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BenchSide {
    File(PathBuf),
    /// An export on a Unix socket.
    Export {
        socket: PathBuf,
        name: String,
    },
}

impl BenchSide {
    /// The path of a file, or an export's URI, as all programs take it.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Export { socket, name } => format!("nbd+unix:///{name}?socket={}", socket.display()),
        }
    }

    /// Parses the output of [`BenchSide::name`].
    pub fn parse(name: &str) -> Self {
        let export = name.strip_prefix("nbd+unix:///").and_then(|rest| rest.split_once("?socket="));
        match export {
            Some((name, socket)) => Self::Export { socket: socket.into(), name: name.to_owned() },
            None => Self::File(name.into()),
        }
    }
}

/// An open disk.
#[derive(Debug)]
pub enum Side {
    File(File),
    Export(BenchClient),
}

impl Side {
    pub fn open(place: &BenchSide) -> Result<Self> {
        Ok(match place {
            BenchSide::File(path) => Self::File(open_file(path)?),
            BenchSide::Export { socket, name } => Self::Export(BenchClient::open(socket, name)?),
        })
    }

    /// In bytes.
    pub fn size(&self) -> Result<u64> {
        Ok(match self {
            Self::File(file) => file.metadata()?.len(),
            Self::Export(client) => client.size(),
        })
    }

    pub fn read(&mut self, at: u64, buffer: &mut [u8]) -> Result<()> {
        match self {
            Self::File(file) => Ok(file.read_exact_at(buffer, at)?),
            Self::Export(client) => client.read(at, buffer),
        }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File(file) => Ok(file.write_all_at(bytes, at)?),
            Self::Export(client) => client.write(at, bytes),
        }
    }

    /// Zeroes by punching a hole.
    pub fn zero(&mut self, at: u64, length: u64) -> Result<()> {
        match self {
            Self::File(file) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(file, flags, at, length)?)
            }
            Self::Export(client) => client.zero(at, length),
        }
    }

    pub fn flush(&mut self) -> Result<()> {
        match self {
            Self::File(file) => Ok(file.sync_all()?),
            Self::Export(client) => client.flush(),
        }
    }

    /// The first extent of the stretch: its length, and whether it reads as zeroes.
    pub fn status(&mut self, at: u64, length: u64) -> Result<(u64, bool)> {
        match self {
            Self::File(file) => file_status(file, at, length),
            Self::Export(client) => client.status(at, length),
        }
    }
}

fn file_status(file: &File, at: u64, length: u64) -> Result<(u64, bool)> {
    let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok((length, true)),
        Err(error) => return Err(error.into()),
    };
    if data > at {
        return Ok(((data - at).min(length), true));
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(at))?;
    Ok(((hole - at).min(length), false))
}

fn open_file(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_written() {
        for place in [
            BenchSide::File("/a/b".into()),
            BenchSide::Export { socket: "/run/x.sock".into(), name: "d0".to_owned() },
        ] {
            assert_eq!(BenchSide::parse(&place.name()), place);
        }
    }
}
