//! A backup and the 24 words bring a person back to where they were, on a machine that knows nothing of the old one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kith_tests::{Node, NodeOptions, kith};
use serde_json::{Value, json};

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// What the help of `kith backup` says: the words, the database, the media. Returns the new data folder.
async fn restore(phrase: &str, backup: &Path, data: &Path) -> PathBuf {
    let (status, _, stderr) = kith(&["phrase", "restore"], data, phrase).await;
    assert!(status.success(), "{stderr}");
    fs::copy(backup, data.join("kith.db")).unwrap();
    copy_folder(&backup.with_extension("db.media"), &data.join("media"));
    data.to_owned()
}

#[tokio::test]
async fn a_backup_and_the_phrase_bring_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Node::start_connected(2).await;
    let alice = nodes[0].client("alice").await;
    let mut bob = nodes[1].client("bob").await;
    let room = alice
        .create_room(json!({"preset": "trusted_private_chat", "name": "Kitchen", "invite": [bob.user_id]}))
        .await;
    assert_eq!(bob.invited().await, room);
    bob.post(&format!("/join/{room}"), json!({})).await.ok();
    alice.send_text(&room, "before").await;
    bob.texts_until(&room, &["before".to_owned()]).await;
    let uploaded = alice.post("/_matrix/media/v3/upload", json!({"a": "file"})).await.ok();
    let media = uploaded["content_uri"].as_str().unwrap().replace("mxc://", "");

    let backup = folder.path().join("backup.db");
    let (status, _, stderr) = nodes[0].kith(&["backup", backup.to_str().unwrap()], "").await;
    assert!(status.success(), "{stderr}");
    let (_, phrase, _) = nodes[0].kith(&["phrase", "show"], "").await;
    // A copy beside which media stand already is not written over.
    fs::rename(&backup, folder.path().join("kept.db")).unwrap();
    let (status, _, stderr) = nodes[0].kith(&["backup", backup.to_str().unwrap()], "").await;
    assert!(
        !status.success() && stderr.contains("backup.db.media exists"),
        "{stderr}"
    );
    fs::rename(folder.path().join("kept.db"), &backup).unwrap();
    let (status, said, stderr) = kith(&["check", backup.to_str().unwrap()], folder.path(), "").await;
    assert!(status.success() && said.contains("is sound"), "{said}{stderr}");

    // The machine is lost, and with it what was said since.
    alice.send_text(&room, "after the backup").await;
    bob.texts_until(&room, &["after the backup".to_owned()]).await;
    nodes[0].kill().await;
    bob.send_text(&room, "are you there?").await;

    let data = restore(&phrase, &backup, &folder.path().join("new")).await;
    let back = Node::start(NodeOptions {
        data: Some(data),
        peers: vec![nodes[1].ready.ticket.clone()],
        ..NodeOptions::default()
    })
    .await;
    assert_eq!(back.ready.server_name, nodes[0].ready.server_name);
    let mut again = kith_tests::Client::log_in(&back.ready.http, "alice", "correct horse").await;
    let first = again.texts_until(&room, &["before".to_owned()]).await;
    let name = again.get(&format!("/rooms/{room}/state/m.room.name")).await.ok();
    assert_eq!(name["name"], "Kitchen");
    let file: Value = again
        .get(&format!("/_matrix/client/v1/media/download/{media}"))
        .await
        .ok();
    assert_eq!(file, json!({"a": "file"}));
    // The conversation goes on, and what the other side said meanwhile arrives.
    again.send_text(&room, "back").await;
    bob.texts_until(&room, &["back".to_owned()]).await;
    bob.send_text(&room, "welcome").await;
    // The first of them may have come before the first sync.
    let mut missing = vec!["are you there?".to_owned(), "welcome".to_owned()];
    missing.retain(|text| !first.contains(text));
    again.texts_until(&room, &missing).await;
    let (status, _, stderr) = back.kith(&["check"], "").await;
    assert!(status.success(), "{stderr}");
}
