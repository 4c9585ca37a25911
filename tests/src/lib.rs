//! Harness for tests against real guests and servers.
