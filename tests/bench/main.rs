//! `make bench`: the figures that BENCHMARKS.md quotes, measured on real processes. It judges nothing.
//!
//! Arguments name the parts to run (`client`, `idle`, `nodes`, `bytes`, `throughput`, `rooms`, `nat`, `size`), several if wanted; without any, all
//! run. A part that fails is said to have failed, and the others run. Synapse is measured beside Kith in the same run if
//! `KITH_BENCH_SYNAPSE` names a Python that has it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed measurement has no better answer than to say so"
)]

mod bytes;
mod client_api;
mod idle;
mod nat;
mod nodes;
mod process;
mod rooms;
mod size;
mod synapse;
mod table;
mod throughput;
mod wire;

use std::{panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use futures::FutureExt;

use table::Table;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // A process of the part `nat`, not a part.
    if let [name, data, relays @ ..] = &arguments[..]
        && name == "sleeper"
    {
        nat::sleeper::run(data.into(), relays).await;
        return ExitCode::SUCCESS;
    }
    let mut run = Run::new(arguments);
    table::print_machine();
    run.part("client", one(client_api::measure())).await;
    run.part("idle", one(idle::measure())).await;
    run.part("nodes", one(nodes::measure())).await;
    run.part("bytes", one(bytes::measure())).await;
    run.part("throughput", one(throughput::measure())).await;
    run.part("rooms", one(rooms::measure())).await;
    run.part("nat", nat::measure()).await;
    run.part("size", one(size::measure())).await;
    run.end()
}

/// Runs parts, and remembers which failed.
struct Run {
    wanted: Vec<String>,
    failed: Vec<&'static str>,
}

impl Run {
    fn new(wanted: Vec<String>) -> Self {
        Self {
            wanted,
            failed: Vec::new(),
        }
    }

    /// Runs a part if it is wanted. One that panics has failed, and ends no other.
    async fn part(&mut self, name: &'static str, measure: impl Future<Output = Vec<Table>>) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|part| part == name) {
            return;
        }
        let start = Instant::now();
        match AssertUnwindSafe(measure).catch_unwind().await {
            Ok(tables) => tables.iter().for_each(Table::print),
            Err(_) => {
                println!("\n**The part `{name}` failed; why stands on standard error.**");
                self.failed.push(name);
            }
        }
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
    }

    fn end(self) -> ExitCode {
        if self.failed.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("failed: {}", self.failed.join(", "));
        ExitCode::FAILURE
    }
}

/// What a part with one table measures.
async fn one(measure: impl Future<Output = Table>) -> Vec<Table> {
    vec![measure.await]
}

/// The value at a percentile of some measurements (nearest rank).
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Sorts measurements.
fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}
