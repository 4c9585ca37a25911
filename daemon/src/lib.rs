//! The warmd daemon: it moves running virtual machines and proves that nothing was lost.
//!
//! Layers, each knowing only those before it: `model` ← `nbd`, `libvirt`, `store`, `metrics` ← `sources`, `targets` (never each other) ←
//! `migration` ← `scheduler`, `api` ← `app`, the binaries. A test in the integration package holds this rule.
#![deny(unsafe_code)]

pub mod api;
pub mod app;
mod channel;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod format;
pub mod host;
pub mod libvirt;
pub mod manifest_root;
pub mod metrics;
pub mod migration;
pub mod model;
pub mod nbd;
pub mod process;
pub mod seal;
pub mod sources;
mod span;
pub mod store;
mod systemd;
pub mod targets;
mod threads;
