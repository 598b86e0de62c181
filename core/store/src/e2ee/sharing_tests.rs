//! Who shares rooms with whom, against a model that keeps plain sets.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, UInt, UserId, device_id};
use rusqlite::params;

use super::{DeviceListChanges, JoinChange};
use crate::{Seq, Store, StoreConfig, StoreError, WriteTxn};

const LOCAL: [&str; 2] = ["@alice:here", "@adam:here"];
const REMOTE: [&str; 4] = ["@bob:there", "@bella:there", "@carol:elsewhere", "@chris:elsewhere"];
const ROOMS: i64 = 3;

fn users() -> impl Iterator<Item = &'static UserId> {
    LOCAL
        .into_iter()
        .chain(REMOTE)
        .map(|id| <&UserId>::try_from(id).unwrap())
}

/// Accounts with published device lists, empty rooms, and one event for membership rows to point at.
fn set_up(txn: &WriteTxn<'_>) -> Result<(), StoreError> {
    for local in LOCAL {
        let (local, now) = (
            <&UserId>::try_from(local).unwrap(),
            MilliSecondsSinceUnixEpoch(UInt::MIN),
        );
        txn.insert_user(local, None, now)?;
        txn.advance_own_device_list(local, device_id!("D"))?;
    }
    for user in users() {
        txn.intern_user(user)?;
    }
    txn.conn().execute_batch(
        "INSERT INTO types (type, name) VALUES (1, 't');
         INSERT INTO rooms (room, room_id, version) VALUES (0, '!0', '12'), (1, '!1', '12'), (2, '!2', '12');
         INSERT INTO events (event, event_id, room, status, outlier, type, sender, depth, ts, json)
         VALUES (1, '$e', 0, 0, 0, 1, 1, 1, 1, '{}');",
    )?;
    Ok(())
}

/// Writes a membership as members.rs does, and tells of it.
fn set_joined(txn: &WriteTxn<'_>, room: i64, user: &UserId, joined: bool) -> Result<(), StoreError> {
    let (user_no, server) = (txn.intern_user(user)?, txn.intern_server(user.server_name())?);
    let conn = txn.conn();
    let (membership, by) = if joined { (0, 1) } else { (2, -1) };
    conn.execute(
        "INSERT OR REPLACE INTO members (room, user, membership, event, seq) VALUES (?, ?, ?, 1, 1)",
        params![room, user_no, membership],
    )?;
    conn.execute(
        "INSERT INTO room_servers (room, server, joined) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET joined = joined + ?3",
        params![room, server, by],
    )?;
    conn.execute("DELETE FROM room_servers WHERE joined = 0", [])?;
    txn.sharing_changed(JoinChange {
        room,
        user,
        user_no,
        joined,
        seq: txn.next_seq()?,
    })
}

/// Who is in which room.
#[derive(Default, Clone)]
struct Model(BTreeMap<i64, BTreeSet<&'static UserId>>);

impl Model {
    fn sharing(&self, user: &UserId) -> BTreeSet<&'static UserId> {
        let rooms = self.0.values().filter(|room| room.contains(user));
        rooms.flatten().copied().filter(|other| *other != user).collect()
    }

    fn servers_sharing(&self, user: &UserId) -> BTreeSet<String> {
        let others = self.sharing(user).into_iter();
        let remote = others.filter(|other| other.server_name() != user.server_name());
        remote.map(|other| other.server_name().to_string()).collect()
    }
}

fn owned(users: impl IntoIterator<Item = &'static UserId>) -> BTreeSet<OwnedUserId> {
    users.into_iter().map(ToOwned::to_owned).collect()
}

fn check_step(txn: &WriteTxn<'_>, model: &mut Model, room: i64, user: &'static UserId) -> Result<(), StoreError> {
    let before = model.clone();
    let members = model.0.entry(room).or_default();
    let joined = members.insert(user);
    if !joined {
        members.remove(user);
    }
    let since = txn.last_seq()?;
    for tracked in REMOTE.map(|id| <&UserId>::try_from(id).unwrap()) {
        if before
            .sharing(tracked)
            .iter()
            .any(|other| other.server_name() == "here")
        {
            txn.note_device_list_gap(tracked)?;
        }
    }
    set_joined(txn, room, user, joined)?;
    let mut due = BTreeSet::new();
    for local in LOCAL.map(|id| <&UserId>::try_from(id).unwrap()) {
        let (was, is) = (before.sharing(local), model.sharing(local));
        let DeviceListChanges { changed, left } = txn.device_list_changes(local, since, txn.last_seq()?)?;
        assert_eq!(changed.into_iter().collect::<BTreeSet<_>>(), owned(&is - &was));
        assert_eq!(left.into_iter().collect::<BTreeSet<_>>(), owned(&was - &is));
        for server in &model.servers_sharing(local) - &before.servers_sharing(local) {
            due.insert((local.to_string(), server));
        }
    }
    let taken = txn.take_due_device_lists()?.into_iter();
    let taken: BTreeSet<_> = taken
        .map(|(user, server)| (user.to_string(), server.to_string()))
        .collect();
    assert_eq!(taken, due);
    assert!(txn.take_due_device_lists()?.is_empty());
    for remote in REMOTE.map(|id| <&UserId>::try_from(id).unwrap()) {
        let shares = model.sharing(remote).iter().any(|other| other.server_name() == "here");
        assert_eq!(txn.shares_a_room_with_local(remote)?, shares, "{remote}");
        let was_tracked = before.sharing(remote).iter().any(|other| other.server_name() == "here");
        assert_eq!(
            txn.remote_device_list(remote)?.is_some(),
            shares && was_tracked,
            "{remote}"
        );
        let since = txn.last_seq()?;
        assert_eq!(txn.note_device_list_change(remote)?, shares);
        for local in LOCAL.map(|id| <&UserId>::try_from(id).unwrap()) {
            let changes = txn.device_list_changes(local, since, Seq(i64::MAX))?.changed;
            assert_eq!(
                changes.contains(&remote.to_owned()),
                model.sharing(local).contains(remote)
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sharing_follows_the_memberships(steps in prop::collection::vec((0..ROOMS, 0..6usize), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&StoreConfig::new(dir.path().join("kith.db"))).unwrap();
            store
                .write(move |txn| {
                    set_up(txn)?;
                    let mut model = Model::default();
                    for (room, user) in steps {
                        check_step(txn, &mut model, room, users().nth(user).unwrap())?;
                    }
                    Ok::<_, StoreError>(())
                })
                .await
                .unwrap();
        });
    }
}
