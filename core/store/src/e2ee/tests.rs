//! The e2ee tables over a real file: what is handed out once, what survives a gap, what goes with its device.

use kith_engine::encryption::RoomKeyRank;
use ruma::{
    DeviceId, MilliSecondsSinceUnixEpoch, OneTimeKeyAlgorithm, OneTimeKeyId, UInt, UserId, device_id,
    events::AnyToDeviceEvent, room_id, serde::Raw, server_name, user_id,
};
use serde_json::{json, value::to_raw_value};
use tempfile::TempDir;

use super::{BackedUpKey, DeviceRow, KeyChange};
use crate::{ReadTxn, Seq, Store, StoreConfig, StoreError, WriteTxn};

struct TestStore {
    store: Store,
    _dir: TempDir,
}

impl TestStore {
    /// A store with Alice and her devices PHONE and LAPTOP.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(dir.path().join("kith.db"))).unwrap();
        let test = Self { store, _dir: dir };
        test.write(|txn| {
            let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(1));
            txn.insert_user(alice(), None, now)?;
            txn.log_device_in(alice(), phone(), Some("Phone"), now)?;
            txn.log_device_in(alice(), laptop(), None, now)
        })
        .await;
        test
    }

    async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&WriteTxn<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.write(job).await.unwrap()
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ReadTxn<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.read(job).await.unwrap()
    }
}

fn alice() -> &'static UserId {
    user_id!("@alice:here")
}

fn phone() -> &'static DeviceId {
    device_id!("PHONE")
}

fn laptop() -> &'static DeviceId {
    device_id!("LAPTOP")
}

fn signed() -> OneTimeKeyAlgorithm {
    OneTimeKeyAlgorithm::SignedCurve25519
}

fn message(n: usize) -> Raw<AnyToDeviceEvent> {
    Raw::from_json(to_raw_value(&json!({"type": "m.test", "sender": "@a:b", "content": {"n": n}})).unwrap())
}

#[tokio::test]
async fn one_time_keys_leave_once_and_oldest_first() {
    let test = TestStore::new().await;
    let ids = ["signed_curve25519:C", "signed_curve25519:A", "signed_curve25519:B"];
    test.write(move |txn| {
        for id in ids {
            let id = <&OneTimeKeyId>::try_from(id).unwrap();
            txn.add_one_time_key(alice(), phone(), id, "{}")?;
        }
        let other = <&OneTimeKeyId>::try_from("curve25519:X").unwrap();
        txn.add_one_time_key(alice(), phone(), other, "\"x\"")?;
        txn.add_one_time_key(alice(), laptop(), <&OneTimeKeyId>::try_from(ids[0]).unwrap(), "{}")
    })
    .await;
    let mut claimed = Vec::new();
    while let Some((id, _)) = test
        .write(|txn| txn.claim_one_time_key(alice(), phone(), &signed()))
        .await
    {
        claimed.push(id.to_string());
    }
    assert_eq!(claimed, ids);
    let counts = test.read(|txn| txn.one_time_key_counts(alice(), phone())).await;
    let expected = [("curve25519".into(), UInt::from(1u8)), (signed(), UInt::from(0u8))];
    assert_eq!(counts, expected.into_iter().collect());
    let state = test
        .read(move |txn| txn.one_time_key(alice(), phone(), <&OneTimeKeyId>::try_from(ids[0]).unwrap()))
        .await;
    assert!(state.unwrap().claimed);
    let others = test.read(|txn| txn.one_time_key_counts(alice(), laptop())).await;
    assert_eq!(others[&signed()], UInt::from(1u8));
}

#[tokio::test]
async fn fallback_keys_stay_and_are_marked() {
    let test = TestStore::new().await;
    let unused = || test.read(|txn| txn.unused_fallback_key_types(alice(), phone()));
    let set = |id: &'static str| {
        test.write(move |txn| {
            let id = <&OneTimeKeyId>::try_from(id).unwrap();
            txn.set_fallback_key(alice(), phone(), id, "{}")
        })
    };
    let used = || test.write(|txn| txn.use_fallback_key(alice(), phone(), &signed()));
    assert_eq!(used().await, None);
    set("signed_curve25519:A").await;
    assert_eq!(unused().await, [signed()]);
    for _ in 0..2 {
        assert_eq!(used().await.unwrap().0, "signed_curve25519:A");
        assert!(unused().await.is_empty());
    }
    set("signed_curve25519:B").await;
    assert_eq!(unused().await, [signed()]);
}

#[tokio::test]
async fn messages_wait_in_order_until_acknowledged() {
    let test = TestStore::new().await;
    let seqs = test
        .write(|txn| {
            for n in 0..5 {
                assert!(txn.add_to_device_message(alice(), phone(), server_name!("there"), &message(n))?);
            }
            assert!(txn.add_to_device_message(alice(), laptop(), server_name!("there"), &message(9))?);
            txn.to_device_messages(alice(), phone(), Seq(0), txn.last_seq()?, 100)
        })
        .await;
    let seqs: Vec<Seq> = seqs.into_iter().map(|message| message.seq).collect();
    assert_eq!(seqs.len(), 5);
    assert!(seqs.is_sorted());
    for (since, to, limit, expected) in [
        (Seq(0), seqs[4], 100, 0..5),
        (Seq(0), seqs[4], 2, 0..2),
        (seqs[1], seqs[4], 100, 2..5),
        (Seq(0), seqs[2], 100, 0..3),
    ] {
        let found = test
            .read(move |txn| txn.to_device_messages(alice(), phone(), since, to, limit))
            .await;
        let found: Vec<Seq> = found.into_iter().map(|message| message.seq).collect();
        assert_eq!(found, seqs[expected], "{since:?} {to:?} {limit}");
    }
    let up_to = seqs[2];
    assert_eq!(
        test.write(move |txn| txn.delete_to_device(alice(), phone(), up_to))
            .await,
        3
    );
    let left = test
        .read(|txn| txn.to_device_messages(alice(), phone(), Seq(0), txn.last_seq()?, 100))
        .await;
    assert_eq!(left.len(), 2);
    assert!(
        test.read(|txn| txn.has_to_device_messages(alice(), laptop(), Seq(0)))
            .await
    );
}

#[tokio::test]
async fn repeats_are_recognised() {
    let test = TestStore::new().await;
    let (sent, received) = test
        .write(|txn| {
            let mut sent = Vec::new();
            for (device, id) in [(phone(), "1"), (phone(), "1"), (laptop(), "1"), (phone(), "2")] {
                sent.push(txn.remember_to_device_sent(alice(), device, id.into())?);
            }
            let mut received = Vec::new();
            for (origin, id) in [("there", "1"), ("there", "1"), ("elsewhere", "1"), ("there", "2")] {
                received.push(txn.remember_to_device_received(origin.try_into().unwrap(), id)?);
            }
            Ok((sent, received))
        })
        .await;
    assert_eq!(sent, [true, false, true, true]);
    assert_eq!(received, [true, false, true, true]);
}

#[tokio::test]
async fn a_gap_during_a_fetch_stays_a_gap() {
    let test = TestStore::new().await;
    let bob = user_id!("@bob:there");
    let devices = vec![DeviceRow {
        device_id: "D".into(),
        display_name: None,
        keys: "{}".to_owned(),
    }];
    let list = || test.read(move |txn| txn.remote_device_list(bob));
    assert_eq!(list().await, None);
    let gaps = test.write(move |txn| txn.note_device_list_gap(bob)).await;
    assert!(!list().await.unwrap().fresh);
    // While the fetch runs an update arrives that cannot be applied.
    test.write(move |txn| txn.note_device_list_gap(bob)).await;
    let fetched = devices.clone();
    assert!(
        test.write(move |txn| txn.fill_device_list(bob, 7, gaps, &fetched))
            .await
    );
    assert!(!list().await.unwrap().fresh);
    assert_eq!(test.read(move |txn| txn.stale_device_lists(9)).await, [bob]);
    let fetched = devices.clone();
    assert!(
        test.write(move |txn| txn.fill_device_list(bob, 8, gaps + 1, &fetched))
            .await
    );
    let held = list().await.unwrap();
    assert!(held.fresh);
    assert_eq!(held.stream_id, 8);
    assert_eq!(test.read(move |txn| txn.remote_devices(bob)).await, devices);
    // Once untracked, a late answer brings nothing back.
    test.write(move |txn| txn.drop_device_list(bob)).await;
    assert!(
        !test
            .write(move |txn| txn.fill_device_list(bob, 9, gaps + 1, &devices))
            .await
    );
    assert!(test.read(move |txn| txn.remote_devices(bob)).await.is_empty());
}

#[tokio::test]
async fn what_belongs_to_a_device_goes_with_it() {
    let test = TestStore::new().await;
    let id = || <&OneTimeKeyId>::try_from("signed_curve25519:A").unwrap();
    test.write(move |txn| {
        for device in [phone(), laptop()] {
            txn.set_device_keys(alice(), device, "{}")?;
            txn.add_one_time_key(alice(), device, id(), "{}")?;
            txn.set_fallback_key(alice(), device, id(), "{}")?;
            txn.add_to_device_message(alice(), device, server_name!("there"), &message(1))?;
            txn.remember_to_device_sent(alice(), device, "1".into())?;
        }
        txn.set_dehydrated_device(alice(), phone(), "{}")?;
        assert!(txn.delete_device(alice(), phone())?);
        assert_eq!(txn.device_keys(alice(), phone())?, None);
        assert_eq!(txn.one_time_key(alice(), phone(), id())?, None);
        assert_eq!(txn.fallback_key(alice(), phone(), &signed())?, None);
        assert!(!txn.has_to_device_messages(alice(), phone(), Seq(0))?);
        assert_eq!(txn.dehydrated_device(alice())?, None);
        assert!(txn.device_keys(alice(), laptop())?.is_some());
        assert!(txn.has_to_device_messages(alice(), laptop(), Seq(0))?);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn backups_count_their_keys_and_never_reuse_a_version() {
    let test = TestStore::new().await;
    test.write(|txn| {
        let data = to_raw_value(&json!({})).unwrap();
        let key = |session: &str| BackedUpKey {
            room_id: room_id!("!r:x").to_owned(),
            session_id: session.to_owned(),
            key: Raw::from_json(to_raw_value(&json!({"session_data": {}})).unwrap()),
        };
        let rank = |first_message_index| RoomKeyRank {
            is_verified: false,
            first_message_index,
            forwarded_count: 0,
        };
        assert_eq!(txn.create_key_backup(alice(), "a", &data)?, 1);
        assert_eq!(txn.create_key_backup(alice(), "b", &data)?, 2);
        for (session, index, expected) in [
            ("s", 5, KeyChange::Added),
            ("s", 5, KeyChange::Kept),
            ("s", 4, KeyChange::Replaced),
            ("t", 9, KeyChange::Added),
        ] {
            assert_eq!(txn.back_up_key(alice(), 2, &key(session), rank(index))?, expected);
        }
        assert_eq!(txn.count_backup_change(alice(), 2, 2)?, (1, 2));
        assert_eq!(txn.backed_up_keys(alice(), 2, None, None)?.len(), 2);
        let room = room_id!("!r:x");
        assert_eq!(txn.backed_up_keys(alice(), 2, Some(room), Some("s"))?.len(), 1);
        assert_eq!(
            txn.backed_up_keys(alice(), 2, Some(room_id!("!other:x")), None)?.len(),
            0
        );
        assert_eq!(txn.delete_backed_up_keys(alice(), 2, Some(room), Some("t"))?, 1);
        assert!(txn.delete_key_backup(alice(), 2)?);
        assert!(!txn.delete_key_backup(alice(), 2)?);
        assert!(txn.backed_up_keys(alice(), 2, None, None)?.is_empty());
        assert_eq!(txn.current_key_backup(alice())?.unwrap().version, 1);
        assert_eq!(txn.create_key_backup(alice(), "c", &data)?, 3);
        Ok(())
    })
    .await;
}
