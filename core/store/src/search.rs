//! The words of messages, room names and topics, and the events that hold them. Encrypted words never come here: the
//! server does not have them.
//!
//! Client-server API, "Server side search".

use kith_engine::Pdu;
use ruma::{OwnedRoomId, events::TimelineEventType};
use rusqlite::params;
use serde::Deserialize;

use crate::{ReadTxn, StoreError, TimelineEvent, WriteTxn, intern::parse};

/// Characters of one event that are indexed; what follows is not found.
const MAX_WORDS: usize = 16 * 1024;

/// Words of a search that count; the rest of a longer one is ignored.
const MAX_TERMS: usize = 32;

/// Where words may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchField {
    /// `content.body` of `m.room.message`.
    Body,
    /// `content.name` of `m.room.name`.
    Name,
    /// `content.topic` of `m.room.topic`.
    Topic,
}

impl SearchField {
    fn kind(self) -> &'static str {
        match self {
            Self::Body => "m.room.message",
            Self::Name => "m.room.name",
            Self::Topic => "m.room.topic",
        }
    }
}

/// In which order hits are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchOrder {
    /// The most relevant first.
    Rank,
    /// The newest first, by `origin_server_ts`.
    Recent,
}

/// An event that holds what was searched.
#[derive(Debug, Clone)]
pub struct SearchHit {
    /// The event.
    pub event: TimelineEvent,
    /// How relevant it is: the more, the larger.
    pub rank: f64,
}

impl ReadTxn<'_> {
    /// Events in some rooms that hold all words of a text, from the `skip`-th on.
    pub fn search(
        &self,
        text: &str,
        fields: &[SearchField],
        rooms: &[OwnedRoomId],
        order: SearchOrder,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<SearchHit>, StoreError> {
        let Some(query) = query(text) else {
            return Ok(Vec::new());
        };
        let order = match order {
            SearchOrder::Rank => "rank, events.ts DESC, events.event DESC",
            SearchOrder::Recent => "events.ts DESC, events.event DESC",
        };
        let sql = format!(
            "SELECT event_id, rank FROM search JOIN events ON events.event = search.rowid
             WHERE search MATCH ?1 AND stream IS NOT NULL
               AND type IN (SELECT type FROM types WHERE name IN (SELECT value FROM json_each(?2)))
               AND room IN (SELECT room FROM rooms WHERE room_id IN (SELECT value FROM json_each(?3)))
             ORDER BY {order} LIMIT ?4 OFFSET ?5"
        );
        let mut statement = self.conn().prepare_cached(&sql)?;
        let kinds = serde_json::Value::from_iter(fields.iter().map(|field| field.kind())).to_string();
        let rooms = serde_json::Value::from_iter(rooms.iter().map(|room| room.as_str())).to_string();
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![query, kinds, rooms, number(limit), number(skip)], |row| {
            let row: (String, f64) = (row.get(0)?, row.get(1)?);
            Ok(row)
        })?;
        let mut hits = Vec::new();
        for row in rows {
            let (id, rank) = row?;
            let id: ruma::OwnedEventId = parse("event id", &id)?;
            // bm25 is the better the more negative.
            hits.extend(self.timeline_event(&id)?.map(|event| SearchHit { event, rank: -rank }));
        }
        Ok(hits)
    }
}

impl WriteTxn<'_> {
    /// Notes the words of a newly shown event.
    pub(crate) fn index_words(&self, event: i64, pdu: &Pdu) -> Result<(), StoreError> {
        let Some(words) = words(pdu) else {
            return Ok(());
        };
        self.conn()
            .prepare_cached("INSERT INTO search (rowid, words) VALUES (?, ?)")?
            .execute((event, words))?;
        Ok(())
    }

    /// Forgets the words of an event, as a redaction takes them away. `pdu` is the event before that.
    pub(crate) fn unindex_words(&self, event: i64, pdu: &Pdu) -> Result<(), StoreError> {
        if words(pdu).is_some() {
            self.conn()
                .prepare_cached("DELETE FROM search WHERE rowid = ?")?
                .execute([event])?;
        }
        Ok(())
    }
}

/// The text of an event that searches look at.
fn words(pdu: &Pdu) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        body: String,
    }
    #[derive(Deserialize)]
    struct Name {
        name: String,
    }
    #[derive(Deserialize)]
    struct Topic {
        topic: String,
    }
    let mut words = match pdu.kind() {
        TimelineEventType::RoomMessage => pdu.content_as::<Body>().ok()?.body,
        TimelineEventType::RoomName => pdu.content_as::<Name>().ok()?.name,
        TimelineEventType::RoomTopic => pdu.content_as::<Topic>().ok()?.topic,
        _ => return None,
    };
    if let Some((end, _)) = words.char_indices().nth(MAX_WORDS) {
        words.truncate(end);
    }
    (!words.is_empty()).then_some(words)
}

/// A query for events that hold every word. Each word is quoted, so that none of it is taken for the query language.
fn query(text: &str) -> Option<String> {
    let words: Vec<String> = text
        .split(|char: char| !char.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(MAX_TERMS)
        .map(|word| format!("\"{word}\""))
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::query;

    #[test]
    fn queries_quote_every_word() {
        assert_eq!(query("hello world").as_deref(), Some("\"hello\" \"world\""));
        assert_eq!(query("a OR b*").as_deref(), Some("\"a\" \"OR\" \"b\""));
        assert_eq!(query("\"; DROP").as_deref(), Some("\"DROP\""));
        assert_eq!(query("don't").as_deref(), Some("\"don\" \"t\""));
        assert_eq!(query(" ?! "), None);
        assert_eq!(query(&"x ".repeat(100)).unwrap().split(' ').count(), 32);
    }
}
