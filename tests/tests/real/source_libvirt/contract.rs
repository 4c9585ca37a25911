//! The contract of sources, on libvirt.

use anyhow::{Context as _, Result};
use warmd_core::sources::Source;
use warmd_tests::contract::source::{SourceBench, source_contract};

use super::bench::{Bench, block_on};

impl SourceBench for Bench {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    fn name(&self) -> &'static str {
        "--help"
    }

    fn write(&mut self, disk: usize, mark: u8, offset: u64, length: u64) -> Result<()> {
        Self::write(self, disk, mark, offset, length)
    }

    fn contents(&self, disk: usize) -> Result<Vec<u8>> {
        Ok(self.disks.get(disk).context("no such disk")?.bytes.clone())
    }

    fn assert_clean(&self) -> Result<()> {
        self.assert_nothing_runs()
    }
}

#[test]
fn libvirt_keeps_the_contract_of_sources() {
    block_on(async |dir| source_contract(&mut Bench::started(dir, &[("qcow2", 16), ("qcow2", 6)])?).await);
}
