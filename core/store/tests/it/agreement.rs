//! Whether a store and a room in memory give the same answers.

use std::collections::BTreeMap;

use kith_engine::{Pdu, RoomReader, StateId, StateKey};
use kith_store::{Direction, ReadTxn, Seq, StoreError};
use ruma::{
    OwnedEventId, RoomVersionId,
    canonical_json::redact,
    events::{StateEventType, room::member::MembershipState},
};

use crate::{
    model::Model,
    rooms::{room, user},
};

/// Compares everything that can be asked.
pub(crate) fn compare(txn: &ReadTxn<'_>, model: &Model, absent: &[Pdu]) -> Result<(), StoreError> {
    let room = room();
    let states = |store: Option<StateId>, plain: Option<StateId>| -> Result<(), StoreError> {
        assert_eq!(store.is_some(), plain.is_some());
        if let (Some(store), Some(plain)) = (store, plain) {
            let map = model.full_state(plain).unwrap();
            // Single entries first: reading the whole state would fill the caches that they are looked up in.
            for number in 0..12 {
                let key: StateKey = (StateEventType::RoomMember, user(number).to_string());
                assert_eq!(txn.state_entry(store, &key)?, map.get(&key).cloned());
            }
            assert_eq!(txn.full_state(store)?, map);
        }
        Ok(())
    };
    let sorted = |mut ids: Vec<OwnedEventId>| {
        ids.sort();
        ids
    };
    assert_eq!(
        sorted(txn.forward_extremities(&room)?),
        sorted(model.extremities.clone())
    );
    states(txn.current_state(&room)?, model.current)?;
    states(txn.state_at(&room, txn.last_seq()?)?, model.current)?;
    for (id, kept) in &model.events {
        let store = txn.event(id)?.unwrap();
        let plain = model.event(id).unwrap().unwrap();
        assert_eq!(
            (store.status, store.outlier, store.told),
            (plain.status, plain.outlier, plain.told)
        );
        let json = if kept.redacted_by.is_some() {
            let rules = RoomVersionId::V12.rules().unwrap().redaction;
            serde_json::to_string(&redact(plain.pdu.to_object().unwrap(), &rules, None).unwrap()).unwrap()
        } else {
            plain.pdu.json().to_owned()
        };
        assert_eq!(store.pdu.json(), json);
        assert_eq!(txn.redacted_by(id)?, kept.redacted_by);
        states(txn.state_before(id)?, model.state_before(id).unwrap())?;
        states(txn.state_after(id)?, model.state_after(id).unwrap())?;
        assert_eq!(txn.has_successor(id)?, model.has_successor(id).unwrap(), "{id}");
    }
    for pdu in absent {
        let id = pdu.event_id();
        assert!(!txn.has_event(id)? && txn.event(id)?.is_none());
        assert_eq!(txn.has_successor(id)?, model.has_successor(id).unwrap());
        assert_eq!(txn.redactions_of(id)?, model.redactions_of(id).unwrap());
    }
    assert_eq!(
        txn.auth_chain(&model.extremities)?,
        model.auth_chain(&model.extremities).unwrap()
    );

    let forward = txn.timeline(&room, Seq(i64::MIN), Direction::Forward, usize::MAX)?;
    let ids: Vec<_> = forward.iter().map(|event| event.pdu.event_id().to_owned()).collect();
    assert_eq!(ids, model.timeline);
    let mut backward = txn.timeline(&room, Seq(i64::MAX), Direction::Backward, usize::MAX)?;
    backward.reverse();
    assert_eq!(
        backward.iter().map(|event| event.stream).collect::<Vec<_>>(),
        forward.iter().map(|event| event.stream).collect::<Vec<_>>()
    );
    compare_members(txn, model)?;

    let absent = sorted(absent.iter().map(|pdu| pdu.event_id().to_owned()).collect());
    let mut missing: Vec<_> = txn
        .backward_extremities(&room)?
        .into_iter()
        .map(|(missing, _)| missing)
        .collect();
    missing.sort();
    assert_eq!(missing, absent);
    Ok(())
}

fn compare_members(txn: &ReadTxn<'_>, model: &Model) -> Result<(), StoreError> {
    let room = room();
    let Some(current) = model.current else {
        return Ok(());
    };
    let mut joined_servers = BTreeMap::new();
    let mut joined = 0;
    for number in 0..12 {
        let user = user(number);
        let key = (StateEventType::RoomMember, user.to_string());
        let event = model.state_entry(current, &key).unwrap();
        let membership = event.as_ref().map_or(MembershipState::Leave, |id| {
            let content: serde_json::Value = model.event(id).unwrap().unwrap().pdu.content_as().unwrap();
            serde_json::from_value(content["membership"].clone()).unwrap()
        });
        assert_eq!(txn.membership(&room, &user)?, membership);
        assert_eq!(txn.member(&room, &user)?.map(|member| member.event_id), event);
        if membership == MembershipState::Join {
            joined += 1;
            *joined_servers.entry(user.server_name().to_owned()).or_insert(0) += 1;
        }
        let rooms = txn.rooms_of(&user, &[MembershipState::Join, MembershipState::Invite])?;
        let counted = matches!(membership, MembershipState::Join | MembershipState::Invite);
        assert_eq!(rooms.len(), usize::from(counted && event.is_some()));
    }
    assert_eq!(txn.members(&room, &[MembershipState::Join])?.len(), joined);
    assert_eq!(txn.member_count(&room, &MembershipState::Join)?, joined as u64);
    let mut servers = txn.joined_servers(&room)?;
    servers.sort();
    assert_eq!(servers, joined_servers.into_keys().collect::<Vec<_>>());
    Ok(())
}
