//! The room engine from outside, over rooms in memory: cases as data, and properties.

mod checks;
mod convergence;
mod handshakes;
mod redactions;
mod resolution;
mod rooms;
mod scene;
mod vectors;
mod visibility;
