//! Checks what events show by themselves: format, signatures, hashes. That is most of the work of receiving, so it is
//! spread over the processors; nothing is read of any room.

use std::sync::Arc;

use futures::future::try_join_all;
use kith_engine::{CheckedPdu, PduError, UncheckedPdu};
use ruma::{OwnedEventId, RoomId, RoomVersionId, ServerName};
use serde_json::value::RawValue;

use super::ServerKeys;
use crate::{Error, clock::World};

/// Events that one task checks at the least: fewer are not worth a task of their own.
const MIN_CHUNK: usize = 8;

/// Events that are checked at once at the most: parsed and not yet checked, an event takes several times its size.
const CHECKED_AT_ONCE: usize = 512;

impl ServerKeys {
    /// Checks events of one room. Those that are malformed, another room's or not genuine are left out, with a word in
    /// the log; the order stays. `ask` is asked for keys that are not held.
    pub(super) async fn check(
        &self,
        pdus: Vec<Box<RawValue>>,
        room: &RoomId,
        version: &RoomVersionId,
        ask: &ServerName,
    ) -> Result<Vec<CheckedPdu>, Error> {
        let mut all = Vec::with_capacity(pdus.len());
        let mut pdus = pdus.into_iter();
        loop {
            let some: Vec<_> = pdus.by_ref().take(CHECKED_AT_ONCE).collect();
            if some.is_empty() {
                return Ok(all);
            }
            all.extend(self.check_some(some, room, version, ask).await?);
        }
    }

    async fn check_some(
        &self,
        pdus: Vec<Box<RawValue>>,
        room: &RoomId,
        version: &RoomVersionId,
        ask: &ServerName,
    ) -> Result<Vec<CheckedPdu>, Error> {
        let unchecked = parse(&self.ctx.world, pdus, version).await?;
        let unchecked = unchecked.into_iter().filter_map(|parsed| match parsed {
            Ok(pdu) if pdu.pdu().room_id() == room => Some(pdu),
            Ok(pdu) => {
                tracing::debug!(%ask, %room, event = %pdu.event_id(), "an event of another room was told; ignored");
                None
            }
            Err(error) => {
                tracing::debug!(%ask, %room, %error, "a malformed event was told; ignored");
                None
            }
        });
        let checked = self.verify(unchecked.collect(), ask).await?;
        Ok(checked
            .into_iter()
            .filter_map(|(id, checked)| match checked {
                Ok(checked) => Some(checked),
                Err(error) => {
                    tracing::debug!(%ask, %room, event = %id, %error, "an event is not genuine; ignored");
                    None
                }
            })
            .collect())
    }

    /// Verifies signatures and hashes; the order stays.
    pub(super) async fn verify(
        &self,
        unchecked: Vec<UncheckedPdu>,
        ask: &ServerName,
    ) -> Result<Vec<(OwnedEventId, Result<CheckedPdu, PduError>)>, Error> {
        let needed: Vec<_> = unchecked
            .iter()
            .flat_map(UncheckedPdu::required_keys)
            .flatten()
            .collect();
        let ring = Arc::new(self.load(&needed, ask).await?);
        in_parallel(&self.ctx.world, unchecked, move |pdu| {
            let id = pdu.event_id().to_owned();
            let checked = pdu.verify(|server, key_id, at| ring.get(server, key_id, at));
            (id, checked)
        })
        .await
    }
}

/// Parses events and checks their format; the order stays.
pub(super) async fn parse(
    world: &World,
    pdus: Vec<Box<RawValue>>,
    version: &RoomVersionId,
) -> Result<Vec<Result<UncheckedPdu, PduError>>, Error> {
    let version = version.clone();
    in_parallel(world, pdus, move |json| UncheckedPdu::parse(json.get(), &version)).await
}

/// Maps a list by pure computing, off the async threads, on as many processors as it is worth.
async fn in_parallel<T, U>(
    world: &World,
    items: Vec<T>,
    map: impl Fn(T) -> U + Send + Sync + 'static,
) -> Result<Vec<U>, Error>
where
    T: Send + 'static,
    U: Send + 'static,
{
    let processors = world.processors();
    let chunk = items.len().div_ceil(processors).max(MIN_CHUNK);
    let map = Arc::new(map);
    let mut tasks = Vec::with_capacity(processors);
    let mut items = items.into_iter();
    loop {
        let part: Vec<T> = items.by_ref().take(chunk).collect();
        if part.is_empty() {
            break;
        }
        let map = Arc::clone(&map);
        tasks.push(world.compute(move || part.into_iter().map(|item| map(item)).collect::<Vec<U>>()));
    }
    let parts = try_join_all(tasks).await;
    let parts = parts.map_err(|error| Error::Internal("checking events was cut short", Some(Box::new(error))))?;
    Ok(parts.into_iter().flatten().collect())
}
