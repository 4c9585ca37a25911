//! The methods of the vSphere API that a source needs, as typed functions.
//!
//! Rule: each function is one call, or one kind of waiting. What a server leaves out is an error that names
//! the property and the object.

pub mod events;
pub mod hosts;
pub mod properties;
pub mod server;
pub mod tasks;
pub mod updates;
pub mod vm;

pub use properties::Object;
pub use server::{About, ServiceContent};
