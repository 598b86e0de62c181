//! A client library in a process of its own, told what to do by JSON lines. The scenario never sees which one it is.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use kith_tests::within;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// Which library plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Library {
    /// matrix-nio (Python).
    Nio,
    /// matrix-js-sdk (Node.js).
    JsSdk,
}

/// A running client. Dropping it kills its process.
pub(crate) struct Actor {
    _child: Child,
    _store: TempDir,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Events that arrived and were not yet asked for.
    events: Vec<Value>,
    next_id: u64,
    name: String,
}

impl Actor {
    /// Starts the library and logs in.
    pub(crate) async fn log_in(library: Library, url: &str, user_id: &str, password: &str) -> Self {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("interop");
        let store = tempfile::tempdir().expect("a temporary folder");
        let mut command = match library {
            Library::Nio => python(&here),
            Library::JsSdk => node(&here),
        };
        let mut child = command
            .current_dir(&here)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the client starts: run `make test`, which installs it");
        let stdin = child.stdin.take().expect("stdin is piped");
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let name = format!("{library:?} as {user_id}");
        let mut actor = Self {
            _child: child,
            stdin,
            stdout,
            events: Vec::new(),
            next_id: 0,
            name,
            _store: store,
        };
        let store = actor._store.path().to_string_lossy().into_owned();
        actor
            .run(
                "login",
                json!({"url": url, "user_id": user_id, "password": password, "store": store}),
            )
            .await;
        actor
    }

    /// Does one thing and returns its result.
    pub(crate) async fn run(&mut self, what: &str, mut arguments: Value) -> Value {
        self.next_id += 1;
        arguments["do"] = what.into();
        arguments["id"] = self.next_id.into();
        let line = format!("{arguments}\n");
        self.stdin
            .write_all(line.as_bytes())
            .await
            .expect("the client reads its orders");
        let waiting = format!("{}: the answer to {what}", self.name);
        loop {
            let message = within(&waiting, next_line(&mut self.stdout, &self.name)).await;
            if message["id"] == self.next_id {
                assert!(
                    message["error"].is_null(),
                    "{}: {what} failed: {}",
                    self.name,
                    message["error"]
                );
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Waits for an event of which `wanted` says yes; takes and returns it.
    pub(crate) async fn event(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(index) = self.events.iter().position(&wanted) {
            return self.events.remove(index);
        }
        let waiting = format!("{}: {what}; left over are {:?}", self.name, self.events);
        loop {
            let message = within(&waiting, next_line(&mut self.stdout, &self.name)).await;
            if wanted(&message) {
                return message;
            }
            self.events.push(message);
        }
    }

    /// Waits for a text message, which must have arrived encrypted and been decrypted, and returns its event id.
    pub(crate) async fn text(&mut self, body: &str) -> String {
        let what = format!("the message {body:?}");
        let event = self
            .event(&what, |event| event["event"] == "text" && event["body"] == body)
            .await;
        assert_eq!(event["encrypted"], true, "{event}");
        event["event_id"].as_str().expect("an event id").to_owned()
    }

    /// The events that arrived and were never asked for.
    pub(crate) fn left_over(&self) -> &[Value] {
        &self.events
    }
}

async fn next_line(stdout: &mut BufReader<ChildStdout>, name: &str) -> Value {
    let mut line = String::new();
    let read = stdout.read_line(&mut line).await.expect("clients print text");
    assert_ne!(read, 0, "{name} ended early");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name} printed no JSON ({error}): {line:?}"))
}

fn python(here: &Path) -> Command {
    let mut command = Command::new(here.join("../.venv/bin/python"));
    command.arg(here.join("nio_actor.py"));
    command
}

fn node(here: &Path) -> Command {
    let mut command = Command::new("node");
    command.arg("--no-warnings").arg(here.join("js_sdk_actor.mjs"));
    command
}
