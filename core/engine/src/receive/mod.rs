//! The checks performed on receipt of an event, and what follows from them. It saves nothing: changes are returned.
//!
//! Server-server API, "Checks performed on receipt of a PDU". Steps 1 and 2 are [`crate::check_pdu`]'s.

mod past;

use std::collections::{BTreeSet, HashMap};

use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::check_state_independent_auth_rules,
};

use crate::{
    Applied, Author, CheckedPdu, CurrentState, EventStatus, Extremity, ExtremityChange, Missing, NewState, Outcome,
    Pdu, Redaction, RoomError, RoomReader, StateId, StateKey, StoredPdu,
    auth::{AuthState, auth_keys, implied_create, may_redact, power_levels},
    extremities::resolved,
    pdu::rules,
    refute::refute,
    resolve::{Fork, resolve_forks},
    view::{auth_state, entries, entry},
};

/// Judges an event that has just been made here or has just arrived.
///
/// An `m.room.create` opens a room only if it was made here: other servers' rooms are entered with
/// [`import_room`](crate::import_room).
pub fn receive<R: RoomReader>(reader: &R, checked: &CheckedPdu) -> Result<Outcome, RoomError<R::Error>> {
    Receipt::new(reader, checked)?.live(None)
}

/// [`receive`] for an event whose `prev_events` cannot be fetched: another server told the state before it, as ids of
/// events that are held, outliers included. Rejected ones among them give way to what stood before them, if that is known.
///
/// An event that was believed already, as part of another told state, is soft-failed where it would be rejected: what one
/// server tells does not refute what another one told. Only a past that rests upon no such word does.
pub fn receive_with_state<R: RoomReader>(
    reader: &R,
    checked: &CheckedPdu,
    state: &[OwnedEventId],
) -> Result<Outcome, RoomError<R::Error>> {
    Receipt::new(reader, checked)?.live(Some(state))
}

/// Judges an event that is wanted only as part of another one's state or auth chain. It joins no timeline.
pub fn receive_outlier<R: RoomReader>(reader: &R, checked: &CheckedPdu) -> Result<Outcome, RoomError<R::Error>> {
    Receipt::new(reader, checked)?.outlier()
}

/// Judges an event of the room's past. It changes neither the forward extremities nor, unless it is refuted, the current
/// state, and today's state does not soft-fail it; unless it builds upon an extremity, and so is none of the past: then it is
/// judged as [`receive`] does, and is not `history`. The state before it comes from its `prev_events`, if those are held with
/// theirs, or from `state` as in [`receive_with_state`]; with neither, it is kept without one, checked against its auth events
/// alone.
pub fn receive_history<R: RoomReader>(
    reader: &R,
    checked: &CheckedPdu,
    state: Option<&[OwnedEventId]>,
) -> Result<Outcome, RoomError<R::Error>> {
    Receipt::new(reader, checked)?.history(state)
}

/// The type of events that do nothing but join a room's forward extremities. Synapse's name for them; clients never see
/// them.
pub const JOINS_HEADS: &str = "org.matrix.dummy_event";

/// One event on its way through the checks.
struct Receipt<'a, R: RoomReader> {
    reader: &'a R,
    checked: &'a CheckedPdu,
    pdu: &'a Pdu,
    rules: RoomVersionRules,
}

/// The verdict of the checks so far. A later check never lifts an earlier one's refusal.
struct Verdict {
    status: EventStatus,
    reason: Option<String>,
}

impl Verdict {
    fn of(check: Result<(), String>) -> Self {
        match check {
            Ok(()) => Self {
                status: EventStatus::Accepted,
                reason: None,
            },
            Err(reason) => Self {
                status: EventStatus::Rejected,
                reason: Some(reason),
            },
        }
    }

    fn refuse(&mut self, status: EventStatus, check: Result<(), String>) {
        if let (EventStatus::Accepted, Err(reason)) = (self.status, check) {
            *self = Self {
                status,
                reason: Some(reason),
            };
        }
    }
}

impl<'a, R: RoomReader> Receipt<'a, R> {
    fn new(reader: &'a R, checked: &'a CheckedPdu) -> Result<Self, RoomError<R::Error>> {
        let rules = rules(checked.version()).map_err(RoomError::Pdu)?;
        Ok(Self {
            reader,
            checked,
            pdu: checked.pdu(),
            rules,
        })
    }

    fn live(self, told: Option<&[OwnedEventId]>) -> Result<Outcome, RoomError<R::Error>> {
        let Some(believed) = self.is_awaited()? else {
            return Ok(Outcome::Known);
        };
        self.check_room(self.checked.made_here)?;
        let (auth, mut missing) = self.auth_events()?;
        let extremities = self.reader.extremities(self.pdu.room_id())?;
        let prev_states = self.prev_states(told, &extremities, &mut missing)?;
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        let current = self.reader.current_state(self.pdu.room_id())?;
        let rests_on_word = prev_states.told;
        let before = self.state_before(prev_states, &extremities, current)?;
        let mut verdict = self.check_past(&auth, Some(&before), refusal(believed, rests_on_word))?;
        if verdict.status == EventStatus::Accepted {
            // Step 6: soft failure.
            let now = self.now(told.map(|_| &before), current)?;
            verdict.refuse(EventStatus::SoftFailed, self.check_now(&auth, &before, now)?);
        }
        let mut applied = self.applied(verdict, Some(before));
        applied.told = rests_on_word;
        self.move_room(&mut applied, &extremities, current)?;
        if believed {
            refute(self.reader, &self.rules, &mut applied)?;
        }
        self.apply_redactions(&mut applied)?;
        Ok(Outcome::Applied(Box::new(applied)))
    }

    fn outlier(self) -> Result<Outcome, RoomError<R::Error>> {
        if self.reader.has_event(self.pdu.event_id())? {
            return Ok(Outcome::Known);
        }
        self.check_room(true)?;
        let (auth, missing) = self.auth_events()?;
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        let verdict = self.check_past(&auth, None, EventStatus::Rejected)?;
        let mut applied = self.applied(verdict, None);
        applied.outlier = true;
        Ok(Outcome::Applied(Box::new(applied)))
    }

    fn history(self, told: Option<&[OwnedEventId]>) -> Result<Outcome, RoomError<R::Error>> {
        let Some(believed) = self.is_awaited()? else {
            return Ok(Outcome::Known);
        };
        self.check_room(false)?;
        let (auth, mut missing) = self.auth_events()?;
        let mut prev_missing = Missing::default();
        let prev_states = self.prev_states(None, &[], &mut prev_missing)?;
        let known = prev_missing.is_empty();
        if (known || told.is_some()) && self.covers_a_head()? {
            return self.live(told.filter(|_| !known));
        }
        let states = match (known, told) {
            (true, _) => Some(prev_states),
            (false, Some(_)) => Some(self.prev_states(told, &[], &mut missing)?),
            (false, None) => None,
        };
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        let rests_on_word = states.as_ref().is_some_and(|states| states.told);
        let before = states.map(|states| self.state_before(states, &[], None)).transpose()?;
        let verdict = self.check_past(&auth, before.as_ref(), refusal(believed, rests_on_word))?;
        let mut applied = self.applied(verdict, before);
        (applied.history, applied.told) = (true, rests_on_word);
        if believed {
            refute(self.reader, &self.rules, &mut applied)?;
        }
        self.apply_redactions(&mut applied)?;
        Ok(Outcome::Applied(Box::new(applied)))
    }

    /// None if the event is held with its place in the graph. Otherwise whether it is believed, being held as an outlier: then
    /// states may hold it.
    fn is_awaited(&self) -> Result<Option<bool>, R::Error> {
        let id = self.pdu.event_id();
        if !self.reader.has_event(id)? {
            return Ok(Some(false));
        }
        Ok(match self.reader.event(id)? {
            Some(held) if !held.outlier => None,
            held => Some(held.is_some_and(|held| held.status != EventStatus::Rejected)),
        })
    }

    fn check_room(&self, may_open: bool) -> Result<(), RoomError<R::Error>> {
        let room = self.pdu.room_id();
        match self.reader.room_version(room)? {
            Some(version) if version == *self.checked.version() => Ok(()),
            Some(expected) => Err(RoomError::WrongVersion {
                room: room.to_owned(),
                expected,
                found: self.checked.version().clone(),
            }),
            None if may_open && *self.pdu.kind() == TimelineEventType::RoomCreate => Ok(()),
            None => Err(RoomError::UnknownRoom(room.to_owned())),
        }
    }

    /// The events that authorise this one, by id, and those of them that are not held.
    fn auth_events(&self) -> Result<(HashMap<OwnedEventId, StoredPdu>, Missing), R::Error> {
        let mut events = HashMap::new();
        let mut missing = Missing::default();
        let implied = (*self.pdu.kind() != TimelineEventType::RoomCreate)
            .then(|| implied_create(&self.rules, self.pdu.room_id()))
            .flatten();
        for id in self.pdu.auth_events().iter().chain(&implied) {
            match self.reader.event(id)? {
                Some(event) => {
                    events.insert(id.clone(), event);
                }
                None => missing.auth.push(id.clone()),
            }
        }
        Ok((events, missing))
    }

    /// Steps 3, 4 and 5: the rules that need no state, then those that do, against the event's own auth events and
    /// against the state before it. `by_state`: what the event is if that state refuses it.
    fn check_past(
        &self,
        auth: &HashMap<OwnedEventId, StoredPdu>,
        before: Option<&NewState>,
        by_state: EventStatus,
    ) -> Result<Verdict, RoomError<R::Error>> {
        let rules = &self.rules.authorization;
        let independent = check_state_independent_auth_rules(rules, self.pdu, |id: &EventId| auth.get(id).cloned());
        let mut verdict = Verdict::of(independent);
        if verdict.status == EventStatus::Rejected || *self.pdu.kind() == TimelineEventType::RoomCreate {
            return Ok(verdict);
        }
        let mut by_auth_events = AuthState::default();
        for event in auth.values() {
            if let Some(key) = event.pdu.state_entry() {
                by_auth_events.insert(key, event.clone());
            }
        }
        verdict.refuse(EventStatus::Rejected, by_auth_events.check(rules, self.pdu));
        if let (EventStatus::Accepted, Some(before)) = (verdict.status, before) {
            let state = self.auth_state(auth, before)?;
            if !state.same_events(&by_auth_events) {
                verdict.refuse(by_state, state.check(rules, self.pdu));
            }
        }
        Ok(verdict)
    }

    /// Step 6, and the same for keys that have been revoked: the event stands by its own past, but not today.
    fn check_now(
        &self,
        auth: &HashMap<OwnedEventId, StoredPdu>,
        before: &NewState,
        now: Option<NewState>,
    ) -> Result<Result<(), String>, RoomError<R::Error>> {
        if self.checked.revoked_key() {
            return Ok(Err("the key that signed it has been revoked".to_owned()));
        }
        match now {
            Some(now) if now != *before => Ok(self.auth_state(auth, &now)?.check(&self.rules.authorization, self.pdu)),
            _ => Ok(Ok(())),
        }
    }

    /// The state that an event must be allowed by today. Where the state before it was told, this server has not seen what lies
    /// between, as the sender's joining: then it is the current state resolved with the told one.
    fn now(&self, told: Option<&NewState>, current: Option<StateId>) -> Result<Option<NewState>, RoomError<R::Error>> {
        let (Some(told), Some(current)) = (told, current) else {
            return Ok(current.map(NewState::Same));
        };
        let forks = [Fork::stored(self.reader, current)?, self.fork_after(told, None)?];
        resolve_forks(self.reader, &self.rules, &forks, None).map(Some)
    }

    fn auth_state(
        &self,
        auth: &HashMap<OwnedEventId, StoredPdu>,
        state: &NewState,
    ) -> Result<AuthState, RoomError<R::Error>> {
        // Malformed events have been refused by the rules that need no state.
        let keys = auth_keys(&self.rules.authorization, self.pdu).unwrap_or_default();
        auth_state(
            &keys,
            |key| entry(self.reader, state, key),
            |id| match auth.get(id) {
                Some(event) => Ok(Some(event.clone())),
                None => self.reader.event(id),
            },
        )
    }

    fn applied(&self, verdict: Verdict, before: Option<NewState>) -> Applied {
        let sets = match (verdict.status, &before) {
            (EventStatus::Rejected, _) | (_, None) => None,
            _ => self.pdu.state_entry(),
        };
        Applied {
            pdu: self.pdu.clone(),
            version: self.checked.version().clone(),
            status: verdict.status,
            reason: verdict.reason,
            outlier: false,
            history: false,
            withheld: self.pdu.kind().to_string() == JOINS_HEADS,
            state_before: before,
            told: false,
            sets,
            current_state: CurrentState::Unchanged,
            forward_extremities: None,
            redactions: Vec::new(),
            refuted: None,
        }
    }

    /// Moves the forward extremities and the current state along with an accepted event, and with one that was refused but
    /// that an accepted event builds upon: through it, that one takes the place of what was before.
    fn move_room(
        &self,
        applied: &mut Applied,
        extremities: &[Extremity],
        current: Option<StateId>,
    ) -> Result<(), RoomError<R::Error>> {
        let covered = self.covered(extremities)?;
        let (gone, kept): (Vec<&Extremity>, Vec<&Extremity>) = extremities
            .iter()
            .partition(|extremity| covered.contains(&extremity.event));
        // One that comes late is built upon already: it is no extremity, and what it builds upon is none any more.
        let late = !kept.is_empty() && self.reader.has_successor(self.pdu.event_id())?;
        let refused = applied.status != EventStatus::Accepted;
        if (late && gone.is_empty()) || (refused && !late) {
            return Ok(());
        }
        let new = (!late).then(|| self.as_extremity(applied));
        let gone = gone.into_iter().map(|extremity| extremity.event.clone()).collect();
        let after: Vec<&Extremity> = kept.into_iter().chain(&new).collect();
        applied.current_state = self.current_after(applied, &after, extremities, current)?;
        applied.forward_extremities = Some(ExtremityChange { gone, added: !late });
        Ok(())
    }

    /// The extremities that this event builds upon: directly, or through events that were soft-failed or rejected and
    /// for that reason did not take their place.
    fn covered(&self, extremities: &[Extremity]) -> Result<BTreeSet<OwnedEventId>, R::Error> {
        let mut covered = BTreeSet::new();
        let mut open: Vec<OwnedEventId> = self.pdu.prev_events().to_vec();
        while let Some(id) = open.pop() {
            if !covered.insert(id.clone()) || is_among(extremities, &id) {
                continue;
            }
            if let Some(stored) = self.reader.event(&id)?
                && stored.status != EventStatus::Accepted
            {
                open.extend(stored.pdu.prev_events().iter().cloned());
            }
        }
        Ok(covered)
    }

    fn covers_a_head(&self) -> Result<bool, R::Error> {
        let extremities = self.reader.extremities(self.pdu.room_id())?;
        let covered = self.covered(&extremities)?;
        Ok(extremities.iter().any(|extremity| covered.contains(&extremity.event)))
    }

    /// This event as an extremity. Its state has an id already only if it changes nothing in one that is stored.
    fn as_extremity(&self, applied: &Applied) -> Extremity {
        let state = match (&applied.state_before, &applied.sets) {
            (Some(NewState::Same(id)), None) => Some(*id),
            _ => None,
        };
        Extremity {
            event: self.pdu.event_id().to_owned(),
            state,
            author: Author::of(self.pdu.sender().server_name()),
            told: applied.told,
        }
    }

    /// What the current state becomes when the extremities, `before` this event, are these `after` it.
    fn current_after(
        &self,
        applied: &Applied,
        after: &[&Extremity],
        before: &[Extremity],
        current: Option<StateId>,
    ) -> Result<CurrentState, RoomError<R::Error>> {
        let Some(state_before) = applied.state_before.as_ref() else {
            return Ok(CurrentState::Unchanged);
        };
        let states = states_of(&resolved(after));
        if let Some(current) = current
            && states == states_of(&resolved(&before.iter().collect::<Vec<_>>()))
            && !states.contains(&None)
        {
            // The same states are left to resolve. Of one alone, it is that.
            let same = states.len() > 1 || states.contains(&Some(current));
            if same {
                return Ok(CurrentState::Unchanged);
            }
        }
        let own = after.iter().find(|extremity| extremity.event == self.pdu.event_id());
        if let (1, Some(own)) = (states.len(), own)
            && states.contains(&own.state)
        {
            return Ok(match own.state.is_some() && own.state == current {
                true => CurrentState::Unchanged,
                false => CurrentState::AfterEvent,
            });
        }
        let mut forks = Vec::with_capacity(states.len());
        for state in &states {
            forks.push(match state {
                Some(id) => Fork::stored(self.reader, *id)?,
                None => self.fork_after(state_before, applied.sets.as_ref())?,
            });
        }
        let new_event = StoredPdu {
            pdu: self.pdu.clone(),
            status: applied.status,
            outlier: false,
            told: applied.told,
        };
        let resolved = resolve_forks(self.reader, &self.rules, &forks, Some(new_event))?;
        Ok(match (resolved, current) {
            (NewState::Same(id), Some(current)) if id == current => CurrentState::Unchanged,
            (resolved, _) => CurrentState::New(resolved),
        })
    }

    fn fork_after(&self, before: &NewState, sets: Option<&StateKey>) -> Result<Fork, R::Error> {
        let mut map = entries(self.reader, before)?;
        let id = match (before, sets) {
            (NewState::Same(id), None) => Some(*id),
            _ => None,
        };
        if let Some(key) = sets {
            map.insert(key.clone(), self.pdu.event_id().to_owned());
        }
        Ok(Fork {
            id,
            entries: map.into(),
        })
    }

    /// Finds which redactions take hold now: the event's own, if it is one and its target is held; and those that
    /// arrived before it.
    fn apply_redactions(&self, applied: &mut Applied) -> Result<(), RoomError<R::Error>> {
        if applied.status != EventStatus::Accepted {
            return Ok(());
        }
        if let Some(target) = self.pdu.redacts(&self.rules.redaction) {
            let held = self.reader.event(&target)?.filter(|held| !held.outlier);
            applied.withheld = match (held, &applied.state_before) {
                (Some(held), Some(before)) => !self.redacts(self.pdu, before, &held.pdu)?,
                _ => true,
            };
            if !applied.withheld {
                let by = self.pdu.event_id().to_owned();
                applied.redactions.push(Redaction { target, by });
            }
        }
        for by in self.reader.redactions_of(self.pdu.event_id())? {
            let Some(redaction) = self.reader.event(&by)? else {
                continue;
            };
            let Some(before) = self.reader.state_before(&by)? else {
                continue;
            };
            if self.redacts(&redaction.pdu, &NewState::Same(before), self.pdu)? {
                applied.redactions.push(Redaction {
                    target: self.pdu.event_id().to_owned(),
                    by,
                });
            }
        }
        Ok(())
    }

    /// Whether a redaction applies to its target, by the state before the redaction.
    fn redacts(&self, redaction: &Pdu, before: &NewState, target: &Pdu) -> Result<bool, RoomError<R::Error>> {
        if redaction.room_id() != target.room_id() {
            return Ok(false);
        }
        let keys = [
            (StateEventType::RoomCreate, String::new()),
            (StateEventType::RoomPowerLevels, String::new()),
        ];
        let state = auth_state(&keys, |key| entry(self.reader, before, key), |id| self.reader.event(id))?;
        let levels = power_levels(
            &self.rules.authorization,
            state.entry(&keys[0].0, "").map(|stored| &stored.pdu),
            state.entry(&keys[1].0, "").map(|stored| &stored.pdu),
        );
        Ok(may_redact(&levels, redaction.sender(), target))
    }
}

fn is_among(extremities: &[Extremity], id: &EventId) -> bool {
    extremities.iter().any(|extremity| extremity.event == id)
}

/// The states after these, each once; none for one that is new.
fn states_of(extremities: &[&Extremity]) -> BTreeSet<Option<StateId>> {
    extremities.iter().map(|extremity| extremity.state).collect()
}

/// What an event is that the state before it refuses. One server's word against another's refutes nothing.
fn refusal(believed: bool, rests_on_word: bool) -> EventStatus {
    match believed && rests_on_word {
        true => EventStatus::SoftFailed,
        false => EventStatus::Rejected,
    }
}
