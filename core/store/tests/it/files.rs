//! Which files are opened, which are refused and left alone, and what copies and checks make of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use kith_store::{BackupError, Entry, OpenError, Problem, Store, StoreConfig, StoreError, check};
use ruma::{RoomVersionId, event_id, room_id, server_name, user_id};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::rooms;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kith.db");
    (folder, path)
}

fn open(path: &Path) -> Store {
    Store::open(&StoreConfig::new(path)).unwrap()
}

/// A closed database with a room in it.
async fn filled(path: &Path) {
    let store = open(path);
    rooms::fill(&store).await;
    store.close().await;
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // SQLite's shared memory is no part of the data.
        .filter(|path| path.extension().is_none_or(|extension| extension != "db-shm"))
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = folder();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = open(&path);
    store.write(|txn| txn.set_setting("a", "b")).await.unwrap();
    store.backup(&folder.path().join("copy.db")).await.unwrap();
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{entry:?}"
        );
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["copy.db", "kith.db", "kith.db-shm", "kith.db-wal"]);
    store.close().await;
    assert!(!folder.path().join("kith.db-wal").exists());
}

#[tokio::test]
async fn what_must_not_be_opened_is_refused_and_left_alone() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil, &str); 8] = [
        ("newer", |path| raw(path, "PRAGMA user_version = 9999"), "newer version"),
        (
            "newer, still in the log",
            |path| {
                let conn = Connection::open(path).unwrap();
                let no_fold = rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
                conn.set_db_config(no_fold, true).unwrap();
                conn.execute_batch("PRAGMA user_version = 9999").unwrap();
            },
            "newer version",
        ),
        (
            "no database",
            |path| fs::write(path, "Dear diary, ".repeat(100)).unwrap(),
            "not an SQLite",
        ),
        (
            "a few bytes",
            |path| fs::write(path, "SQLite format 3").unwrap(),
            "not an SQLite",
        ),
        (
            "another program's",
            |path| {
                fs::remove_file(path).unwrap();
                raw(path, "CREATE TABLE songs (name TEXT)");
            },
            "another program",
        ),
        (
            "another program's, marked",
            |path| raw(path, "PRAGMA application_id = 7"),
            "another program",
        ),
        (
            "cut short",
            |path| {
                let length = fs::metadata(path).unwrap().len();
                fs::OpenOptions::new()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(length / 2)
                    .unwrap();
            },
            "cut short",
        ),
        (
            "garbage in its schema",
            |path| {
                let mut bytes = fs::read(path).unwrap();
                bytes[100..4096].fill(0xa5);
                fs::write(path, bytes).unwrap();
            },
            "damaged",
        ),
    ];
    for (name, spoil, expected) in cases {
        let (folder, path) = folder();
        filled(&path).await;
        spoil(&path);
        let before = contents(folder.path());
        for error in [
            Store::open(&StoreConfig::new(&path)).err().unwrap(),
            check(&path).unwrap_err(),
        ] {
            assert!(
                matches!(error, OpenError::Newer { .. } | OpenError::Damaged { .. }),
                "{name}: {error:?}"
            );
            assert!(error.to_string().contains(expected), "{name}: {error}");
        }
        assert!(contents(folder.path()) == before, "{name}: something was written");
    }
}

#[tokio::test]
async fn a_copy_of_a_busy_database_is_whole() {
    let (folder, path) = folder();
    let store = open(&path);
    rooms::fill(&store).await;
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            for number in 0..200 {
                let write = store.write(move |txn| {
                    txn.set_setting("one", &format!("{number}"))?;
                    txn.set_setting("two", &format!("{number}"))
                });
                write.await.unwrap();
            }
        }
    });
    for number in 0..5 {
        let copy = folder.path().join(format!("copy {number}?.db"));
        store.backup(&copy).await.unwrap();
        let checked = check(&copy).unwrap();
        assert!(
            checked.is_sound() && checked.events > 0 && checked.rooms == 1,
            "{checked:?}"
        );
        let copied = open(&copy);
        let both = copied.read(|txn| Ok::<_, StoreError>((txn.setting("one")?, txn.setting("two")?)));
        let (one, two) = both.await.unwrap();
        assert_eq!(one, two);
        copied.close().await;

        let refused = store.backup(&copy).await.unwrap_err();
        assert!(matches!(refused, BackupError::Exists(path) if path == copy));
    }
    writing.await.unwrap();
    assert!(check(&path).unwrap().is_sound());
    store.close().await;
    let nowhere = folder.path().join("no such folder").join("copy.db");
    assert!(matches!(
        open(&path).backup(&nowhere).await.unwrap_err(),
        BackupError::File { .. }
    ));
    assert!(
        !fs::read_dir(folder.path())
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_string_lossy().ends_with(".partial") })
    );
}

#[tokio::test]
async fn a_check_finds_what_was_tampered_with() {
    type Found = fn(&Problem) -> bool;
    let cases: [(&str, Found); 7] = [
        (
            "UPDATE events SET json = replace(json, '\"depth\":2', '\"depth\":3')",
            |problem| matches!(problem, Problem::EventId(_)),
        ),
        (
            "UPDATE events SET json = replace(json, '\"depth\":2', '\"depth\": 2')",
            |problem| matches!(problem, Problem::NotCanonical(_)),
        ),
        ("UPDATE events SET json = '{}' WHERE depth = 2", |problem| {
            matches!(problem, Problem::Event { .. })
        }),
        ("DELETE FROM forward_extremities", |problem| {
            matches!(problem, Problem::NoExtremity(_))
        }),
        ("UPDATE events SET outlier = 1", |problem| {
            matches!(problem, Problem::Extremity { .. })
        }),
        ("DELETE FROM current_state WHERE key = 1", |problem| {
            matches!(problem, Problem::CurrentState(_))
        }),
        ("UPDATE states SET entries = x'ff' WHERE state = 2", |problem| {
            matches!(problem, Problem::State { .. })
        }),
    ];
    for (sql, found) in cases {
        let (folder, path) = folder();
        filled(&path).await;
        assert!(check(&path).unwrap().is_sound());
        raw(&path, sql);
        let before = contents(folder.path());
        let checked = check(&path).unwrap();
        assert!(checked.problems.iter().any(found), "{sql}: {checked:?}");
        assert!(contents(folder.path()) == before, "{sql}: something was written");
    }
    let (_folder, path) = folder();
    assert!(matches!(check(&path), Err(OpenError::Missing(_))));
}

#[tokio::test]
async fn a_check_finds_dangling_references() {
    let (_folder, path) = folder();
    filled(&path).await;
    raw(&path, "PRAGMA foreign_keys = OFF; DELETE FROM users");
    let checked = check(&path).unwrap();
    assert!(matches!(checked.problems[0], Problem::Reference { .. }), "{checked:?}");
}

/// Some files of the schema before lack a column, since a step was edited after they had been made.
#[tokio::test]
async fn a_file_of_an_older_schema_keeps_what_it_holds() {
    for lacks_column in [true, false] {
        let (_folder, path) = folder();
        filled(&path).await;
        let entry = Entry {
            user_id: user_id!("@alice:a.example").to_owned(),
            room_id: room_id!("!elsewhere:b.example").to_owned(),
            knock: true,
            servers: vec![server_name!("b.example").to_owned()],
            version: RoomVersionId::V11,
            event_id: event_id!("$knock").to_owned(),
            over: !lacks_column,
            reason: Some("please".to_owned()),
        };
        let (store, kept) = (open(&path), entry.clone());
        store.write(move |txn| txn.begin_entry(kept)).await.unwrap();
        store.close().await;
        raw(
            &path,
            "DROP TABLE refuted; ALTER TABLE events DROP COLUMN told; PRAGMA user_version = 15",
        );
        if lacks_column {
            raw(&path, "ALTER TABLE entries DROP COLUMN over");
        }
        let store = open(&path);
        let found = store.read(|txn| txn.entries()).await.unwrap();
        assert_eq!(found, [entry]);
        store.close().await;
        assert!(check(&path).unwrap().is_sound());
    }
}

/// What an editor outside of the program would do to a file.
fn raw(path: &Path, sql: &str) {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch(sql).unwrap();
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}
