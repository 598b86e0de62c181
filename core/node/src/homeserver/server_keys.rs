//! Key documents: what other servers sign with. Those needed are kept for good and told to whoever asks, so that history
//! verifies when its author is long gone. A document proves itself, whoever handed it over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{StreamExt, stream};
use kith_engine::{RequiredKeys, VerifyKey};
use kith_identity::{KeyDocument, KeyStatus};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, ServerName,
    api::federation::discovery::{ServerSigningKeys, get_remote_server_keys_batch, get_server_keys},
    serde::Raw,
};

use super::Context;
use crate::{Error, federation::client, network::Limits};

/// Servers whose documents are asked for in one request, and answered for in one.
pub(crate) const MAX_BATCH: usize = 200;
/// Servers asked for their own document at the most, when the one that should have it does not.
const MAX_ASKED: usize = 32;
/// Servers asked at once.
const ASKED_AT_ONCE: usize = 8;
/// A key document is small: whoever takes longer to send one is as good as away.
const LIMITS: Limits = Limits {
    deadline: Duration::from_secs(10),
    max_answer: MAX_BATCH * 2 * KeyDocument::MAX_BYTES,
    bulk: false,
};

/// The key documents of some servers, to verify events with.
#[derive(Debug, Clone, Default)]
pub struct KeyRing(BTreeMap<OwnedServerName, Vec<KeyDocument>>);

impl KeyRing {
    /// A server's key by its id, if it signed at that time; revoked since or not.
    pub fn get(&self, server: &ServerName, key_id: &str, at: MilliSecondsSinceUnixEpoch) -> Option<VerifyKey> {
        let key_id = OwnedServerSigningKeyId::try_from(key_id).ok()?;
        // Newest first: what the newest document says of a key counts, and older ones only for keys it leaves out.
        let document = self
            .0
            .get(server)?
            .iter()
            .find(|document| document.status(&key_id).is_some())?;
        let key = document.verifying_key(&key_id, at)?;
        Some(VerifyKey {
            public_key: *key.as_bytes(),
            revoked: matches!(document.status(&key_id), Some(KeyStatus::Revoked(_))),
        })
    }

    fn lists(&self, needed: &RequiredKeys) -> bool {
        let documents = self.0.get(&needed.server).map(Vec::as_slice).unwrap_or_default();
        let listed = |key_id: &String| {
            OwnedServerSigningKeyId::try_from(key_id.as_str())
                .is_ok_and(|key_id| documents.iter().any(|document| document.status(&key_id).is_some()))
        };
        needed.key_ids.iter().any(listed)
    }

    fn add(&mut self, document: KeyDocument) {
        let documents = self.0.entry(document.server_name()).or_default();
        documents.retain(|held| held.version() != document.version());
        documents.push(document);
        documents.sort_by_key(|document| std::cmp::Reverse(document.version()));
    }
}

/// The key documents service.
#[derive(Clone)]
pub struct ServerKeys {
    pub(super) ctx: Context,
}

impl ServerKeys {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// The keys that some events need: those held, else those that `ask` or the servers themselves tell. Keys that
    /// nobody tells are absent from the ring; an event that needs them will not verify.
    pub async fn load(&self, needed: &[RequiredKeys], ask: &ServerName) -> Result<KeyRing, Error> {
        let servers: BTreeSet<OwnedServerName> = needed.iter().map(|needed| needed.server.clone()).collect();
        let mut ring = self.held(servers).await?;
        let lacking = |ring: &KeyRing| -> BTreeSet<OwnedServerName> {
            let lacking = needed.iter().filter(|needed| !ring.lists(needed));
            lacking.map(|needed| needed.server.clone()).collect()
        };
        let wanted = lacking(&ring);
        if wanted.is_empty() {
            return Ok(ring);
        }
        let mut found = self.ask_one(ask, &wanted).await;
        found.iter().for_each(|document| ring.add(document.clone()));
        let wanted = lacking(&ring);
        let asked = wanted
            .into_iter()
            .filter(|server| !self.ctx.is_self(server))
            .take(MAX_ASKED);
        let told: Vec<_> = stream::iter(asked)
            .map(|server| async move { self.ask_itself(&server).await })
            .buffer_unordered(ASKED_AT_ONCE)
            .filter_map(std::future::ready)
            .collect()
            .await;
        told.iter().for_each(|document| ring.add(document.clone()));
        found.extend(told);
        self.keep(found).await?;
        // Looking for those that were not reached, the network may have come across their documents.
        let wanted = lacking(&ring);
        if !wanted.is_empty() {
            let found = self.held(wanted).await?.0;
            found.into_values().flatten().for_each(|document| ring.add(document));
        }
        Ok(ring)
    }

    /// One server's keys, asked for if none are held.
    pub async fn of_server(&self, server: &ServerName) -> Result<KeyRing, Error> {
        let mut ring = self.held(BTreeSet::from([server.to_owned()])).await?;
        if ring.0.is_empty() {
            match self.ask_itself(server).await {
                Some(document) => {
                    ring.add(document.clone());
                    self.keep(vec![document]).await?;
                }
                // Looking for it, the network may have come across its document.
                None => ring = self.held(BTreeSet::from([server.to_owned()])).await?,
            }
        }
        Ok(ring)
    }

    /// Every document held of some servers, this node's own included.
    pub async fn held(&self, servers: BTreeSet<OwnedServerName>) -> Result<KeyRing, Error> {
        let own = self.ctx.key_document();
        self.ctx
            .store
            .read(move |txn| {
                let mut ring = KeyRing::default();
                for server in servers {
                    if server == own.server_name() {
                        ring.add((*own).clone());
                    }
                    for document in txn.key_documents(&server)? {
                        ring.add(document);
                    }
                }
                Ok(ring)
            })
            .await
    }

    /// Every document held of some servers, as other servers are told them, the newest of each first.
    pub async fn told(&self, servers: BTreeSet<OwnedServerName>) -> Result<Vec<Raw<ServerSigningKeys>>, Error> {
        let ring = self.held(servers).await?;
        ring.0.values().flatten().map(to_raw).collect()
    }

    /// This node's own document, as other servers are told it.
    pub fn own(&self) -> Result<Raw<ServerSigningKeys>, Error> {
        to_raw(&self.ctx.key_document())
    }

    async fn keep(&self, mut documents: Vec<KeyDocument>) -> Result<(), Error> {
        if documents.is_empty() {
            return Ok(());
        }
        // A document is kept only on top of older ones.
        documents.sort_by_key(KeyDocument::version);
        self.ctx
            .store
            .write(move |txn| {
                for document in &documents {
                    txn.keep_key_document(document)?;
                }
                Ok(())
            })
            .await
    }

    /// What one server tells of others. What it tells unasked is dropped.
    async fn ask_one(&self, ask: &ServerName, wanted: &BTreeSet<OwnedServerName>) -> Vec<KeyDocument> {
        let mut found = Vec::new();
        if self.ctx.is_self(ask) {
            return found;
        }
        let wanted_list: Vec<_> = wanted.iter().collect();
        for batch in wanted_list.chunks(MAX_BATCH) {
            let servers = batch
                .iter()
                .map(|server| ((*server).clone(), BTreeMap::new()))
                .collect();
            let request = get_remote_server_keys_batch::v2::Request::new(servers);
            match client::request_within(&self.ctx, ask, request, LIMITS).await {
                Ok(answer) => found.extend(answer.server_keys.iter().filter_map(parse)),
                Err(error) => {
                    tracing::debug!(%error, %ask, "no key documents from a server");
                    break;
                }
            }
        }
        found.retain(|document| wanted.contains(&document.server_name()));
        found
    }

    async fn ask_itself(&self, server: &ServerName) -> Option<KeyDocument> {
        let request = get_server_keys::v2::Request::new();
        match client::request_within(&self.ctx, server, request, LIMITS).await {
            Ok(answer) => parse(&answer.server_key).filter(|document| document.server_name() == server),
            Err(error) => {
                tracing::debug!(%error, %server, "a server does not tell its keys");
                None
            }
        }
    }
}

fn parse(json: &Raw<ServerSigningKeys>) -> Option<KeyDocument> {
    match KeyDocument::parse(json.json().get().as_bytes()) {
        Ok(document) => Some(document),
        Err(error) => {
            tracing::debug!(%error, "a key document that does not hold");
            None
        }
    }
}

fn to_raw(document: &KeyDocument) -> Result<Raw<ServerSigningKeys>, Error> {
    Raw::from_json_string(document.to_json())
        .map_err(|error| Error::Internal("a key document did not serialise", Some(Box::new(error))))
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;
    use crate::testing::Cluster;

    fn needed(server: &ServerName, key_id: &str) -> RequiredKeys {
        RequiredKeys {
            server: server.to_owned(),
            key_ids: vec![key_id.to_owned()],
            at: MilliSecondsSinceUnixEpoch(ruma::uint!(1)),
        }
    }

    #[tokio::test]
    async fn keys_come_from_the_author_or_from_whoever_has_them() {
        let cluster = Cluster::start(3).await;
        let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
        let key_id = c.hs.context.node_key.key_id().to_string();
        let key = *c.hs.context.node_key.public().signing.as_bytes();
        let needed = [needed(&c.name, &key_id)];
        let at = needed[0].at;
        let found = |ring: KeyRing| ring.get(&c.name, &key_id, at).map(|key| key.public_key);

        // Nobody has it, and the author is away.
        c.go_down();
        assert_eq!(found(a.hs.server_keys.load(&needed, &b.name).await.unwrap()), None);
        // The author tells b; then b tells a, the author being away again.
        c.come_up();
        assert_eq!(found(b.hs.server_keys.load(&needed, &c.name).await.unwrap()), Some(key));
        c.go_down();
        assert_eq!(found(a.hs.server_keys.load(&needed, &b.name).await.unwrap()), Some(key));
        // From now on a needs nobody.
        b.go_down();
        assert_eq!(found(a.hs.server_keys.load(&needed, &b.name).await.unwrap()), Some(key));
        // a asked b in vain, b asked c, a asked b.
        assert_eq!(cluster.wires.requests("/_matrix/key/v2/"), 3);
    }

    #[tokio::test]
    async fn own_keys_and_unknown_ones() {
        let cluster = Cluster::start(1).await;
        let hs = &cluster[0].hs;
        let key_id = hs.context.node_key.key_id().to_string();
        let own = hs.context.server_name.clone();
        let at = MilliSecondsSinceUnixEpoch(ruma::uint!(1));
        let elsewhere = server_name!("elsewhere");
        let needed = [
            needed(&own, &key_id),
            needed(elsewhere, &key_id),
            needed(&own, "rubbish"),
        ];
        let ring = hs.server_keys.load(&needed, &own).await.unwrap();
        assert!(ring.get(&own, &key_id, at).is_some_and(|key| !key.revoked));
        assert_eq!(ring.get(elsewhere, &key_id, at), None);
        assert_eq!(ring.get(&own, "rubbish", at), None);
        assert_eq!(
            ring.get(&own, &key_id, MilliSecondsSinceUnixEpoch(ruma::UInt::MAX)),
            None
        );
    }
}
