//! The harness: starts real node processes, hands each a client, and waits for events. It never looks inside a node.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "this crate is test code throughout"
)]

mod client;
mod internet;
mod lan;
mod machine;
mod port_opener;
mod process;
mod reach;
mod relay;
mod small_disk;
mod wire;

pub use client::{Answer, Client, texts};
pub use internet::{Access, Host, Internet, Router, Uplink};
pub use lan::Lan;
pub use machine::LanError;
pub use process::{Node, NodeOptions, binary, kith};
pub use relay::Relay;
pub use small_disk::SmallDisk;
pub use wire::{Carried, Quality};

use std::{io::Write, time::Duration};

/// No wait in these suites is longer than this: past it, what was waited for is taken to never come.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Awaits `what` until [`DEADLINE`], and names it if it does not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} in vain for {what}"),
    }
}

/// The network that a test runs in, or none where the system permits none: then it is said that the test is skipped, and why.
pub async fn lab<T>(test: &str, set_up: impl Future<Output = Result<T, LanError>>) -> Option<T> {
    let skipped = |reason: &LanError| {
        // Not `eprintln!`: what a test that passes prints that way is never seen.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: no network namespaces here ({reason})"
        );
    };
    set_up.await.inspect_err(skipped).ok()
}
