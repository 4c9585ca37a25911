//! The contract of sources, on a vCenter and on a standalone ESXi host.

use anyhow::Result;
use warmd_core::sources::Source;
use warmd_tests::{
    contract::source::{SourceBench, source_contract},
    vsphere::NAME,
};

use super::bench::{Bench, block_on};

impl SourceBench for Bench {
    fn source(&self) -> &dyn Source {
        &self.source
    }

    fn name(&self) -> &str {
        NAME
    }

    fn write(&mut self, disk: usize, mark: u8, offset: u64, length: u64) -> Result<()> {
        self.rig.write(disk, offset, length, u64::from(mark))
    }

    fn contents(&self, disk: usize) -> Result<Vec<u8>> {
        self.rig.contents(disk)
    }

    fn assert_clean(&self) -> Result<()> {
        self.rig.assert_clean()
    }
}

#[test]
fn a_vcenter_keeps_the_contract_of_sources() {
    block_on(async |dir| source_contract(&mut Bench::start(dir, &[]).await?).await);
}

#[test]
fn an_esxi_host_keeps_the_contract_of_sources() {
    block_on(async |dir| source_contract(&mut Bench::start(dir, &["-esxi"]).await?).await);
}
