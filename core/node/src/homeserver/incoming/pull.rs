//! Pulls what a room lacks from one member, as the engine's [`Pull`] says, and keeps it as it comes, oldest first. Whatever
//! was kept stays, however the turn ends.

use std::collections::BTreeSet;

use kith_engine::{
    Ask, CheckedPdu, Pull, Pulled, RoomReader,
    limits::{FEW_HEADS, MAX_EVENTS_PER_PULL},
};
use kith_store::ReadTxn;
use ruma::{OwnedEventId, RoomId, RoomVersionId, ServerName};

use super::{
    Incoming,
    ask::Asked,
    gap::{Attempt, keep_live},
    unconnected::{Unconnected, named_from},
};
use crate::{Error, federation::catch_up::api::pull, homeserver::rooms::state::find_room, network::Limits};

/// What an answer with pulled events may cost.
const PULL: Limits = Limits {
    deadline: std::time::Duration::from_secs(60),
    max_answer: 8 * 1024 * 1024,
    bulk: true,
};
/// Pulled events kept in one commit, so that the writer is never held up for long.
const EVENTS_PER_COMMIT: usize = 100;

/// What became of an attempt to pull what comes before an event.
pub(super) enum Past {
    /// It is held now.
    Held,
    /// It could not be had now: who else has it, catching up will show.
    Later,
    /// The server speaks of no such things.
    Foreign,
}

/// A turn under way: whom it asks, for what, and what it has at hand.
struct Turn {
    asked: Asked,
    wanted: Vec<OwnedEventId>,
    open: Unconnected,
    kept: usize,
}

impl Incoming {
    /// Pulls these heads of a room, and all that lies between them and what is held, from one member. `may_be_told`: what
    /// nobody has may be bridged by the state that this member tells. Returns how it ended, and which heads are held now. An
    /// error says that the member did not answer, or that the database failed.
    pub async fn pull(
        &self,
        room: &RoomId,
        from: &ServerName,
        wanted: &[OwnedEventId],
        depth: u64,
        may_be_told: bool,
    ) -> Result<Pulled, Error> {
        let _turn = self.filling.take(room).await;
        let Some((version, own_depth)) = self.pulled_room(room, from).await? else {
            return Ok(Pulled::Gone);
        };
        let asked = self.whom_to_ask(room, &version, Some(from)).await?;
        let pull = Pull::new(own_depth, depth, may_be_told);
        let lacked = !self.not_in_graph(wanted.to_vec()).await?.is_empty();
        let pulled = self.run_pull(asked.only(from), wanted.to_vec(), pull).await?;
        if lacked && matches!(pulled, Pulled::Done) {
            self.topics.note_missed(room, from).await;
        }
        Ok(pulled)
    }

    /// Pulls all that lies between an event and what is held, from its sender. The room's turn must be taken.
    pub(super) async fn pull_past(
        &self,
        asked: &Asked,
        event: &CheckedPdu,
        missing: Vec<OwnedEventId>,
        from: &ServerName,
    ) -> Result<Past, Error> {
        let Some((_, own_depth)) = self.pulled_room(event.room_id(), from).await? else {
            return Ok(Past::Foreign);
        };
        let pull = Pull::new(own_depth, event.pdu().depth(), false);
        match self.run_pull(asked.only(from), missing, pull).await {
            Ok(Pulled::Done) => Ok(Past::Held),
            Ok(_) => Ok(Past::Later),
            Err(Error::Network(error)) if error.is_final() => Ok(Past::Foreign),
            Err(Error::Network(error)) => {
                tracing::debug!(%from, %error, "a server sent an event, but not what comes before it");
                Ok(Past::Later)
            }
            Err(error) => Err(error),
        }
    }

    /// [`not_in_graph`], in a read of its own.
    pub(in crate::homeserver) async fn not_in_graph(&self, ids: Vec<OwnedEventId>) -> Result<Vec<OwnedEventId>, Error> {
        self.ctx.store.read(move |txn| not_in_graph(txn, ids)).await
    }

    /// Those of some events that do not stand in their room's graph.
    pub(super) async fn not_in_graph_of(&self, mut events: Vec<CheckedPdu>) -> Result<Vec<CheckedPdu>, Error> {
        let ids = events.iter().map(|event| event.event_id().to_owned()).collect();
        let lacking: BTreeSet<OwnedEventId> = self.not_in_graph(ids).await?.into_iter().collect();
        events.retain(|event| lacking.contains(event.event_id()));
        Ok(events)
    }

    /// A room's version and the depth of its heads; none if the other server is not in it, or this one never was. One that was
    /// removed asks too: what it lacks may undo the removal.
    async fn pulled_room(&self, room: &RoomId, from: &ServerName) -> Result<Option<(RoomVersionId, u64)>, Error> {
        let (room, from, own) = (room.to_owned(), from.to_owned(), self.ctx.server_name.clone());
        let read = self.ctx.store.read(move |txn| {
            let here = txn.is_server_joined(&room, &own)? || txn.departure(&room, &own)?.is_some();
            let both = here && txn.is_server_joined(&room, &from)?;
            let Some(view) = find_room(txn, &room)?.filter(|_| both) else {
                return Ok(None);
            };
            Ok::<_, Error>(Some((view.version().clone(), txn.head_depth(&room)?)))
        });
        read.await
    }

    async fn run_pull(&self, asked: Asked, wanted: Vec<OwnedEventId>, mut pull: Pull) -> Result<Pulled, Error> {
        let mut turn = Turn {
            asked,
            wanted,
            open: Unconnected::default(),
            kept: 0,
        };
        loop {
            let missing = self.missing(&turn).await?;
            match pull.poll_ask(&missing) {
                Ask::Past(ids) => {
                    let new = self.pull_events(&mut turn, ids, true).await?;
                    pull.handle_events(new, turn.kept);
                }
                Ask::Difference { window } => {
                    let (lacking, whole) = self.difference(&turn.asked, window).await?;
                    pull.handle_difference(lacking, whole);
                }
                Ask::Events(ids) => {
                    let new = self.pull_listed(&mut turn, ids).await?;
                    pull.handle_events(new, turn.kept);
                }
                Ask::Told => {
                    let new = self.place_told(&mut turn).await?;
                    pull.handle_events(new, turn.kept);
                }
                Ask::Done => return Ok(Pulled::Done),
                Ask::Postponed => return Ok(Pulled::Postponed),
                Ask::GiveUp => return Ok(Pulled::Lacking),
            }
        }
    }

    /// What must still be had: wanted events, and those before events that are at hand. Nothing once all that was wanted is
    /// held.
    async fn missing(&self, turn: &Turn) -> Result<Vec<OwnedEventId>, Error> {
        let wanted = self.not_in_graph(turn.wanted.clone()).await?;
        if wanted.is_empty() {
            return Ok(wanted);
        }
        let named: Vec<OwnedEventId> = turn.open.named().into_keys().collect();
        let read = self.ctx.store.read(move |txn| {
            let mut missing = Vec::new();
            for id in named {
                if txn.state_after(&id)?.is_none() {
                    missing.push(id);
                }
            }
            Ok::<_, Error>(missing)
        });
        let before = read.await?;
        let mut missing: Vec<OwnedEventId> = wanted.iter().filter(|id| !turn.open.contains(id)).cloned().collect();
        missing.extend(before);
        Ok(if missing.is_empty() { wanted } else { missing })
    }

    /// Asks for events found by reconciliation; an answer may hold only the first of them.
    async fn pull_listed(&self, turn: &mut Turn, ids: Vec<OwnedEventId>) -> Result<usize, Error> {
        let mut new = 0;
        let mut wanted: Vec<OwnedEventId> = ids.into_iter().filter(|id| !turn.open.contains(id)).collect();
        loop {
            let left = self.not_in_graph(wanted).await?;
            if left.is_empty() {
                return Ok(new);
            }
            let brought = self.pull_events(turn, left.clone(), false).await?;
            new += brought;
            if brought == 0 || brought >= left.len() {
                return Ok(new);
            }
            wanted = left.into_iter().filter(|id| !turn.open.contains(id)).collect();
        }
    }

    /// One request for events, and what it brings. Returns how many events were neither held nor at hand.
    async fn pull_events(&self, turn: &mut Turn, ids: Vec<OwnedEventId>, past: bool) -> Result<usize, Error> {
        let room = turn.asked.room.clone();
        let mut held = Vec::new();
        if past {
            let room = room.clone();
            let extremities = self.ctx.store.read(move |txn| txn.forward_extremities(&room));
            held = extremities.await?;
            held.truncate(FEW_HEADS);
        }
        let request = || {
            let mut request = pull::Request::new(room.clone(), ids.clone());
            (request.past, request.held) = (past, held.clone());
            request
        };
        let (server, mut answer) = self.ask(&turn.asked, PULL, request).await?;
        answer.pdus.truncate(MAX_EVENTS_PER_PULL);
        let told = self
            .server_keys
            .check(answer.pdus, &room, &turn.asked.version, &server)
            .await?;
        let mut new = self.not_in_graph_of(told).await?;
        if past {
            // The other side cannot tell where what is held here begins, and goes on behind that.
            new = named_from(&ids, new);
        }
        let new = turn.open.add(new);
        self.connect_pulled(turn).await?;
        Ok(new)
    }

    /// Keeps what connects with what is held.
    async fn connect_pulled(&self, turn: &mut Turn) -> Result<(), Error> {
        let lacking = self.keep_connected(turn).await?;
        if !lacking.is_empty() && self.fetch_outliers(&turn.asked, lacking).await? > 0 {
            self.keep_connected(turn).await?;
        }
        Ok(())
    }

    /// [`Incoming::connect_pulled`] without asking for anything. Returns the events that others of them must be authorised by.
    async fn keep_connected(&self, turn: &mut Turn) -> Result<Vec<OwnedEventId>, Error> {
        let earlier = self.keep_earlier(&turn.asked.room, &mut turn.open, None).await?;
        turn.kept += earlier.kept.len();
        let mut lacking = BTreeSet::from_iter(earlier.lacking);
        for events in turn.open.oldest_first().chunks(EVENTS_PER_COMMIT) {
            let events = events.to_vec();
            let commit = self.commit(move |txn, rooms| {
                let (mut kept, mut auth) = (Vec::new(), Vec::new());
                for event in &events {
                    let read: &ReadTxn<'_> = txn;
                    if !may_connect(read, event)? {
                        continue;
                    }
                    match keep_live(txn, rooms, event)? {
                        Attempt::Done(_) => kept.push(event.event_id().to_owned()),
                        Attempt::Missing(missing, _) => auth.extend(missing.auth),
                    }
                }
                Ok((kept, auth))
            });
            let (kept, auth) = commit.await?;
            for id in &kept {
                turn.open.remove(id);
            }
            turn.kept += kept.len();
            lacking.extend(auth);
        }
        Ok(lacking.into_iter().collect())
    }

    /// Places the oldest event that does not connect by the state that the server tells, and keeps what connects with it.
    async fn place_told(&self, turn: &mut Turn) -> Result<usize, Error> {
        let Some(oldest) = turn.open.oldest_first().into_iter().next() else {
            return Ok(0);
        };
        let id = oldest.event_id().to_owned();
        tracing::info!(room = %turn.asked.room, event = %id, "nobody has what comes before this event");
        let state = self.fetch_state(&turn.asked, &id).await?;
        let told = Some((&id, &*state));
        let earlier = self.keep_earlier(&turn.asked.room, &mut turn.open, told).await?;
        turn.kept += earlier.kept.len();
        if !earlier.kept.contains(&id) && self.receive_told(oldest, state).await?.is_ok() {
            turn.kept += 1;
        }
        turn.open.remove(&id);
        self.connect_pulled(turn).await?;
        Ok(1)
    }
}

/// Whether the states before an event are at hand: without, judging it would cost and lead nowhere.
pub(super) fn may_connect(txn: &ReadTxn<'_>, event: &CheckedPdu) -> Result<bool, Error> {
    for prev in event.pdu().prev_events() {
        if txn.state_after(prev)?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those of some events that do not stand in a room's graph: not held, or as outliers.
pub(in crate::homeserver) fn not_in_graph(
    txn: &ReadTxn<'_>,
    ids: Vec<OwnedEventId>,
) -> Result<Vec<OwnedEventId>, Error> {
    let mut lacking = Vec::new();
    for id in ids {
        if txn.event(&id)?.is_none_or(|event| event.outlier) {
            lacking.push(id);
        }
    }
    Ok(lacking)
}
