//! The simulation: many nodes in one process, on virtual time, over a network and disks that fail; then everything heals,
//! and the checker looks whether all is well. The same seed gives the same run, request by request.
//!
//! Without arguments it is the suite that `make test` runs. Each seed runs in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)] // All of it is a test.

mod bounds;
mod checker;
mod clock;
mod disk;
mod faults;
mod gossip;
mod network;
mod observer;
mod power;
mod random;
mod run;
mod suite;
mod surface;
mod trace;
mod trouble;
mod variant;
mod vfs;
mod workload;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match suite::Command::parse(&arguments) {
        Ok(command) => command.run(),
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}
