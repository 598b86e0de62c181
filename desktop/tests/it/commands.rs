//! Every command does the same whether or not the node runs.

use serde_json::Value;

use crate::{RELAY, Running, kith};

/// Carries out every command on a node and says what came of it, without what differs between runs.
fn all_commands(data: &std::path::Path, friend: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.db");
    let name = kith(data, &["ticket"], "").ok();
    assert!(name.starts_with("kith:"), "{name}");
    let said = [
        kith(data, &["user", "add", "alice", "--password-stdin"], "correct horse\n").ok(),
        kith(data, &["user", "add", "bob", "--password-stdin"], "battery staple").ok(),
        kith(data, &["peer", "add", friend], "").ok(),
        kith(data, &["peer", "add", friend], "").ok(),
        kith(data, &["phrase", "show"], "").ok(),
        kith(data, &["backup", copy.to_str().unwrap()], "").ok(),
        kith(data, &["check"], "").ok(),
        kith(data, &["status"], "").ok(),
    ];
    let status: Value = serde_json::from_str(&kith(data, &["status", "--json"], "").ok()).unwrap();
    let server_name = status["server_name"].as_str().unwrap();
    assert_eq!(status["contacts"].as_array().unwrap().len(), 1);

    assert_eq!(said[0], format!("@alice:{server_name}"));
    assert_eq!(said[2], said[3], "adding twice is adding once");
    assert_eq!(said[4].split(' ').count(), 24);
    // A copy is a database like any other, and holds what the node holds.
    let sound = kith(data, &["check", copy.to_str().unwrap()], "").ok();
    assert!(sound.contains("is sound"), "{sound}");
    let restored = tempfile::tempdir().unwrap();
    std::fs::rename(&copy, restored.path().join("kith.db")).unwrap();
    let sound = kith(restored.path(), &["check"], "").ok();
    assert!(sound.contains("is sound"), "{sound}");
    let qr = kith(data, &["ticket", "--qr"], "").ok();
    assert!(
        qr.contains('█') && qr.ends_with(status["ticket"].as_str().unwrap()),
        "{qr}"
    );

    let users = status["users"].as_array().unwrap();
    let users = users
        .iter()
        .map(|user| user.as_str().unwrap().replace(server_name, "NAME"));
    users.collect()
}

#[test]
fn commands_work_on_a_running_node_and_on_its_files() {
    let friend_folder = tempfile::tempdir().unwrap();
    let friend = kith(friend_folder.path(), &["ticket"], "").ok();

    let folder = tempfile::tempdir().unwrap();
    let offline = all_commands(&folder.path().join("new/data"), &friend);

    let folder = tempfile::tempdir().unwrap();
    let node = Running::start(folder.path(), &[]);
    let online = all_commands(folder.path(), &friend);
    let status: Value = serde_json::from_str(&kith(folder.path(), &["status", "--json"], "").ok()).unwrap();
    for field in ["server_name", "http", "socket", "peer_id", "listen"] {
        assert_eq!(status[field], node.ready[field], "{field}");
    }
    assert_eq!(status["running"], true);

    assert_eq!(offline, ["@alice:NAME", "@bob:NAME"]);
    assert_eq!(offline, online);
    node.end("TERM");
    let status: Value = serde_json::from_str(&kith(folder.path(), &["status", "--json"], "").ok()).unwrap();
    assert_eq!(
        (&status["running"], &status["http"]),
        (&Value::Bool(false), &Value::Null)
    );
}

#[test]
fn relays_are_listed_added_and_removed_while_the_node_runs_and_while_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let relay = |port: u16| format!("/ip4/127.0.0.1/tcp/{port}/p2p/{RELAY}");
    let list = || kith(data, &["relay", "list"], "").ok();
    let line = |port, further| format!("{} (no place{further})", relay(port));
    let said = |lines: &[String]| lines.join("\n");

    kith(data, &["relay", "add", &relay(2)], "").ok();
    std::fs::write(data.join("kith.toml"), format!("relays = [\"{}\"]", relay(1))).unwrap();
    assert_eq!(list(), said(&[line(1, ", configured"), line(2, "")]));

    let node = Running::start(data, &["--relay", &relay(3)]);
    kith(data, &["relay", "add", &relay(4)], "").ok();
    kith(data, &["relay", "add", &relay(4)], "").ok();
    kith(data, &["relay", "remove", &relay(2)], "").ok();
    let running = [line(1, ", configured"), line(3, ", configured"), line(4, "")];
    assert_eq!(list(), said(&running));
    let status: Value = serde_json::from_str(&kith(data, &["status", "--json"], "").ok()).unwrap();
    assert_eq!(status["relays"].as_array().unwrap().len(), 3);
    node.end("TERM");
    assert_eq!(list(), said(&[line(1, ", configured"), line(4, "")]));
}

#[test]
fn the_doctor_says_what_is_wrong_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    kith(data, &["ticket"], "").ok();
    let asleep = kith(data, &["doctor"], "").ok();
    assert!(
        asleep.contains("not running") && asleep.contains("kith run"),
        "{asleep}"
    );
    let _node = Running::start(data, &[]);
    let findings: Value = serde_json::from_str(&kith(data, &["doctor", "--json"], "").ok()).unwrap();
    let relays = &findings
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["step"] == "relays")
        .unwrap();
    assert_eq!(relays["verdict"], "bad");
    assert!(relays["advice"].as_str().unwrap().contains("kith relay add"));
}

#[test]
fn a_phrase_brings_the_identity_back() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Running::start(old.path(), &[]);
    let phrase = kith(old.path(), &["phrase", "show"], "").ok();
    let name = node.text("server_name").to_owned();
    node.end("TERM");

    let written = phrase.to_uppercase().replace(' ', "\n");
    assert_eq!(kith(new.path(), &["phrase", "restore"], &written).ok(), name);
    assert_eq!(
        kith(new.path(), &["phrase", "restore"], &phrase).ok(),
        name,
        "twice is once"
    );
    let node = Running::start(new.path(), &[]);
    assert_eq!(node.text("server_name"), name);
    node.end("TERM");
    assert_eq!(kith(new.path(), &["phrase", "show"], "").ok(), phrase);
}

#[test]
fn a_matrix_uri_is_accepted_where_a_ticket_is() {
    let (friend, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let user = kith(
        friend.path(),
        &["user", "add", "carol", "--password-stdin"],
        "correct horse",
    )
    .ok();
    let name = user.split_once(':').unwrap().1;
    let uri = format!("matrix:u/{}", user.trim_start_matches('@'));
    assert_eq!(kith(own.path(), &["peer", "add", &uri], "").ok(), name);
}

#[test]
fn help_and_version_are_no_failures() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        let said = crate::run(arguments, "").ok();
        assert!(said.contains("kith"), "{said}");
    }
}
