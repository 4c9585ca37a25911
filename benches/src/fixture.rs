//! The disks of a case (sources, targets, the state), and how the targets are reset for each run.
//!
//! Rule: all files are in one directory, which is removed with the fixture. Their creation is not measured.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use warmd_cbt::{
    extents::coalesce,
    units::{BLOCK, Extent, Length},
};

use crate::{
    cases::{Case, CaseWork, Over},
    children::ProcessGroup,
    compare, delta,
    image::{self, BenchImage},
    servers::{Brake, Server},
    side::BenchSide,
    vddk::VddkSource,
};

/// Timeout of each preparation step and of each run.
pub const DEADLINE: Duration = Duration::from_mins(30);

/// Images and state of a case.
#[derive(Debug)]
pub struct Fixture {
    pub case: Case,
    /// The changed extents, and the file that lists them.
    pub changed: Vec<Extent>,
    pub extents_file: Option<PathBuf>,
    images: Vec<BenchImage>,
    /// The sources of [`Over::Vddk`]; it ends before its directory goes.
    vddk: Option<VddkSource>,
    dir: TempDir,
    /// Short paths for sockets.
    sockets: TempDir,
}

/// The disks of a run, accessible.
#[derive(Debug)]
pub struct Served {
    /// Source and target of each disk.
    pub pairs: Vec<(BenchSide, BenchSide)>,
    _servers: Vec<Server>,
}

impl Fixture {
    /// Makes sources, targets and the state in which each of warmd's runs begins.
    pub fn make(case: &Case, below: &Path, programs: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("warmd-bench-").tempdir_in(below)?;
        let sockets = tempfile::Builder::new().prefix("warmd-bench-").tempdir()?;
        let images =
            (0..case.disks).map(|number| BenchImage { number, size: case.size, fill: case.fill }).collect();
        let mut fixture = Self {
            case: case.clone(),
            changed: Vec::new(),
            extents_file: None,
            images,
            vddk: None,
            dir,
            sockets,
        };
        for name in ["source", "target"] {
            fs::create_dir(fixture.path(name))?;
        }
        for (number, image) in fixture.images.iter().enumerate() {
            image.make(&fixture.disk("source", number))?;
            image::blank(&fixture.disk("target", number), image.size)?;
        }
        let sizes = fixture.images.iter().map(|image| image.size.to_string());
        let begin = ["init", "--reads-zero"].map(str::to_owned).into_iter().chain(sizes);
        fixture.engine(programs, begin.collect())?;
        if case.work != CaseWork::Full {
            let files = (0..fixture.images.len()).flat_map(|number| {
                ["source", "target"].map(|name| fixture.disk(name, number).display().to_string())
            });
            fixture.engine(programs, std::iter::once("pass".to_owned()).chain(files).collect())?;
            fixture.compare().context("the preparing full pass")?;
        }
        if let CaseWork::Delta { shape, percent } = case.work {
            fixture.changed = shape.extents(case.size, percent);
            let file = fixture.path("extents");
            delta::save(&file, &fixture.changed)?;
            fixture.extents_file = Some(file);
            for (number, image) in fixture.images.iter().enumerate() {
                image.apply(&fixture.disk("source", number), shape, &fixture.changed)?;
            }
        }
        if case.over == Over::Vddk {
            let sources: Vec<_> = (0..fixture.images.len()).map(|n| fixture.disk("source", n)).collect();
            let dir = fixture.path("vsphere");
            fs::create_dir(&dir)?;
            fixture.vddk = Some(VddkSource::start(&dir, &sources, case.brake)?);
        }
        Ok(fixture)
    }

    /// Resets the targets to the state at the start of a run.
    pub fn reset(&self) -> Result<()> {
        for (number, image) in self.images.iter().enumerate() {
            let target = self.disk("target", number);
            match self.case.work {
                CaseWork::Full => {
                    fs::remove_file(&target)?;
                    image::blank(&target, image.size)?;
                }
                CaseWork::Delta { .. } => image.restore(&target, &self.changed)?,
                CaseWork::Unchanged | CaseWork::Readback | CaseWork::Compare => {}
            }
        }
        Ok(())
    }

    /// A fresh copy of the state in which warmd's runs begin.
    pub fn fresh_state(&self) -> Result<PathBuf> {
        let (from, to) = (self.path("state"), self.path("state-of-run"));
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::create_dir(&to)?;
        fs::set_permissions(&to, fs::metadata(&from)?.permissions())?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let copy = to.join(entry.file_name());
            fs::copy(entry.path(), &copy)?;
            fs::File::open(&copy)?.sync_all()?;
        }
        Ok(to)
    }

    /// Makes the disks accessible.
    pub fn serve(&self) -> Result<Served> {
        let server = |name: &str, brake| {
            Server::start(&self.path(name), self.sockets.path().join(format!("{name}.sock")), brake)
        };
        let mut servers = Vec::new();
        if let Some(vddk) = &self.vddk {
            let mut pairs = Vec::new();
            for number in 0..self.images.len() {
                let server = vddk.serve(number, self.sockets.path().join(format!("d{number}.sock")))?;
                let source = BenchSide::Export { socket: server.socket().to_owned(), name: String::new() };
                pairs.push((source, BenchSide::File(self.disk("target", number))));
                servers.push(server);
            }
            return Ok(Served { pairs, _servers: servers });
        }
        let (mut from, mut to) = (None, None);
        if self.case.over != Over::Files {
            let source = server("source", self.case.brake)?;
            from = Some(source.socket().to_owned());
            servers.push(source);
        }
        if self.case.over == Over::Nbd {
            let target = server("target", Brake::default())?;
            to = Some(target.socket().to_owned());
            servers.push(target);
        }
        let place = |socket: &Option<PathBuf>, name, number| match socket {
            Some(socket) => BenchSide::Export { socket: socket.clone(), name: format!("d{number}") },
            None => BenchSide::File(self.disk(name, number)),
        };
        let pairs = (0..self.images.len())
            .map(|number| (place(&from, "source", number), place(&to, "target", number)))
            .collect();
        Ok(Served { pairs, _servers: servers })
    }

    /// An error unless every target equals its source.
    pub fn compare(&self) -> Result<()> {
        (0..self.images.len())
            .try_for_each(|number| compare::equal(&self.disk("source", number), &self.disk("target", number)))
    }

    /// The targets' files.
    pub fn targets(&self) -> Vec<PathBuf> {
        (0..self.images.len()).map(|number| self.disk("target", number)).collect()
    }

    /// Bytes, over all disks, that must be moved: what changed, or all data.
    pub fn changed_bytes(&self) -> u64 {
        let each = |image: &BenchImage| -> u64 {
            match self.case.work {
                CaseWork::Delta { .. } => self.changed.iter().map(|extent| extent.len().0).sum(),
                _ => image.fill.runs(image.size).iter().map(|run| run.end - run.start).sum(),
            }
        };
        self.images.iter().map(each).sum()
    }

    /// Bytes of the manifest's blocks that the changes touch, over all disks.
    pub fn touched_bytes(&self) -> u64 {
        let size = Length(self.case.size);
        let aligned = self.changed.iter().filter_map(|extent| extent.align_out(BLOCK, size));
        let touched = coalesce(aligned, 0);
        touched.map(|extent| extent.len().0).sum::<u64>() * self.images.len() as u64
    }

    fn engine(&self, programs: &Path, arguments: Vec<String>) -> Result<()> {
        let mut command = Command::new(programs.join("bench-engine"));
        command.arg("--state").arg(self.path("state")).args(arguments);
        ProcessGroup::spawn(&mut command)?.output(DEADLINE).map(drop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self, side: &str, number: usize) -> PathBuf {
        self.path(side).join(format!("d{number}"))
    }
}
