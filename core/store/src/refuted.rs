//! Events that were believed as part of a state that another server told, and refuted later. Rows of states go on holding
//! them; whatever is read of a state passes through here and has in their place what stood before them. It judges no event.

use kith_engine::Refuted;
use ruma::OwnedEventId;

use crate::{ReadTxn, StoreError, WriteTxn, intern::missing};

/// An event that states hold and must not yield.
pub(crate) struct Correction {
    pub(crate) key: i64,
    pub(crate) event: i64,
    /// What they yield there; 0 says nothing.
    pub(crate) instead: i64,
}

impl ReadTxn<'_> {
    /// What a state yields where its row has this event; 0 says absent.
    pub(crate) fn corrected(&self, event: i64) -> Result<i64, StoreError> {
        if event == 0 || !self.any_refuted()? {
            return Ok(event);
        }
        let instead = self.lookup("SELECT ifnull(instead, 0) FROM refuted WHERE event = ?", [event])?;
        Ok(instead.unwrap_or(event))
    }

    /// What may have to be corrected in a state, by key.
    pub(crate) fn corrections(&self, state: i64) -> Result<Vec<Correction>, StoreError> {
        if !self.any_refuted()? {
            return Ok(Vec::new());
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT key, event, ifnull(instead, 0) FROM refuted
             WHERE room = (SELECT room FROM states WHERE state = ?) ORDER BY key",
        )?;
        let rows = statement.query_map([state], |row| {
            Ok(Correction {
                key: row.get(0)?,
                event: row.get(1)?,
                instead: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// By names what [`ReadTxn::corrections`] tells by number.
    pub(crate) fn named_corrections(&self, state: i64) -> Result<Vec<Refuted>, StoreError> {
        let corrections = self.corrections(state)?.into_iter();
        corrections
            .map(|correction| {
                let instead = (correction.instead != 0).then_some(correction.instead);
                Ok(Refuted {
                    event: self.event_name(correction.event)?,
                    key: self.key_name(correction.key)?,
                    instead: instead.map(|instead| self.event_name(instead)).transpose()?,
                })
            })
            .collect()
    }

    /// Whether any event was ever refuted here. Nearly always none was, and asking once is all that it costs.
    fn any_refuted(&self) -> Result<bool, StoreError> {
        if let Some(known) = self.knows_refuted().get() {
            return Ok(known);
        }
        let any = self.lookup("SELECT EXISTS (SELECT 1 FROM refuted)", [])?;
        let any = any.unwrap_or(false);
        self.knows_refuted().set(Some(any));
        Ok(any)
    }
}

impl WriteTxn<'_> {
    /// From now on no state yields this event. What an earlier one gave way to, if it was this one, gives way too.
    pub(crate) fn refute(&self, room: i64, refuted: &Refuted) -> Result<(), StoreError> {
        let number = |id: &OwnedEventId| self.event_no(id)?.ok_or_else(|| missing("event of a state"));
        let event = number(&refuted.event)?;
        let instead = refuted.instead.as_ref().map(number).transpose()?;
        let kind = self.intern_type(&refuted.key.0.to_string())?;
        let key = self.intern_key(kind, &refuted.key.1)?;
        self.conn()
            .prepare_cached("UPDATE refuted SET instead = ? WHERE room = ? AND key = ? AND instead = ?")?
            .execute((instead, room, key, event))?;
        self.conn()
            .prepare_cached("INSERT INTO refuted (event, room, key, instead) VALUES (?, ?, ?, ?)")?
            .execute((event, room, key, instead))?;
        self.knows_refuted().set(Some(true));
        Ok(())
    }
}
