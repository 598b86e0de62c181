//! The real program in real processes: what it prints, how it ends, and what it leaves alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod commands;
mod failures;
mod page;
mod running;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;

/// The peer id of a relay that is nowhere.
const RELAY: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";

/// What a command did.
#[derive(Debug)]
struct Done {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    /// Standard output of a command that went well and complained of nothing.
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""), "{}", self.stdout);
        self.stdout.trim_end().to_owned()
    }

    /// The one line on standard error of a command that failed.
    #[track_caller]
    fn failed(self, status: i32) -> String {
        assert_eq!((self.status, self.stdout.as_str()), (status, ""), "{}", self.stderr);
        assert_eq!(self.stderr.matches('\n').count(), 1, "{}", self.stderr);
        self.stderr.trim_end().to_owned()
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kith"));
    command.args(arguments).env_remove("KITH_LOG");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the program to its end.
fn run(arguments: &[&str], stdin: &str) -> Done {
    let mut child = command(arguments).spawn().unwrap();
    // A program that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Done {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `kith ARGUMENTS --data DATA`.
fn kith(data: &Path, arguments: &[&str], stdin: &str) -> Done {
    let data = data.to_str().unwrap();
    run(&[arguments, &["--data", data]].concat(), stdin)
}

/// What keeps a node of these tests on this machine, on free ports, and quiet.
const QUIET: [&str; 9] = [
    "--json",
    "--no-mdns",
    "--no-upnp",
    "--no-open",
    "--listen",
    "/ip4/127.0.0.1/udp/0/quic-v1",
    "--http",
    "127.0.0.1:0",
    "--data",
];

/// A node in a process of its own; killed when dropped.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready: Value,
}

impl Running {
    /// Starts `kith run` and waits for its ready line.
    fn start(data: &Path, further: &[&str]) -> Self {
        let data = data.to_str().unwrap();
        let mut child = command(&[&["run"], &QUIET[..], &[data], further].concat())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str(&line) else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("no ready line: {line:?} {stderr}");
        };
        Self { child, stdout, ready }
    }

    fn text(&self, field: &str) -> &str {
        self.ready[field].as_str().unwrap()
    }

    /// `ADDRESS:PORT` of the client API.
    fn http(&self) -> &str {
        self.text("http").strip_prefix("http://").unwrap()
    }

    /// Sends a signal and returns the exit status, and what was printed after the ready line.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, if all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer over HTTP.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// One request, with exactly these headers besides `Connection`.
fn http(stream: impl Read + Write, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = stream;
    let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

/// `GET` from the HTTP address, under its own name.
fn get(address: &str, path: &str) -> Answer {
    http(TcpStream::connect(address).unwrap(), "GET", path, &[("Host", address)])
}
