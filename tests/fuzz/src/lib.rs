//! What fuzz targets share. They judge; nothing here does.

mod graph;
pub mod seeds;

pub use graph::Graph;
