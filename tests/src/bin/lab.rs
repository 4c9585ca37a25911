//! A private libvirtd with a writing guest, for manual tests: `cargo run -p warmd-tests --bin lab`.
//!
//! It prints the URI, and ends everything when its stdin ends.

use std::io::Read as _;

use anyhow::Result;
use warmd_tests::{Guest, GuestSpec, Libvirtd, TestDir};

fn main() -> Result<()> {
    let dir = TestDir::new()?;
    let libvirt = Libvirtd::start(&dir)?;
    let guest = Guest::start(&libvirt, &dir, &GuestSpec::new("source"))?;
    println!("dir      {}", dir.path().display());
    println!("uri      {}", libvirt.uri());
    println!("console  {}", guest.console.path().display());
    println!("guest    {} writes; end with Ctrl-D", guest.name);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
