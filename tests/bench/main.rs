//! `make bench`: the figures that BENCHMARKS.md quotes, measured on real processes. It judges nothing.
//!
//! Arguments name the parts to run (`client`, `nodes`, `rooms`, `size`); without any, all run. Synapse is measured beside Kith in
//! the same run if `KITH_BENCH_SYNAPSE` names a Python that has it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed measurement has no better answer than to say so"
)]

mod client_api;
mod nodes;
mod process;
mod rooms;
mod size;
mod synapse;
mod table;
mod wire;

use table::Table;

#[tokio::main]
async fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|name| name == part);
    table::print_machine();
    if wanted("client") {
        client_api::measure().await.print();
    }
    if wanted("nodes") {
        nodes::measure().await.print();
    }
    if wanted("rooms") {
        rooms::measure().await.print();
    }
    if wanted("size") {
        size::measure().await.print();
    }
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
