//! A `kith-relay` process.

use std::process::Stdio;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{binary, within};

/// A relay in a process and a data folder of its own, on a loopback port. Dropping it kills the process.
pub struct Relay {
    // The first to be dropped: the process ends before its folder goes.
    _child: Child,
    _data: TempDir,
    /// The addresses to give to nodes.
    pub addresses: Vec<String>,
}

/// What `kith-relay run --json` says once it serves.
#[derive(Deserialize)]
struct Ready {
    addr: Vec<String>,
}

impl Relay {
    /// Starts a relay.
    pub async fn start() -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new(binary("kith-relay"))
            .args(["run", "--json", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--data"])
            .arg(data.path())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the relay's program runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("its output is piped"));
        let read = within("the relay's ready line", stdout.read_line(&mut line)).await;
        read.expect("output is text");
        let ready: Ready = serde_json::from_str(&line).expect("a ready line");
        Self {
            _child: child,
            _data: data,
            addresses: ready.addr,
        }
    }

    /// What makes a node use it, on its command line.
    pub fn arguments(&self) -> Vec<String> {
        let each = self.addresses.iter().cloned();
        each.flat_map(|address| ["--relay".to_owned(), address]).collect()
    }
}
