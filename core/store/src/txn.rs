//! The two transaction types that every table family adds its methods to. No SQL but their own stands here.

use std::{cell::Cell, marker::PhantomData, ops::Deref};

use rusqlite::Connection;

use crate::{StoreError, cache::Caches, intern::Numbers};

/// A position in the one stream of everything that happens in this store. Every row that a `/sync` may have to hand
/// out carries the position at which it was written, so that a sync token is a single number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub i64);

/// A consistent snapshot to read from.
pub struct ReadTxn<'a> {
    conn: &'a Connection,
    caches: &'a Caches,
    numbers: Numbers,
    /// Whether any event was ever refuted, once that has been asked.
    refuted: Cell<Option<bool>>,
}

impl<'a> ReadTxn<'a> {
    pub(crate) fn new(conn: &'a Connection, caches: &'a Caches) -> Self {
        Self {
            conn,
            caches,
            numbers: Numbers::default(),
            refuted: Cell::new(None),
        }
    }

    pub(crate) fn knows_refuted(&self) -> &Cell<Option<bool>> {
        &self.refuted
    }

    /// The numbers of names that this transaction has looked up.
    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// What all transactions remember.
    pub(crate) fn caches(&self) -> &'a Caches {
        self.caches
    }

    /// The connection; prepare with `prepare_cached`.
    pub(crate) fn conn(&self) -> &'a Connection {
        self.conn
    }

    /// The last position handed out in this snapshot.
    pub fn last_seq(&self) -> Result<Seq, StoreError> {
        let seq = self
            .conn
            .prepare_cached("SELECT seq FROM stream")?
            .query_row([], |row| row.get(0))?;
        Ok(Seq(seq))
    }
}

/// One job on the writer: everything it writes is kept together or not at all. Reads what it wrote.
pub struct WriteTxn<'a> {
    read: ReadTxn<'a>,
    _not_sync: PhantomData<*const ()>,
}

impl<'a> WriteTxn<'a> {
    pub(crate) fn new(conn: &'a Connection, caches: &'a Caches) -> Self {
        Self {
            read: ReadTxn::new(conn, caches),
            _not_sync: PhantomData,
        }
    }

    /// Takes the next stream position.
    pub fn next_seq(&self) -> Result<Seq, StoreError> {
        let seq = self
            .conn()
            .prepare_cached("UPDATE stream SET seq = seq + 1 RETURNING seq")?
            .query_row([], |row| row.get(0))?;
        Ok(Seq(seq))
    }
}

impl<'a> Deref for WriteTxn<'a> {
    type Target = ReadTxn<'a>;

    fn deref(&self) -> &Self::Target {
        &self.read
    }
}
