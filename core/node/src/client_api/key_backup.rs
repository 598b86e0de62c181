//! Server-side key backups.

use std::collections::BTreeMap;

use axum::Router;
use kith_store::{BackedUpKey, KeyBackup};
use ruma::{
    OwnedRoomId,
    api::client::backup::{
        BackupAlgorithm, KeyBackupData, RoomKeyBackup, add_backup_keys, add_backup_keys_for_room,
        add_backup_keys_for_session, create_backup_version, delete_backup_keys, delete_backup_keys_for_room,
        delete_backup_keys_for_session, delete_backup_version, get_backup_info, get_backup_keys,
        get_backup_keys_for_room, get_backup_keys_for_session, get_latest_backup_info, update_backup_version,
    },
    serde::Raw,
};
use serde_json::{json, value::to_raw_value};

use super::{Args, endpoint};
use crate::{
    Error, Homeserver,
    homeserver::key_backup::{Selection, tally},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, create_backup_version);
    let router = endpoint(router, get_latest_backup_info);
    let router = endpoint(router, get_backup_info);
    let router = endpoint(router, update_backup_version);
    let router = endpoint(router, delete_backup_version);
    let router = endpoint(router, add_backup_keys);
    let router = endpoint(router, add_backup_keys_for_room);
    let router = endpoint(router, add_backup_keys_for_session);
    let router = endpoint(router, get_backup_keys);
    let router = endpoint(router, get_backup_keys_for_room);
    let router = endpoint(router, get_backup_keys_for_session);
    let router = endpoint(router, delete_backup_keys);
    let router = endpoint(router, delete_backup_keys_for_room);
    endpoint(router, delete_backup_keys_for_session)
}

async fn create_backup_version(
    hs: Homeserver,
    args: Args<create_backup_version::v3::Request>,
) -> Result<create_backup_version::v3::Response, Error> {
    let version = hs
        .key_backups
        .create(args.caller.user_id, &args.request.algorithm)
        .await?;
    Ok(create_backup_version::v3::Response::new(version))
}

async fn get_latest_backup_info(
    hs: Homeserver,
    args: Args<get_latest_backup_info::v3::Request>,
) -> Result<get_latest_backup_info::v3::Response, Error> {
    let backup = hs.key_backups.current(args.caller.user_id).await?;
    let (algorithm, at) = (algorithm(&backup)?, tally(backup.etag, backup.count));
    let version = backup.version.to_string();
    Ok(get_latest_backup_info::v3::Response::new(
        algorithm, at.count, at.etag, version,
    ))
}

async fn get_backup_info(
    hs: Homeserver,
    args: Args<get_backup_info::v3::Request>,
) -> Result<get_backup_info::v3::Response, Error> {
    let backup = hs
        .key_backups
        .version(args.caller.user_id, args.request.version)
        .await?;
    let (algorithm, at) = (algorithm(&backup)?, tally(backup.etag, backup.count));
    let version = backup.version.to_string();
    Ok(get_backup_info::v3::Response::new(
        algorithm, at.count, at.etag, version,
    ))
}

async fn update_backup_version(
    hs: Homeserver,
    args: Args<update_backup_version::v3::Request>,
) -> Result<update_backup_version::v3::Response, Error> {
    hs.key_backups
        .update(args.caller.user_id, args.request.version, &args.request.algorithm)
        .await?;
    Ok(update_backup_version::v3::Response::new())
}

async fn delete_backup_version(
    hs: Homeserver,
    args: Args<delete_backup_version::v3::Request>,
) -> Result<delete_backup_version::v3::Response, Error> {
    hs.key_backups.delete(args.caller.user_id, args.request.version).await?;
    Ok(delete_backup_version::v3::Response::new())
}

async fn add_backup_keys(
    hs: Homeserver,
    args: Args<add_backup_keys::v3::Request>,
) -> Result<add_backup_keys::v3::Response, Error> {
    let rooms = args.request.rooms.into_iter();
    let keys = rooms
        .flat_map(|(room, backup)| in_room(room, backup.sessions))
        .collect();
    let at = hs
        .key_backups
        .store_keys(args.caller.user_id, args.request.version, keys)
        .await?;
    Ok(add_backup_keys::v3::Response::new(at.etag, at.count))
}

async fn add_backup_keys_for_room(
    hs: Homeserver,
    args: Args<add_backup_keys_for_room::v3::Request>,
) -> Result<add_backup_keys_for_room::v3::Response, Error> {
    let request = args.request;
    let keys = in_room(request.room_id, request.sessions).collect();
    let at = hs
        .key_backups
        .store_keys(args.caller.user_id, request.version, keys)
        .await?;
    Ok(add_backup_keys_for_room::v3::Response::new(at.etag, at.count))
}

async fn add_backup_keys_for_session(
    hs: Homeserver,
    args: Args<add_backup_keys_for_session::v3::Request>,
) -> Result<add_backup_keys_for_session::v3::Response, Error> {
    let request = args.request;
    let key = BackedUpKey {
        room_id: request.room_id,
        session_id: request.session_id,
        key: request.session_data,
    };
    let at = hs
        .key_backups
        .store_keys(args.caller.user_id, request.version, vec![key])
        .await?;
    Ok(add_backup_keys_for_session::v3::Response::new(at.etag, at.count))
}

async fn get_backup_keys(
    hs: Homeserver,
    args: Args<get_backup_keys::v3::Request>,
) -> Result<get_backup_keys::v3::Response, Error> {
    let keys = hs
        .key_backups
        .keys(args.caller.user_id, args.request.version, Selection::All)
        .await?;
    let mut rooms = BTreeMap::new();
    for key in keys {
        let room = rooms
            .entry(key.room_id)
            .or_insert_with(|| RoomKeyBackup::new(BTreeMap::new()));
        room.sessions.insert(key.session_id, key.key);
    }
    Ok(get_backup_keys::v3::Response::new(rooms))
}

async fn get_backup_keys_for_room(
    hs: Homeserver,
    args: Args<get_backup_keys_for_room::v3::Request>,
) -> Result<get_backup_keys_for_room::v3::Response, Error> {
    let request = args.request;
    let keys = hs
        .key_backups
        .keys(args.caller.user_id, request.version, Selection::Room(request.room_id))
        .await?;
    let sessions = keys.into_iter().map(|key| (key.session_id, key.key)).collect();
    Ok(get_backup_keys_for_room::v3::Response::new(sessions))
}

async fn get_backup_keys_for_session(
    hs: Homeserver,
    args: Args<get_backup_keys_for_session::v3::Request>,
) -> Result<get_backup_keys_for_session::v3::Response, Error> {
    let request = args.request;
    let which = Selection::Session(request.room_id, request.session_id);
    let mut keys = hs.key_backups.keys(args.caller.user_id, request.version, which).await?;
    let key = keys.pop().ok_or(Error::Internal("a session without a key", None))?;
    Ok(get_backup_keys_for_session::v3::Response::new(key.key))
}

async fn delete_backup_keys(
    hs: Homeserver,
    args: Args<delete_backup_keys::v3::Request>,
) -> Result<delete_backup_keys::v3::Response, Error> {
    let at = hs
        .key_backups
        .delete_keys(args.caller.user_id, args.request.version, Selection::All)
        .await?;
    Ok(delete_backup_keys::v3::Response::new(at.etag, at.count))
}

async fn delete_backup_keys_for_room(
    hs: Homeserver,
    args: Args<delete_backup_keys_for_room::v3::Request>,
) -> Result<delete_backup_keys_for_room::v3::Response, Error> {
    let request = args.request;
    let at = hs
        .key_backups
        .delete_keys(args.caller.user_id, request.version, Selection::Room(request.room_id))
        .await?;
    Ok(delete_backup_keys_for_room::v3::Response::new(at.etag, at.count))
}

async fn delete_backup_keys_for_session(
    hs: Homeserver,
    args: Args<delete_backup_keys_for_session::v3::Request>,
) -> Result<delete_backup_keys_for_session::v3::Response, Error> {
    let request = args.request;
    let which = Selection::Session(request.room_id, request.session_id);
    let at = hs
        .key_backups
        .delete_keys(args.caller.user_id, request.version, which)
        .await?;
    Ok(delete_backup_keys_for_session::v3::Response::new(at.etag, at.count))
}

fn in_room(room: OwnedRoomId, sessions: BTreeMap<String, Raw<KeyBackupData>>) -> impl Iterator<Item = BackedUpKey> {
    sessions.into_iter().map(move |(session_id, key)| BackedUpKey {
        room_id: room.clone(),
        session_id,
        key,
    })
}

fn algorithm(backup: &KeyBackup) -> Result<Raw<BackupAlgorithm>, Error> {
    let json = to_raw_value(&json!({"algorithm": backup.algorithm, "auth_data": backup.auth_data}));
    json.map(Raw::from_json)
        .map_err(|error| Error::Internal("a backup did not serialise", Some(Box::new(error))))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{Client, Cluster, assert_refused};

    const VERSIONS: &str = "/_matrix/client/v3/room_keys/version";
    const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

    async fn create(client: &Client) -> String {
        let body = json!({"algorithm": ALGORITHM, "auth_data": {"public_key": "abc", "signatures": {}}});
        let answer = client.post_ok(VERSIONS, body).await;
        answer["version"].as_str().unwrap().to_owned()
    }

    fn key(verified: bool, index: u64, forwards: u64) -> Value {
        json!({
            "is_verified": verified, "first_message_index": index, "forwarded_count": forwards,
            "session_data": {"ephemeral": "e", "ciphertext": "c", "mac": "m"},
        })
    }

    fn keys(rest: &str, version: &str) -> String {
        format!("/_matrix/client/v3/room_keys/keys{rest}?version={version}")
    }

    #[tokio::test]
    async fn versions() {
        let cluster = Cluster::start(1).await;
        let alice = cluster[0].register("alice").await;
        assert_refused(alice.get(VERSIONS).await, (404, "M_NOT_FOUND"));
        assert_eq!(create(&alice).await, "1");
        let at = |version: &str| format!("{VERSIONS}/{version}");
        let expected = json!({
            "algorithm": ALGORITHM, "auth_data": {"public_key": "abc", "signatures": {}},
            "count": 0, "etag": "0", "version": "1",
        });
        assert_eq!(alice.get_ok(VERSIONS).await, expected);
        assert_eq!(alice.get_ok(&at("1")).await, expected);

        let update = |algorithm: &str, version: Value| json!({"algorithm": algorithm, "auth_data": {"new": 1}, "version": version});
        for (body, refusal) in [
            (update("other", json!("1")), (400, "M_INVALID_PARAM")),
            (update(ALGORITHM, json!("2")), (400, "M_INVALID_PARAM")),
            (json!({"algorithm": ALGORITHM}), (400, "M_BAD_JSON")),
            (json!({"algorithm": ALGORITHM, "auth_data": 7}), (400, "M_BAD_JSON")),
        ] {
            assert_refused(alice.put(&at("1"), body).await, refusal);
        }
        alice.put_ok(&at("1"), update(ALGORITHM, json!("1"))).await;
        assert_eq!(alice.get_ok(VERSIONS).await["auth_data"], json!({"new": 1}));

        assert_eq!(create(&alice).await, "2");
        for unknown in ["3", "0", "-1", "x", "99999999999999999999"] {
            assert_refused(alice.get(&at(unknown)).await, (404, "M_NOT_FOUND"));
            assert_refused(alice.delete(&at(unknown)).await, (404, "M_NOT_FOUND"));
            assert_refused(
                alice.put(&at(unknown), update(ALGORITHM, Value::Null)).await,
                (404, "M_NOT_FOUND"),
            );
        }
        assert_eq!(alice.delete(&at("2")).await.0, 200);
        assert_refused(alice.delete(&at("2")).await, (404, "M_NOT_FOUND"));
        assert_eq!(alice.get_ok(VERSIONS).await["version"], "1");
        assert_eq!(create(&alice).await, "3");

        let bob = cluster[0].register("bob").await;
        assert_refused(bob.get(&at("1")).await, (404, "M_NOT_FOUND"));
    }

    #[tokio::test]
    async fn the_better_key_stays() {
        let cluster = Cluster::start(1).await;
        let alice = cluster[0].register("alice").await;
        let version = create(&alice).await;
        let path = keys("/!r:x/s", &version);
        for (upload, etag, stays) in [
            ((false, 5, 5), "1", (false, 5, 5)),
            ((false, 5, 5), "1", (false, 5, 5)),
            ((false, 6, 0), "1", (false, 5, 5)),
            ((false, 5, 4), "2", (false, 5, 4)),
            ((false, 4, 9), "3", (false, 4, 9)),
            ((true, 9, 9), "4", (true, 9, 9)),
            ((false, 0, 0), "4", (true, 9, 9)),
        ] {
            let answer = alice.put_ok(&path, key(upload.0, upload.1, upload.2)).await;
            assert_eq!(answer, json!({"etag": etag, "count": 1}), "{upload:?}");
            assert_eq!(alice.get_ok(&path).await, key(stays.0, stays.1, stays.2), "{upload:?}");
        }
    }

    #[tokio::test]
    async fn keys_by_room_and_session() {
        let cluster = Cluster::start(1).await;
        let alice = cluster[0].register("alice").await;
        let version = create(&alice).await;
        let all = json!({"rooms": {
            "!a:x": {"sessions": {"1": key(true, 1, 1), "2": key(true, 2, 2)}},
            "!b:x": {"sessions": {"3": key(true, 3, 3)}},
        }});
        let answer = alice.put_ok(&keys("", &version), all.clone()).await;
        assert_eq!(answer, json!({"etag": "1", "count": 3}));
        assert_eq!(alice.get_ok(&keys("", &version)).await, all);
        let room = json!({"sessions": {"4": key(true, 4, 4)}});
        let answer = alice.put_ok(&keys("/!b:x", &version), room).await;
        assert_eq!(answer, json!({"etag": "2", "count": 4}));
        let sessions = json!({"sessions": {"3": key(true, 3, 3), "4": key(true, 4, 4)}});
        assert_eq!(alice.get_ok(&keys("/!b:x", &version)).await, sessions);
        assert_eq!(alice.get_ok(&keys("/!c:x", &version)).await, json!({"sessions": {}}));
        assert_refused(alice.get(&keys("/!b:x/1", &version)).await, (404, "M_NOT_FOUND"));
        for (rest, etag, count) in [
            ("/!b:x/3", "3", 3),
            ("/!b:x/3", "3", 3),
            ("/!a:x", "4", 1),
            ("", "5", 0),
        ] {
            let (status, answer) = alice.delete(&keys(rest, &version)).await;
            assert_eq!(
                (status.as_u16(), answer),
                (200, json!({"etag": etag, "count": count})),
                "{rest}"
            );
        }
        assert_eq!(alice.get_ok(&keys("", &version)).await, json!({"rooms": {}}));
    }

    #[tokio::test]
    async fn keys_go_only_into_the_newest_version() {
        let cluster = Cluster::start(1).await;
        let alice = cluster[0].register("alice").await;
        assert_refused(
            alice.put(&keys("/!r:x/s", "1"), key(true, 0, 0)).await,
            (404, "M_NOT_FOUND"),
        );
        let old = create(&alice).await;
        alice.put_ok(&keys("/!r:x/s", &old), key(true, 0, 0)).await;
        let new = create(&alice).await;
        let (status, answer) = alice.put(&keys("/!r:x/t", &old), key(true, 0, 0)).await;
        assert_eq!(
            (status.as_u16(), &answer["errcode"]),
            (403, &json!("M_WRONG_ROOM_KEYS_VERSION"))
        );
        assert_eq!(answer["current_version"], json!(new));
        assert_refused(alice.get(&keys("/!r:x/s", &new)).await, (404, "M_NOT_FOUND"));
        assert_eq!(alice.get_ok(&keys("/!r:x/s", &old)).await, key(true, 0, 0));
        for bad in [json!({}), json!({"is_verified": true}), json!({"is_verified": 1})] {
            assert_refused(alice.put(&keys("/!r:x/s", &new), bad).await, (400, "M_BAD_JSON"));
        }
    }
}
