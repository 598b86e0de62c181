//! A relay in a process of its own, as a volunteer runs it. Dropping it kills the process.

use std::process::Stdio;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{Host, binary, within};

/// What `kith-relay run --json` says once it serves.
#[derive(Debug, Deserialize)]
struct Ready {
    addr: Vec<String>,
}

/// A running relay.
pub struct Relay {
    // The first to be dropped: the process ends before its folder goes.
    process: Child,
    /// The addresses to give to nodes.
    pub addresses: Vec<String>,
    _data: TempDir,
}

impl Relay {
    /// Starts a relay on a loopback port.
    pub async fn start() -> Self {
        Self::start_on(&[], &["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()]).await
    }

    /// Starts a relay on a loopback port with settings as its configuration file has them.
    pub async fn start_with(settings: &str) -> Self {
        Self::start_as(&[], &["/ip4/127.0.0.1/udp/0/quic-v1".to_owned()], settings).await
    }

    /// Starts a relay on a host as a volunteer would, with TCP on the port that firewalls let through.
    pub async fn start_at(host: &Host) -> Self {
        let ports = ["udp/4433/quic-v1", "tcp/4433", "tcp/443"];
        let listen = ports.map(|port| format!("/ip4/{}/{port}", host.address));
        Self::start_on(&host.on(), &listen).await
    }

    /// Starts a relay that listens on these addresses, through a command unless that is empty.
    pub async fn start_on(through: &[String], listen: &[String]) -> Self {
        Self::start_as(through, listen, "").await
    }

    async fn start_as(through: &[String], listen: &[String], settings: &str) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let program = binary("kith-relay");
        let mut command = match through {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let config = data.path().join("kith-relay.toml");
        std::fs::write(&config, settings).expect("a writable folder");
        command.args(["run", "--json", "--config"]).arg(config);
        command.arg("--data").arg(data.path());
        for address in listen {
            command.args(["--listen", address]);
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kith-relay starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        within("the relay's ready line", stdout.read_line(&mut line))
            .await
            .expect("output is text");
        let ready: Ready =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("no ready line ({error}): {line:?}"));
        Self {
            process,
            addresses: ready.addr,
            _data: data,
        }
    }

    /// What makes a node use it, on its command line.
    pub fn arguments(&self) -> Vec<String> {
        let each = self.addresses.iter().cloned();
        each.flat_map(|address| ["--relay".to_owned(), address]).collect()
    }

    /// Ends the process without a warning.
    pub async fn kill(&mut self) {
        self.process.kill().await.expect("the relay was running");
    }
}
