//! Rooms as wholes: the one place that saves what an event changes, and the current states, extremities and edges that
//! this moves. It judges nothing: the engine said what to save.

use kith_engine::{
    Applied, Author, CurrentState, EventStatus, Extremity, ExtremityChange, Pdu, Redaction, StateId, StateKey, rules,
};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, RoomVersionId, UserId,
    canonical_json::redact_in_place,
    events::{StateEventType, TimelineEventType},
};

use crate::{
    ReadTxn, Seq, StoreError, WriteTxn,
    events::{EventRow, NewRow},
    intern::{missing, parse},
    state::{NumberedChange, difference},
};

/// Where [`WriteTxn::save_event`] put an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SavedEvent {
    /// Its place in the room's timeline; none if clients are not shown it.
    pub stream: Option<Seq>,
    /// Whether the room's current state changed, at this position.
    pub state_changed: Option<Seq>,
}

/// A change of a room's current state, as `/sync` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentStateChange {
    /// When.
    pub seq: Seq,
    /// The key.
    pub key: StateKey,
    /// What stood there before, if anything.
    pub before: Option<OwnedEventId>,
    /// What stands there since, if anything.
    pub after: Option<OwnedEventId>,
}

impl ReadTxn<'_> {
    /// All rooms of which a state is held, whoever is in them.
    pub fn rooms(&self) -> Result<Vec<OwnedRoomId>, StoreError> {
        self.names(
            "SELECT room_id FROM rooms WHERE state IS NOT NULL ORDER BY room",
            "room id",
            [],
        )
    }

    /// One event of a room's current state.
    pub fn current_state_event(
        &self,
        room: &RoomId,
        kind: &StateEventType,
        state_key: &str,
    ) -> Result<Option<Pdu>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT events.event, redacted_by IS NOT NULL FROM current_state JOIN events USING (event)
             WHERE current_state.room = (SELECT room FROM rooms WHERE room_id = ?1)
               AND current_state.key = (SELECT key FROM state_keys JOIN types USING (type) WHERE name = ?2 AND state_key = ?3)",
        )?;
        let kind = kind.to_string();
        let mut rows = statement.query((room.as_str(), kind.as_str(), state_key))?;
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        self.pdu(row.get(0)?, row.get(1)?).map(Some)
    }

    /// The events of a room's current state whose type the closure wants, ascending by key number.
    pub fn current_state_events(
        &self,
        room: &RoomId,
        mut wanted: impl FnMut(&StateEventType) -> bool,
    ) -> Result<Vec<Pdu>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT events.event, redacted_by IS NOT NULL, name FROM current_state JOIN events USING (event)
             JOIN types ON types.type = events.type
             WHERE current_state.room = (SELECT room FROM rooms WHERE room_id = ?) ORDER BY current_state.key",
        )?;
        let mut rows = statement.query([room.as_str()])?;
        let mut events = Vec::new();
        while let Some(row) = rows.next()? {
            let kind = StateEventType::from(row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?);
            if wanted(&kind) {
                events.push(self.pdu(row.get(0)?, row.get(1)?)?);
            }
        }
        Ok(events)
    }

    /// The state that was a room's current one at a position; none before its first.
    pub fn state_at(&self, room: &RoomId, at: Seq) -> Result<Option<StateId>, StoreError> {
        let sql = "SELECT state FROM room_states WHERE room = (SELECT room FROM rooms WHERE room_id = ?)
                   AND seq <= ? ORDER BY seq DESC LIMIT 1";
        Ok(self.lookup(sql, (room.as_str(), at.0))?.map(StateId))
    }

    /// How a room's current state changed after one position, up to and including another, oldest first.
    pub fn state_changes(&self, room: &RoomId, after: Seq, upto: Seq) -> Result<Vec<CurrentStateChange>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT seq, key, before, after FROM state_changes
             WHERE room = (SELECT room FROM rooms WHERE room_id = ?) AND seq > ? AND seq <= ? ORDER BY seq, key",
        )?;
        let rows = statement.query_map((room.as_str(), after.0, upto.0), |row| {
            let row: (i64, i64, Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(row)
        })?;
        let mut changes = Vec::new();
        for row in rows {
            let (seq, key, before, after) = row?;
            changes.push(CurrentStateChange {
                seq: Seq(seq),
                key: self.key_name(key)?,
                before: before.map(|event| self.event_name(event)).transpose()?,
                after: after.map(|event| self.event_name(event)).transpose()?,
            });
        }
        Ok(changes)
    }

    /// Events that the room's history needs next and that are not held, each with the deepest held event that names
    /// it: where backfill starts.
    pub fn backward_extremities(&self, room: &RoomId) -> Result<Vec<(OwnedEventId, OwnedEventId)>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT prev, namer.event_id, max(namer.depth) FROM loose_edges JOIN events AS namer USING (event)
             LEFT JOIN events AS held ON held.event_id = prev AND NOT held.outlier
             WHERE loose_edges.room = (SELECT room FROM rooms WHERE room_id = ?) AND held.event IS NULL
             GROUP BY prev ORDER BY max(namer.depth) DESC",
        )?;
        let rows = statement.query_map([room.as_str()], |row| {
            let texts: (String, String) = (row.get(0)?, row.get(1)?);
            Ok(texts)
        })?;
        rows.map(|row| {
            let (prev, namer) = row?;
            Ok((parse("event id", &prev)?, parse("event id", &namer)?))
        })
        .collect()
    }

    /// The newest place, at or before another, at which a room's timeline has a gap: that of an event which names one
    /// that is not held. The lowest place there is if only events that are not shown do.
    pub fn gap_before(&self, room: &RoomId, place: Seq) -> Result<Option<Seq>, StoreError> {
        let sql = "SELECT max(ifnull(namer.stream, ?2)) FROM loose_edges JOIN events AS namer USING (event)
             LEFT JOIN events AS held ON held.event_id = prev AND NOT held.outlier
             WHERE loose_edges.room = (SELECT room FROM rooms WHERE room_id = ?1) AND held.event IS NULL
               AND ifnull(namer.stream, ?2) <= ?3";
        let newest: Option<Option<i64>> = self.lookup(sql, (room.as_str(), i64::MIN, place.0))?;
        Ok(newest.flatten().map(Seq))
    }

    pub(crate) fn read_room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, StoreError> {
        let version: Option<String> = self.lookup("SELECT version FROM rooms WHERE room_id = ?", [room.as_str()])?;
        version.map(|version| parse("room version", &version)).transpose()
    }

    pub(crate) fn read_forward_extremities(&self, room: &RoomId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.names(
            "SELECT event_id FROM forward_extremities JOIN events USING (event)
             WHERE forward_extremities.room = (SELECT room FROM rooms WHERE room_id = ?) ORDER BY event",
            "event id",
            [room.as_str()],
        )
    }

    pub(crate) fn read_extremities(&self, room: &RoomId) -> Result<Vec<Extremity>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT event_id, state_after, name, told FROM forward_extremities JOIN events USING (event)
             JOIN users ON users.user = events.sender JOIN servers USING (server)
             WHERE forward_extremities.room = (SELECT room FROM rooms WHERE room_id = ?) ORDER BY event",
        )?;
        let mut rows = statement.query([room.as_str()])?;
        let mut extremities = Vec::new();
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
            extremities.push(Extremity {
                event: parse("event id", text(0)?)?,
                state: row.get::<_, Option<i64>>(1)?.map(StateId),
                author: Author::named(text(2)?),
                told: row.get(3)?,
            });
        }
        Ok(extremities)
    }

    /// Edges from accepted events are either loose or end in an accepted event, which then is no extremity.
    pub(crate) fn read_has_successor(&self, id: &EventId) -> Result<bool, StoreError> {
        let loose: Option<i64> = self.lookup("SELECT 1 FROM loose_edges WHERE prev = ? LIMIT 1", [id.as_str()])?;
        if loose.is_some() {
            return Ok(true);
        }
        let Some(row) = self.event_row(id)?.filter(EventRow::is_accepted) else {
            return Ok(false);
        };
        let sql = "SELECT 1 FROM forward_extremities WHERE room = ? AND event = ?";
        let extremity: Option<i64> = self.lookup(sql, (row.room, row.event))?;
        Ok(extremity.is_none())
    }

    pub(crate) fn read_early_redactions(&self, id: &EventId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.names(
            "SELECT event_id FROM early_redactions JOIN events USING (event) WHERE target = ? ORDER BY event",
            "event id",
            [id.as_str()],
        )
    }

    pub(crate) fn read_current_state(&self, room: &RoomId) -> Result<Option<StateId>, StoreError> {
        let state: Option<Option<i64>> = self.lookup("SELECT state FROM rooms WHERE room_id = ?", [room.as_str()])?;
        Ok(state.flatten().map(StateId))
    }
}

/// Stream positions left free when this node comes back to a room. Positions are never scarce: they end beyond nine
/// trillion such gaps.
pub const HISTORY_GAP: i64 = 1 << 20;

impl WriteTxn<'_> {
    /// Saves everything that an event changes. History goes before all that the room's timeline has.
    pub fn save_event(&self, applied: &Applied) -> Result<SavedEvent, StoreError> {
        let room = self.intern_room(applied.pdu.room_id(), &applied.version)?;
        let seq = self.position(room, applied)?;
        self.save_event_at(room, applied, seq)
    }

    /// [`WriteTxn::save_event`] for one of a chunk of history, at a place that [`WriteTxn::reserve_history`] gave.
    pub fn save_history(&self, applied: &Applied, place: Seq) -> Result<SavedEvent, StoreError> {
        let room = self.intern_room(applied.pdu.room_id(), &applied.version)?;
        self.save_event_at(room, applied, place)
    }

    /// Places for a chunk of history: right before one place if the room's timeline has so many free there, as after
    /// [`WriteTxn::leave_gap`], and otherwise before all that it has. Give them out in this order, to the oldest event
    /// first.
    pub fn reserve_history(
        &self,
        room: &RoomId,
        before: Option<Seq>,
        count: usize,
    ) -> Result<impl Iterator<Item = Seq> + use<>, StoreError> {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let mut last = -1;
        if let Some(room) = self.room_no(room)? {
            last = self.place_before_all(room)?;
            let wanted = before.map_or(last, |before| before.0.saturating_sub(1));
            let sql = "SELECT max(stream) FROM events WHERE room = ? AND stream <= ?";
            let earlier: Option<i64> = self.lookup(sql, (room, wanted))?.flatten();
            if earlier.is_some_and(|earlier| earlier <= wanted.saturating_sub(count)) {
                last = wanted;
            }
        }
        Ok((last.saturating_sub(count)..last).map(|place| Seq(place + 1)))
    }

    /// Leaves room in the timeline for the history of a time when this node was not in a room: call it before the node
    /// comes back there. See [`HISTORY_GAP`].
    pub fn leave_gap(&self) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("UPDATE stream SET seq = seq + ?")?
            .execute([HISTORY_GAP])?;
        Ok(())
    }

    fn save_event_at(&self, room: i64, applied: &Applied, seq: Seq) -> Result<SavedEvent, StoreError> {
        let pdu = &applied.pdu;
        let held = self.event_row(pdu.event_id())?;
        let event = held
            .as_ref()
            .map_or_else(|| self.caches().next_event(), |held| held.event);
        let state_before = applied
            .state_before
            .as_ref()
            .map(|state| self.save_state(room, state))
            .transpose()?;
        let state_after = match (state_before, &applied.sets) {
            (Some(before), Some(key)) => Some(self.save_state_with(room, before, key, event)?),
            (before, _) => before,
        };
        let row = NewRow {
            event,
            room,
            stream: applied.is_shown().then_some(seq.0),
            status: applied.status,
            outlier: applied.outlier,
            told: applied.told,
            state_before,
            state_after,
        };
        match held {
            Some(_) => self.update_event(&row)?,
            None => self.insert_event(pdu, &row)?,
        }
        if let Some(stream) = row.stream {
            self.index_event(event, room, stream, pdu)?;
        }
        if applied.status == EventStatus::Accepted && !applied.outlier {
            self.save_edges(&row, pdu)?;
            self.save_early_redaction(event, pdu, &applied.version)?;
        }
        for redaction in &applied.redactions {
            self.save_redaction(redaction, applied)?;
        }
        if let Some(change) = &applied.forward_extremities {
            self.save_extremities(room, event, change)?;
        }
        if let Some(refuted) = &applied.refuted {
            self.refute(room, refuted)?;
        }
        let changed_at = match applied.history && applied.current_state != CurrentState::Unchanged {
            // The place is one of the past, and the change is news.
            true => self.next_seq()?,
            false => seq,
        };
        let state_changed = self.save_current_state(room, applied, state_after, changed_at)?;
        if state_changed {
            self.settle_departures(room, event, applied, changed_at)?;
        }
        Ok(SavedEvent {
            stream: row.stream.map(Seq),
            state_changed: state_changed.then_some(changed_at),
        })
    }

    /// Makes sure that a room has a row.
    pub(crate) fn intern_room(&self, room: &RoomId, version: &RoomVersionId) -> Result<i64, StoreError> {
        if let Some(known) = self.room_no(room)? {
            return Ok(known);
        }
        let sql = "INSERT INTO rooms (room_id, version) VALUES (?, ?)";
        Ok(self
            .conn()
            .prepare_cached(sql)?
            .insert((room.as_str(), version.as_str()))?)
    }

    /// The position of what an event changes: a new one, unless it is history or changes nothing that anybody is told.
    fn position(&self, room: i64, applied: &Applied) -> Result<Seq, StoreError> {
        if applied.history && applied.current_state == CurrentState::Unchanged {
            return if applied.is_shown() {
                self.place_before_all(room).map(Seq)
            } else {
                self.last_seq()
            };
        }
        if applied.is_shown() || applied.current_state != CurrentState::Unchanged {
            return self.next_seq();
        }
        self.last_seq()
    }

    /// Remembers edges to events that are not part of the graph yet, and forgets those that end here.
    fn save_edges(&self, row: &NewRow, pdu: &Pdu) -> Result<(), StoreError> {
        for prev in pdu.prev_events() {
            if self.event_row(prev)?.is_some_and(|prev| prev.is_accepted()) {
                continue;
            }
            self.conn()
                .prepare_cached("INSERT OR IGNORE INTO loose_edges (prev, event, room) VALUES (?, ?, ?)")?
                .execute((prev.as_str(), row.event, row.room))?;
        }
        self.conn()
            .prepare_cached("DELETE FROM loose_edges WHERE prev = ?")?
            .execute([pdu.event_id().as_str()])?;
        self.conn()
            .prepare_cached("DELETE FROM gaps WHERE prev = ?")?
            .execute([pdu.event_id().as_str()])?;
        Ok(())
    }

    /// Remembers a redaction whose target is not held yet, so that it takes hold when the target arrives.
    fn save_early_redaction(&self, event: i64, pdu: &Pdu, version: &RoomVersionId) -> Result<(), StoreError> {
        if *pdu.kind() != TimelineEventType::RoomRedaction {
            return Ok(());
        }
        let rules = rules(version).map_err(corrupt(pdu.event_id()))?;
        let Some(target) = pdu.redacts(&rules.redaction) else {
            return Ok(());
        };
        if self.event_row(&target)?.is_none_or(|target| target.outlier) {
            self.conn()
                .prepare_cached("INSERT OR IGNORE INTO early_redactions (target, event) VALUES (?, ?)")?
                .execute((target.as_str(), event))?;
        }
        Ok(())
    }

    /// Redacts an event, and shows the redaction if it was withheld until now.
    fn save_redaction(&self, redaction: &Redaction, applied: &Applied) -> Result<(), StoreError> {
        let by = self.event_row(&redaction.by)?.ok_or_else(|| missing("redaction"))?;
        if by.is_accepted() && by.stream.is_none() {
            let stream = match applied.history {
                true => self.place_before_all(by.room)?,
                false => self.next_seq()?.0,
            };
            self.place_event(by.event, stream)?;
            self.index_event(
                by.event,
                by.room,
                stream,
                &self.pdu(by.event, by.redacted_by.is_some())?,
            )?;
        }
        let Some(target) = self.event_row(&redaction.target)? else {
            return Ok(());
        };
        if target.redacted_by.is_some() {
            return Ok(());
        }
        let id = &redaction.target;
        let rules = rules(&applied.version).map_err(corrupt(id))?;
        let pdu = self.pdu(target.event, false)?;
        if let Some(stream) = target.stream {
            self.unindex_event(target.event, target.room, stream, &pdu)?;
        }
        let mut object = pdu.to_object().map_err(corrupt(id))?;
        redact_in_place(&mut object, &rules.redaction, None).map_err(corrupt(id))?;
        let json = serde_json::to_string(&object).map_err(corrupt(id))?;
        self.redact_event(target.event, &json, by.event)
    }

    fn save_extremities(&self, room: i64, event: i64, change: &ExtremityChange) -> Result<(), StoreError> {
        for gone in &change.gone {
            let gone = self.event_no(gone)?.ok_or_else(|| missing("forward extremity"))?;
            self.conn()
                .prepare_cached("DELETE FROM forward_extremities WHERE room = ? AND event = ?")?
                .execute((room, gone))?;
        }
        if change.added {
            self.conn()
                .prepare_cached("INSERT INTO forward_extremities (room, event) VALUES (?, ?)")?
                .execute((room, event))?;
        }
        Ok(())
    }

    /// Moves a room's current state, in all tables that spread it out; says whether it changed.
    fn save_current_state(
        &self,
        room: i64,
        applied: &Applied,
        state_after: Option<StateId>,
        seq: Seq,
    ) -> Result<bool, StoreError> {
        let new = match &applied.current_state {
            CurrentState::Unchanged => return Ok(false),
            CurrentState::AfterEvent => state_after.ok_or_else(|| missing("state after an event"))?,
            CurrentState::New(state) => self.save_state(room, state)?,
        };
        let old: Option<i64> = self.lookup("SELECT state FROM rooms WHERE room = ?", [room])?.flatten();
        let changes = match &applied.refuted {
            // By now the old state yields the event no more, but it is spread out as before.
            Some(_) => difference(&self.spread_out(room)?, &self.packed_state(new.0)?),
            None => self.numbered_diff(old, new.0)?,
        };
        if old != Some(new.0) {
            self.conn()
                .prepare_cached("UPDATE rooms SET state = ? WHERE room = ?")?
                .execute((new.0, room))?;
        }
        if changes.is_empty() && old.is_some() {
            return Ok(false);
        }
        self.conn()
            .prepare_cached(
                "INSERT INTO room_states (room, seq, state) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET state = excluded.state",
            )?
            .execute((room, seq.0, new.0))?;
        for change in &changes {
            self.change_current_entry(room, change, seq)?;
        }
        Ok(true)
    }

    /// A room's current state as the queries see it, ascending by key.
    fn spread_out(&self, room: i64) -> Result<Vec<(i64, i64)>, StoreError> {
        let sql = "SELECT key, event FROM current_state WHERE room = ? ORDER BY key";
        let mut statement = self.conn().prepare_cached(sql)?;
        let rows = statement.query_map([room], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn change_current_entry(&self, room: i64, change: &NumberedChange, seq: Seq) -> Result<(), StoreError> {
        let some = |event: i64| (event != 0).then_some(event);
        self.conn()
            .prepare_cached(
                "INSERT INTO state_changes (room, seq, key, before, after) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET after = excluded.after",
            )?
            .execute((room, seq.0, change.key, some(change.before), some(change.after)))?;
        match some(change.after) {
            Some(event) => self
                .conn()
                .prepare_cached(
                    "INSERT INTO current_state (room, key, event) VALUES (?, ?, ?)
                     ON CONFLICT DO UPDATE SET event = excluded.event",
                )?
                .execute((room, change.key, event))?,
            None => self
                .conn()
                .prepare_cached("DELETE FROM current_state WHERE room = ? AND key = ?")?
                .execute((room, change.key))?,
        };
        let (kind, state_key) = self.key_name(change.key)?;
        if kind != StateEventType::RoomMember {
            return Ok(());
        }
        // Keys that are no user ids never pass the authorisation rules.
        let Ok(user) = <&UserId>::try_from(state_key.as_str()) else {
            return Ok(());
        };
        match some(change.after) {
            Some(event) => {
                let redacted = "SELECT redacted_by IS NOT NULL FROM events WHERE event = ?";
                let redacted: bool = self.lookup(redacted, [event])?.ok_or_else(|| missing("event row"))?;
                self.set_member(room, user, Some((event, &self.pdu(event, redacted)?)), seq)
            }
            None => self.set_member(room, user, None, seq),
        }
    }

    /// `before` with one entry set to an event by number.
    fn save_state_with(&self, room: i64, before: StateId, key: &StateKey, event: i64) -> Result<StateId, StoreError> {
        let kind = self.intern_type(&key.0.to_string())?;
        let key = self.intern_key(kind, &key.1)?;
        self.save_delta(room, before.0, &[(key, event)])
    }
}

fn corrupt<E: std::fmt::Display>(id: &EventId) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Corrupt {
        what: "event",
        reason: format!("{id}: {error}"),
    }
}
