//! Servers: their key documents, the addresses of their nodes, and which ones a person added. Addresses and PeerIds are
//! text that the network layer understands; nothing here dials or verifies.

use kith_identity::KeyDocument;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName};
use rusqlite::{OptionalExtension, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// Nodes remembered for one server; older ones make room.
const NODES_PER_SERVER: i64 = 8;

/// Addresses remembered for one node.
const ADDRESSES_PER_NODE: usize = 16;

/// How a node of some server was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAddresses {
    /// The PeerId, as text.
    pub peer_id: String,
    /// Multiaddrs as text, the most useful first.
    pub addresses: Vec<String>,
}

impl ReadTxn<'_> {
    /// The newest key document of a server.
    pub fn key_document(&self, server: &ServerName) -> Result<Option<KeyDocument>, StoreError> {
        let json: Option<String> = self
            .conn()
            .prepare_cached("SELECT document FROM key_documents WHERE server = ?1 ORDER BY version DESC LIMIT 1")?
            .query_row([server.as_str()], |row| row.get(0))
            .optional()?;
        json.map(|json| parse(&json)).transpose()
    }

    /// Every key document held of a server, the newest first. A key that the newest does not list at all may be looked
    /// for in the older ones.
    pub fn key_documents(&self, server: &ServerName) -> Result<Vec<KeyDocument>, StoreError> {
        self.conn()
            .prepare_cached("SELECT document FROM key_documents WHERE server = ?1 ORDER BY version DESC")?
            .query_map([server.as_str()], |row| row.get::<_, String>(0))?
            .map(|json| parse(&json?))
            .collect()
    }

    /// How nodes of a server were reached, the latest first.
    pub fn peer_addresses(&self, server: &ServerName) -> Result<Vec<KnownAddresses>, StoreError> {
        let rows = self
            .conn()
            .prepare_cached(
                "SELECT peer_id, addresses FROM peer_addresses WHERE server = ?1 ORDER BY kept_at DESC, peer_id",
            )?
            .query_map([server.as_str()], |row| {
                Ok(KnownAddresses {
                    peer_id: row.get(0)?,
                    addresses: column::json(row, 1)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// The servers that a person added, and those with a user in a room known here (this node's own may be among them):
    /// the ones reached latest first, `limit` at the most.
    pub fn contacts(&self, limit: u32) -> Result<Vec<OwnedServerName>, StoreError> {
        let rows = self
            .conn()
            .prepare_cached(
                "SELECT server FROM (
                     SELECT server FROM contacts
                     UNION SELECT name FROM servers WHERE server IN (SELECT server FROM room_servers)
                 ) LEFT JOIN (SELECT server, max(kept_at) AS at FROM peer_addresses GROUP BY server) USING (server)
                 ORDER BY at DESC NULLS LAST, server LIMIT ?1",
            )?
            .query_map([limit], |row| column::id(row, 0))?
            .collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// A fact about this node, by name.
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let value = self
            .conn()
            .prepare_cached("SELECT value FROM settings WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()?;
        Ok(value)
    }
}

impl WriteTxn<'_> {
    /// Keeps a key document if it is newer than what is held of its server; says whether it was. Older documents go
    /// once everything that they list is listed in the newest.
    pub fn keep_key_document(&self, document: &KeyDocument) -> Result<bool, StoreError> {
        let server = document.server_name();
        let mut held = self.key_documents(&server)?;
        if held.first().is_some_and(|newest| !document.supersedes(newest)) {
            return Ok(false);
        }
        held.retain(|old| old.key_ids().all(|id| document.status(id).is_some()));
        for covered in &held {
            self.conn()
                .prepare_cached("DELETE FROM key_documents WHERE server = ?1 AND version = ?2")?
                .execute(params![server.as_str(), version(covered)])?;
        }
        self.conn()
            .prepare_cached("INSERT INTO key_documents (server, version, document) VALUES (?1, ?2, ?3)")?
            .execute(params![server.as_str(), version(document), document.to_json()])?;
        Ok(true)
    }

    /// Remembers how a node is reached now, in place of what was remembered for that PeerId. The oldest nodes of the
    /// server make room.
    pub fn keep_peer_addresses(
        &self,
        server: &ServerName,
        known: &KnownAddresses,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        let addresses = &known.addresses[..known.addresses.len().min(ADDRESSES_PER_NODE)];
        let addresses = serde_json::to_string(addresses).map_err(|error| StoreError::Corrupt {
            what: "list of addresses",
            reason: error.to_string(),
        })?;
        self.conn()
            .prepare_cached(
                "INSERT INTO peer_addresses (server, peer_id, addresses, kept_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (server, peer_id) DO UPDATE SET addresses = excluded.addresses, kept_at = excluded.kept_at",
            )?
            .execute(params![server.as_str(), known.peer_id, addresses, column::millis(now)])?;
        self.conn()
            .prepare_cached(
                "DELETE FROM peer_addresses WHERE server = ?1 AND peer_id NOT IN (
                     SELECT peer_id FROM peer_addresses WHERE server = ?1 ORDER BY kept_at DESC, peer_id LIMIT ?2
                 )",
            )?
            .execute(params![server.as_str(), NODES_PER_SERVER])?;
        Ok(())
    }

    /// Notes that a person added a server; says whether it is new.
    pub fn add_contact(&self, server: &ServerName, now: MilliSecondsSinceUnixEpoch) -> Result<bool, StoreError> {
        let added = self
            .conn()
            .prepare_cached("INSERT OR IGNORE INTO contacts (server, added_at) VALUES (?1, ?2)")?
            .execute(params![server.as_str(), column::millis(now)])?;
        Ok(added > 0)
    }

    /// Sets a fact about this node.
    pub fn set_setting(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO settings (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute(params![name, value])?;
        Ok(())
    }
}

fn parse(json: &str) -> Result<KeyDocument, StoreError> {
    KeyDocument::parse(json.as_bytes()).map_err(|error| StoreError::Corrupt {
        what: "key document",
        reason: error.to_string(),
    })
}

/// Versions are integers of canonical JSON, which stay below 2^53.
fn version(document: &KeyDocument) -> i64 {
    i64::try_from(document.version()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use kith_identity::{IdentityKey, KeyDocument, NodeKey};
    use ruma::{MilliSecondsSinceUnixEpoch, ServerName, server_name};

    use super::KnownAddresses;
    use crate::{Store, StoreConfig, StoreError};

    fn at(millis: u32) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(millis.into())
    }

    fn open() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::new(dir.path().join("kith.db"))).unwrap();
        (dir, store)
    }

    #[tokio::test]
    async fn the_newest_document_counts_and_old_keys_stay_findable() {
        let (_dir, store) = open();
        let identity = IdentityKey::from_bytes(&[1; 32]);
        let (first, second) = (NodeKey::from_bytes(&[2; 64]), NodeKey::from_bytes(&[3; 64]));
        let one = KeyDocument::new(&identity, &first.public(), at(1), at(100)).unwrap();
        let two = one.renew(&identity, at(200)).unwrap();
        // A restored identity does not know its earlier nodes.
        let restored = KeyDocument::restored(&identity, &second.public(), at(5000), at(6000)).unwrap();
        let name = one.server_name();
        // (document, whether it is kept, versions held afterwards)
        let cases = [
            (&one, true, vec![1]),
            (&one, false, vec![1]),
            (&two, true, vec![2]),
            (&one, false, vec![2]),
            (&restored, true, vec![restored.version(), 2]),
        ];
        for (document, kept, versions) in cases {
            let (given, server) = (document.clone(), name.clone());
            let outcome = store
                .write(move |txn| Ok::<_, StoreError>((txn.keep_key_document(&given)?, txn.key_documents(&server)?)))
                .await
                .unwrap();
            let held: Vec<u64> = outcome.1.iter().map(KeyDocument::version).collect();
            assert_eq!((outcome.0, held), (kept, versions));
        }
        let newest = store.read(move |txn| txn.key_document(&name)).await.unwrap();
        assert_eq!(newest, Some(restored));
    }

    #[tokio::test]
    async fn addresses_are_bounded_and_the_latest_come_first() {
        let (_dir, store) = open();
        let server = server_name!("one");
        store
            .write(move |txn| {
                for n in 0..20 {
                    let known = KnownAddresses {
                        peer_id: format!("peer {n}"),
                        addresses: (0..30).map(|a| format!("/ip4/127.0.0.1/tcp/{a}")).collect(),
                    };
                    txn.keep_peer_addresses(server, &known, at(n))?;
                }
                Ok::<_, StoreError>(())
            })
            .await
            .unwrap();
        let held = store.read(move |txn| txn.peer_addresses(server)).await.unwrap();
        assert_eq!(held.len(), 8);
        assert_eq!(held[0].peer_id, "peer 19");
        assert_eq!(held[0].addresses.len(), 16);
    }

    #[tokio::test]
    async fn contacts_are_those_added_and_the_latest_reached_come_first() {
        let (_dir, store) = open();
        let known = KnownAddresses {
            peer_id: "peer".into(),
            addresses: Vec::new(),
        };
        let contacts = store
            .write(move |txn| {
                txn.keep_peer_addresses(server_name!("merely.met"), &known, at(50))?;
                for (server, reached) in [("early", Some(5)), ("late", Some(9)), ("never", None)] {
                    let server = <&ServerName>::try_from(server).unwrap();
                    assert!(txn.add_contact(server, at(1))?);
                    assert!(!txn.add_contact(server, at(2))?);
                    if let Some(reached) = reached {
                        txn.keep_peer_addresses(server, &known, at(reached))?;
                    }
                }
                txn.contacts(10)
            })
            .await
            .unwrap();
        assert_eq!(contacts, ["late", "early", "never"]);
    }
}
