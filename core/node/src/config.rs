//! What an embedder may set, with the defaults. Nothing here reads a file or an environment variable.

use std::path::PathBuf;

/// Settings of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder: database, media and, unless the embedder keeps them elsewhere, keys.
    pub data: PathBuf,
    /// Whether `POST /register` works without a registration token. For tests.
    pub open_registration: bool,
    /// The largest upload accepted, in bytes.
    pub max_upload_bytes: u64,
    /// The largest JSON request body accepted from a client, in bytes.
    pub max_body_bytes: usize,
}

impl Config {
    /// The defaults for a data folder.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            open_registration: false,
            max_upload_bytes: 100 * 1024 * 1024,
            max_body_bytes: 1024 * 1024,
        }
    }
}
