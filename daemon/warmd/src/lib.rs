//! The binary `warmd`: its configuration, and the wiring of all packages into one daemon.
//!
//! Rule: this is the one place that names every kind of endpoint ([`endpoints`]). It decides nothing about a
//! migration.
#![forbid(unsafe_code)]

pub mod app;
pub mod config;
pub mod endpoints;
pub mod hook_service;
mod host;
pub mod images;
pub mod report_signer;
mod systemd;
