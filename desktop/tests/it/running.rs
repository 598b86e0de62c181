//! `kith run`: ready once, ended in good order, and back after the worst.

use std::{os::unix::net::UnixStream, path::Path, process::Command};

use crate::{Running, get, http, kith};

#[test]
fn it_says_ready_in_one_line_and_ends_with_0_on_either_signal() {
    let data = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for signal in ["INT", "TERM"] {
        let node = Running::start(data.path(), &[]);
        assert_eq!(node.text("event"), "ready");
        assert!(node.text("ticket").starts_with("kith:"));
        assert!(node.text("peer_id").starts_with("12D3KooW"));
        assert!(
            node.ready["listen"][0]
                .as_str()
                .unwrap()
                .starts_with("/ip4/127.0.0.1/udp/")
        );
        assert_eq!(Path::new(node.text("socket")), data.path().join("kith.sock"));
        assert_eq!(get(node.http(), "/_matrix/client/versions").status, 200);
        names.push(node.text("server_name").to_owned());
        let address = node.http().to_owned();
        assert_eq!(node.end(signal), (Some(0), String::new()));
        assert!(!data.path().join("kith.sock").exists());
        assert!(std::net::TcpStream::connect(address).is_err());
    }
    assert_eq!(names[0], names[1]);
}

#[test]
fn a_killed_node_comes_back_with_everything() {
    let data = tempfile::tempdir().unwrap();
    let node = Running::start(data.path(), &[]);
    let alice = kith(
        data.path(),
        &["user", "add", "alice", "--password-stdin"],
        "correct horse",
    )
    .ok();
    node.end("KILL");
    assert!(data.path().join("kith.sock").exists(), "it left its socket behind");

    let status = kith(data.path(), &["status"], "").ok();
    assert!(status.contains("not running") && status.contains(&alice), "{status}");
    let node = Running::start(data.path(), &[]);
    let status = kith(data.path(), &["status"], "").ok();
    assert!(status.contains("running") && status.contains(&alice), "{status}");
    assert_eq!(node.end("TERM").0, Some(0));
}

#[test]
fn clients_reach_it_over_sockets_too() {
    let data = tempfile::tempdir().unwrap();
    let own = data.path().join("clients.sock");
    let node = Running::start(data.path(), &["--socket", own.to_str().unwrap()]);
    assert_eq!(Path::new(node.text("socket")), own);
    let ask = |socket: &Path, path: &str| {
        let stream = UnixStream::connect(socket).unwrap();
        http(stream, "GET", path, &[("Host", "localhost")]).status
    };
    let control = data.path().join("kith.sock");
    for (socket, path, status) in [
        (&own, "/_matrix/client/versions", 200),
        (&control, "/_matrix/client/versions", 200),
        (&control, "/_kith/control/1/status", 200),
        (&own, "/_kith/control/1/status", 404),
    ] {
        assert_eq!(ask(socket, path), status, "{socket:?} {path}");
    }
    assert_eq!(node.end("TERM").0, Some(0));
    assert!(!own.exists() && !control.exists());
}

#[test]
fn sockets_are_the_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::tempdir().unwrap();
    let node = Running::start(data.path(), &[]);
    let mode = |name: &str| std::fs::metadata(data.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("kith.sock"), 0o600);
    assert_eq!(mode("keys"), 0o700);
    assert_eq!(mode("keys/identity"), 0o600);
    drop(node);
}

#[test]
fn nodes_that_are_told_of_each_other_connect() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let alice = Running::start(a.path(), &[]);
    let bob = Running::start(b.path(), &["--peer", alice.text("ticket")]);
    // The page's news come as soon as something happens: wait on them.
    let mut tag = String::new();
    let peer = loop {
        let news = get(alice.http(), &format!("/_kith/page/news?after={tag}")).json();
        tag = news["tag"].as_str().unwrap().to_owned();
        if let Some(peer) = news["peers"].get(0) {
            break peer["server_name"].as_str().unwrap().to_owned();
        }
    };
    assert_eq!(peer, bob.text("server_name"));
}

#[test]
fn without_arguments_it_uses_the_platforms_folder_and_port_8008() {
    let home = tempfile::tempdir().unwrap();
    let occupied = std::net::TcpListener::bind("127.0.0.1:8008");
    let output = Command::new(env!("CARGO_BIN_EXE_kith"))
        .env("HOME", home.path())
        .env("XDG_DATA_HOME", home.path().join("data"))
        .env_remove("DISPLAY")
        .env_remove("WAYLAND_DISPLAY")
        .output()
        .unwrap();
    // Whoever holds the port, the program must be turned away by it: that is how this ends without a signal.
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("127.0.0.1:8008 is in use"), "{said}");
    drop(occupied);
    assert!(home.path().join("data/kith/kith.db").exists());
}
