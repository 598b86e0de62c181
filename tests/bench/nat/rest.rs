//! An app that goes to the background and comes back: how long its node takes to rest, and to be among people again.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use kith_tests::{Access, Client, Host, LanError, kith, within};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{
    Lab, PUBLISHED, UPLINK, delivery,
    sleeper::{Done, Ready},
};
use crate::Table;

/// How long it rests: longer than taking leave takes, as apps do.
const REST: Duration = Duration::from_secs(4);

/// The node that rests.
struct Sleeper {
    ready: Ready,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _process: Child,
    _data: TempDir,
}

impl Sleeper {
    async fn start(lab: &Lab, host: &Host) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let (done, _, error) = kith(
            &["user", "add", "alice", "--password-stdin"],
            data.path(),
            "correct horse",
        )
        .await;
        assert!(done.success(), "{error}");
        let line = host.on();
        let mut process = Command::new(&line[0])
            .args(&line[1..])
            .arg(std::env::current_exe().expect("this program"))
            .arg("sleeper")
            .arg(data.path())
            .args(lab.relays.iter().map(|relay| &relay.addresses[0]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let stdin = process.stdin.take().expect("stdin is piped");
        let mut stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        Self {
            ready: read(&mut stdout).await,
            stdin,
            stdout,
            _process: process,
            _data: data,
        }
    }

    /// Has it do something; returns how long that took, in seconds.
    async fn tell(&mut self, what: &str) -> f64 {
        self.stdin
            .write_all(format!("{what}\n").as_bytes())
            .await
            .expect("it reads");
        read::<Done>(&mut self.stdout).await.seconds
    }
}

async fn read<T: DeserializeOwned>(stdout: &mut BufReader<ChildStdout>) -> T {
    let mut line = String::new();
    within("what it says", stdout.read_line(&mut line)).await.expect("text");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
}

async fn log_in(socket: &Path) -> Client {
    Client::log_in_over(socket, "alice", "correct horse").await
}

pub(super) async fn measure(reach: &mut Table) -> Result<(), LanError> {
    let mut lab = Lab::set_up(2, Some(UPLINK)).await?;
    let (phone, home) = (lab.host(Access::Carrier).await?, lab.host(Access::Home).await?);
    let friend = lab.node(&home).await;
    let mut bob = friend.client_over_socket("bob").await;
    let mut sleeper = Sleeper::start(&lab, &phone).await;
    let mut alice = log_in(&sleeper.ready.socket).await;
    let (done, _, error) = friend.kith(&["peer", "add", &sleeper.ready.ticket], "").await;
    assert!(done.success(), "{error}");
    let room = alice.talk_to(&mut bob).await;
    tokio::time::sleep(PUBLISHED).await;

    let took = sleeper.tell("suspend").await;
    reach.row(["suspended, nothing stays", &format!("{took:.2} s"), "1 s"]);
    let waiting = ["while you slept".to_owned()];
    bob.send_text(&room, &waiting[0]).await;
    tokio::time::sleep(REST).await;
    let start = Instant::now();
    sleeper.tell("resume").await;
    alice.texts_until(&room, &waiting).await;
    let took = start.elapsed().as_secs_f64();
    reach.row(["resumed: what waited for it is there", &format!("{took:.2} s"), "2 s"]);

    let took = sleeper.tell("doze").await;
    reach.row([
        "suspended, one connection to a relay stays",
        &format!("{took:.2} s"),
        "1 s",
    ]);
    let took = delivery(&bob, &mut alice, &room, "wake up").await.as_secs_f64();
    reach.row(["a word to it then", &format!("{took:.2} s"), ""]);
    let waiting = ["good morning".to_owned()];
    let start = Instant::now();
    sleeper.tell("resume").await;
    alice.send_text(&room, &waiting[0]).await;
    bob.texts_until(&room, &waiting).await;
    let took = start.elapsed().as_secs_f64();
    reach.row(["resumed: a word from it is there", &format!("{took:.2} s"), "2 s"]);
    Ok(())
}
