//! The room engine from outside, over rooms in memory: cases as data, and properties.
// Clippy lets unwrap pass in test functions, not in what they call.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod catch_up;
mod checks;
mod convergence;
mod forks;
mod gaps;
mod handshakes;
mod oracle;
mod redactions;
mod refuted;
mod resolution;
mod rooms;
mod scene;
mod vectors;
mod visibility;
