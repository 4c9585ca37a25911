//! The real programs, a real libvirtd and real guests, from a plan to a moved VM, and the obstacles between.

mod audit;
mod conversion;
mod crashes;
mod groups;
mod guests;
mod limits;
mod passes;
mod places;
mod refusals;
mod rollback;
mod storages;
mod telemetry;
