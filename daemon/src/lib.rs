//! The warmd daemon: it moves running virtual machines and proves that nothing was lost.
//!
//! Layers, each knowing only those before it: `model` ← `nbd`, `libvirt`, `store`, `metrics` ← `sources`, `targets` (never each other) ←
//! `migration` ← `scheduler`, `api` ← `app`, the binaries. A test in the integration package holds this rule.
#![deny(unsafe_code)]

pub mod app;
pub mod config;
pub mod endpoints;
pub mod host;
mod systemd;
