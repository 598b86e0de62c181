//! What this node holds of a room that it enters again, and the server that lets it in does not: a removal that server has
//! not heard of must not be undone by it. It only asks.

use std::collections::BTreeMap;

use kith_engine::{Heads, RoomReader};
use ruma::{OwnedEventId, RoomId, ServerName};

use super::Rooms;
use crate::{
    Error,
    federation::{catch_up::api::exchange_heads, client},
};

/// Heads asked about one by one; of more, those left over are taken for unknown.
const MAX_ASKED: usize = 10;

impl Rooms {
    /// The forward extremities of a room, from when this node was in it, that a server does not show to hold. What it does hold
    /// before it makes a join, the join builds upon. None where this node never was in the room.
    pub(super) async fn heads_apart(&self, room: &RoomId, server: &ServerName) -> Result<Vec<OwnedEventId>, Error> {
        let wanted = room.to_owned();
        let heads = self.ctx.store.read(move |txn| txn.forward_extremities(&wanted)).await?;
        if heads.is_empty() || self.holds(server, room, &heads).await? {
            return Ok(Vec::new());
        }
        let mut apart = Vec::new();
        for (place, head) in heads.iter().enumerate() {
            let asked = heads.len() > 1 && place < MAX_ASKED;
            if !asked || !self.holds(server, room, std::slice::from_ref(head)).await? {
                apart.push(head.clone());
            }
        }
        Ok(apart)
    }

    /// Whether a server holds events of a room, as far as it tells. One that is in the room and does not will ask for them.
    async fn holds(&self, server: &ServerName, room: &RoomId, events: &[OwnedEventId]) -> Result<bool, Error> {
        let (wanted, ids) = (room.to_owned(), events.to_vec());
        let read = self.ctx.store.read(move |txn| {
            let mut depth = 0;
            for id in &ids {
                depth = depth.max(txn.event(id)?.map_or(0, |held| held.pdu.depth()));
            }
            Ok::<_, Error>(BTreeMap::from([(wanted, Heads::new(ids, depth))]))
        });
        let request = exchange_heads::Request::new(read.await?);
        match client::request(&self.ctx, server, request).await {
            Ok(answer) => Ok(answer.holds.contains(room)),
            Err(Error::Network(error)) if error.is_final() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
