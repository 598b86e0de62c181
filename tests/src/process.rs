//! Node processes: built once per test run, started on free loopback ports, killed or stopped by process id.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::OnceLock,
};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdout, Command},
};

use crate::{Client, within};

/// The program `name` of this workspace (`kith`, `kith-relay` or `kith-wire`), in the profile of the running test: freshly built, unless
/// `KITH_PROGRAMS` names the folder where whoever runs the tests has just built it.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        if let Some(folder) = std::env::var_os("KITH_PROGRAMS") {
            return PathBuf::from(folder);
        }
        let here = std::env::current_exe().expect("the test's own path");
        let folder = here
            .ancestors()
            .nth(2)
            .expect("tests stand in target/PROFILE/deps")
            .to_path_buf();
        let mut build = std::process::Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "kith", "-p", "kith-relay", "-p", "kith-tests"]);
        build.args(["--bin", "kith", "--bin", "kith-relay", "--bin", "kith-wire"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        build.env(
            "CARGO_TARGET_DIR",
            folder.parent().expect("a profile folder stands in the target folder"),
        );
        assert!(
            build.status().expect("cargo runs").success(),
            "building the programs failed"
        );
        folder
    });
    folder.join(name)
}

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The data folder; a temporary one if none.
    pub data: Option<PathBuf>,
    /// Tickets of nodes to know from the start.
    pub peers: Vec<String>,
    /// Listen addresses; loopback QUIC on a free port if empty.
    pub listen: Vec<String>,
    /// Further arguments of `kith run`.
    pub arguments: Vec<String>,
    /// Whether to look for others on the local network.
    pub mdns: bool,
    /// Whether to ask the router for a way in.
    pub upnp: bool,
    /// A command that runs the rest of its command line, elsewhere: nothing if empty.
    pub through: Vec<String>,
}

/// What `kith run --json` says once it serves.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: String,
    /// The node's Matrix server name.
    pub server_name: String,
    /// The base URL of its client API.
    pub http: String,
    /// Its Unix socket.
    pub socket: String,
    /// Its libp2p peer id.
    pub peer_id: String,
    /// The addresses it listens on.
    pub listen: Vec<String>,
    /// Its ticket.
    pub ticket: String,
}

/// A node in a process and a data folder of its own. Dropping it kills the process.
pub struct Node {
    // The first to be dropped: the process ends before its folder goes.
    child: Child,
    data: PathBuf,
    _temporary: Option<TempDir>,
    options: NodeOptions,
    /// The last ready line.
    pub ready: Ready,
    stdout: BufReader<ChildStdout>,
    http_address: String,
}

impl Node {
    /// Starts a node in its data folder, or in a fresh one.
    pub async fn start(mut options: NodeOptions) -> Self {
        let (data, temporary) = match &options.data {
            Some(data) => (data.clone(), None),
            None => {
                let temporary = tempfile::tempdir().expect("a temporary folder");
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        if options.listen.is_empty() {
            options.listen.push("/ip4/127.0.0.1/udp/0/quic-v1".to_owned());
        }
        let (child, stdout, ready) = spawn(&data, "127.0.0.1:0", &options).await;
        // A restarted node comes back on the ports that its peers know.
        for address in &mut options.listen {
            *address = with_the_port_of(address, &ready.listen);
        }
        let http_address = ready
            .http
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        Self {
            data,
            _temporary: temporary,
            options,
            ready,
            child,
            stdout,
            http_address,
        }
    }

    /// `count` nodes that know each other's tickets.
    pub async fn start_connected(count: usize) -> Vec<Self> {
        let mut nodes: Vec<Self> = Vec::with_capacity(count);
        for _ in 0..count {
            let peers = nodes.iter().map(|node| node.ready.ticket.clone()).collect();
            nodes.push(
                Self::start(NodeOptions {
                    peers,
                    ..NodeOptions::default()
                })
                .await,
            );
        }
        nodes
    }

    /// The data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the node runs")
    }

    /// The user id of `localpart` on this node.
    pub fn user_id(&self, localpart: &str) -> String {
        format!("@{localpart}:{}", self.ready.server_name)
    }

    /// Runs `kith ARGS --data DIR` and returns its exit status, standard output and standard error.
    pub async fn kith(&self, arguments: &[&str], stdin: &str) -> (ExitStatus, String, String) {
        let command = command(&self.options.through);
        finish(command, arguments, self.data(), stdin).await
    }

    /// Adds a user with a password.
    pub async fn add_user(&self, localpart: &str, password: &str) {
        let (status, _, stderr) = self
            .kith(&["user", "add", localpart, "--password-stdin"], password)
            .await;
        assert!(status.success(), "user add failed: {stderr}");
    }

    /// Adds a user and logs a client in.
    pub async fn client(&self, localpart: &str) -> Client {
        self.add_user(localpart, "correct horse").await;
        Client::log_in(&self.ready.http, localpart, "correct horse").await
    }

    /// [`Node::client`] over the node's socket, for a node whose network this process does not share.
    pub async fn client_over_socket(&self, localpart: &str) -> Client {
        self.add_user(localpart, "correct horse").await;
        Client::log_in_over(self.ready.socket.as_ref(), localpart, "correct horse").await
    }

    /// Ends the process without a warning, as a crash or a phone's out-of-memory killer would.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the node was running");
    }

    /// Asks the process to end (SIGTERM) and returns its exit status.
    pub async fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), libc::SIGTERM);
        within("the node's end", self.child.wait())
            .await
            .expect("the node can be waited for")
    }

    /// Starts the stopped or killed node again: same data folder, same HTTP address.
    pub async fn restart(&mut self) {
        let (child, stdout, ready) = spawn(&self.data, &self.http_address, &self.options).await;
        (self.child, self.stdout, self.ready) = (child, stdout, ready);
    }

    /// [`Node::restart`] on ports that nobody knows.
    pub async fn restart_anywhere(&mut self) {
        for address in &mut self.options.listen {
            *address = with_any_port(address);
        }
        self.restart().await;
    }

    /// What the node prints on standard output after its ready line, until it ends.
    pub async fn further_output(&mut self) -> String {
        let mut lines = String::new();
        while within("the end of output", self.stdout.read_line(&mut lines))
            .await
            .expect("output is text")
            > 0
        {}
        lines
    }
}

/// Runs `kith ARGS --data DIR` to its end.
pub async fn kith(arguments: &[&str], data: &Path, stdin: &str) -> (ExitStatus, String, String) {
    finish(command(&[]), arguments, data, stdin).await
}

/// `kith`, run through a command unless that is empty.
fn command(through: &[String]) -> Command {
    let mut line: Vec<OsString> = through.iter().map(OsString::from).collect();
    line.push(binary("kith").into());
    let mut command = Command::new(&line[0]);
    command.args(&line[1..]);
    command
}

async fn finish(mut kith: Command, arguments: &[&str], data: &Path, stdin: &str) -> (ExitStatus, String, String) {
    let mut child = kith
        .args(arguments)
        .arg("--data")
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kith starts");
    let mut input = child.stdin.take().expect("stdin is piped");
    input.write_all(stdin.as_bytes()).await.expect("kith reads its input");
    drop(input);
    let output = within("the end of kith", child.wait_with_output())
        .await
        .expect("kith can be waited for");
    (
        output.status,
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

async fn spawn(data: &Path, http: &str, options: &NodeOptions) -> (Child, BufReader<ChildStdout>, Ready) {
    let mut command = command(&options.through);
    command
        .args(["run", "--json", "--no-open", "--http", http, "--data"])
        .arg(data);
    if !options.mdns {
        command.arg("--no-mdns");
    }
    if !options.upnp {
        command.arg("--no-upnp");
    }
    for address in &options.listen {
        command.args(["--listen", address]);
    }
    for ticket in &options.peers {
        command.args(["--peer", ticket]);
    }
    let mut child = command
        .args(&options.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kith starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    within("the ready line", stdout.read_line(&mut line))
        .await
        .expect("output is text");
    let ready: Ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("no ready line ({error}): {line:?}"));
    assert_eq!(ready.event, "ready");
    (child, stdout, ready)
}

/// The address, which may name every interface, with the port that one of those listened on has.
fn with_the_port_of(address: &str, listening: &[String]) -> String {
    // "/ip4/ADDRESS/udp/PORT/…"
    let mut parts: Vec<&str> = address.split('/').collect();
    let same = |other: &Vec<&str>| {
        let host = other[2] == parts[2] || parts[2] == "0.0.0.0";
        !other.contains(&"p2p-circuit") && other[1] == parts[1] && other[3] == parts[3] && host
    };
    let mut listening = listening.iter().map(|address| address.split('/').collect());
    let found = listening
        .find(same)
        .unwrap_or_else(|| panic!("nothing listens on {address}"));
    parts[4] = found[4];
    parts.join("/")
}

/// The address with its port left to the system.
fn with_any_port(address: &str) -> String {
    let mut parts: Vec<&str> = address.split('/').collect();
    // "/ip4/ADDRESS/udp/PORT/…"
    if let Some(port) = parts.get_mut(4) {
        *port = "0";
    }
    parts.join("/")
}

#[allow(unsafe_code, reason = "sending a signal to a process that this harness started")]
fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: kill(2) reads no memory of ours.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "the process runs");
}
