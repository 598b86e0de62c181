//! Finds a server's key document and its nodes' addresses in the DHT. Each record is checked and opened before anything
//! follows from it; a forged one neither counts nor ends the search.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use kith_identity::{
    AddressRecord, Day, DhtKey, IdentityPublicKey, KeyDocument, Record, RecordError, RecordKind, RecordSlot,
    SealedRecord,
};
use libp2p::{Multiaddr, PeerId};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, OwnedServerSigningKeyId, ServerName};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Dht, ERRAND,
    errand::{Errand, Given},
};
use crate::{
    PeerAddresses,
    address::{circuit_address, is_dialable, is_relayed, split_peer_id},
};

/// Records of the neighbouring days are asked for after this, or when today's are not there: few clocks are wrong.
const HEAD_START: Duration = Duration::from_millis(700);

/// Nodes of one server that are looked for.
const MAX_NODES: usize = 8;

/// Where nodes of a server are.
pub(crate) type Found = (OwnedServerName, Vec<PeerAddresses>);

impl Dht {
    /// Looks a server up by its name alone. Addresses go to `found` as they come, and better ones after them; a key document
    /// goes to the directory. Returns when there is no more to find, or nobody wants it any more.
    pub(crate) async fn look_up(&self, server: &ServerName, found: &mpsc::Sender<Found>, unwanted: &CancellationToken) {
        let Ok(identity) = IdentityPublicKey::from_server_name(server) else {
            return;
        };
        let turn = self.0.errands.acquire();
        let Some(_turn) = unwanted.run_until_cancelled(turn).await else {
            return;
        };
        let servers = self.servers().await;
        if servers.is_empty() {
            return;
        }
        let document = self.0.directory.document(server).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a key document cannot be read"
            );
            None
        });
        let errand = match self.errand(&servers) {
            Ok(errand) => errand,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the DHT cannot be asked");
                return;
            }
        };
        let mut lookup = Lookup {
            dht: self,
            identity,
            document,
            errand,
            days: Day::around(self.0.directory.now())[..1].to_vec(),
            kinds: Vec::new(),
            slots: HashMap::new(),
            waiting: Vec::new(),
            newest: HashMap::new(),
            settled: HashSet::new(),
        };
        // What was found until now stays found.
        let searched = timeout(ERRAND, lookup.run(server, found));
        let _ = unwanted.run_until_cancelled(searched).await;
        self.learn(&servers, lookup.errand).await;
    }
}

/// A search under way.
struct Lookup<'a> {
    dht: &'a Dht,
    identity: IdentityPublicKey,
    /// The newest that is known.
    document: Option<KeyDocument>,
    errand: Errand,
    /// The days that are asked for.
    days: Vec<Day>,
    /// The kinds of records that are asked for.
    kinds: Vec<RecordKind>,
    slots: HashMap<DhtKey, RecordSlot>,
    /// Addresses that name a newer key document than is known.
    waiting: Vec<AddressRecord>,
    /// The newest addresses of each node.
    newest: HashMap<OwnedServerSigningKeyId, u64>,
    /// The kinds of which a fresh record was found.
    settled: HashSet<RecordKind>,
}

impl Lookup<'_> {
    async fn run(&mut self, server: &ServerName, found: &mpsc::Sender<Found>) {
        self.seek(RecordKind::Keys);
        self.seek_nodes();
        let head_start = Instant::now() + HEAD_START;
        loop {
            let one_day = self.days.len() == 1;
            tokio::select! {
                given = self.errand.next() => match given {
                    Some(given) => {
                        let addresses = self.handle(&given).await;
                        let news = (server.to_owned(), addresses);
                        if !news.1.is_empty() && found.send(news).await.is_err() {
                            return;
                        }
                        if self.is_complete() {
                            return;
                        }
                    }
                    None if one_day => self.widen(),
                    None => return,
                },
                () = sleep_until(head_start), if one_day => self.widen(),
            }
        }
    }

    /// Asks for the neighbouring days too.
    fn widen(&mut self) {
        self.days = Day::around(self.dht.0.directory.now()).to_vec();
        for kind in self.kinds.clone() {
            self.seek(kind);
        }
    }

    fn seek(&mut self, kind: RecordKind) {
        for day in &self.days {
            let slot = RecordSlot::new(self.identity, kind.clone(), *day);
            let key = slot.dht_key();
            if self.slots.insert(key, slot).is_none() {
                self.errand.seek(key);
            }
        }
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
    }

    fn seek_nodes(&mut self) {
        let nodes = self.document.iter().flat_map(KeyDocument::nodes);
        for node in nodes.map(|(id, _)| id.clone()).take(MAX_NODES).collect::<Vec<_>>() {
            self.seek(RecordKind::Address(node));
        }
    }

    /// Addresses of every node that there is are found.
    fn is_complete(&self) -> bool {
        let found = |id: &OwnedServerSigningKeyId| self.settled.contains(&RecordKind::Address(id.clone()));
        let document = self.document.as_ref();
        document.is_some_and(|document| document.nodes().all(|(id, _)| found(id)))
    }

    async fn handle(&mut self, given: &Given) -> Vec<PeerAddresses> {
        let now = self.dht.0.directory.now();
        let record = match self.open(given, now) {
            Ok(record) => record,
            Err(error) => {
                tracing::debug!(%error, "a record of the DHT is not good");
                return Vec::new();
            }
        };
        let fresh = record.expires() > now;
        match record {
            Record::Keys { document, .. } => {
                self.finish_kind(&RecordKind::Keys, fresh);
                self.learn_document(document).await
            }
            Record::Address(record) => {
                let kind = RecordKind::Address(record.key_id());
                let addresses = self.judge(record);
                self.finish_kind(&kind, fresh && addresses.is_some());
                addresses.into_iter().collect()
            }
        }
    }

    fn open(&self, given: &Given, now: MilliSecondsSinceUnixEpoch) -> Result<Record, RecordError> {
        let slot = self.slots.get(&given.key).ok_or(RecordError::OtherSlot)?;
        let sealed = SealedRecord::decode(&given.value)?;
        sealed.check(&given.key, now)?;
        sealed.open(slot)
    }

    /// A fresh record is good enough. One that is past its expiry may be what a server gives in place of a newer one, or its
    /// publisher's clock is wrong: others are asked further.
    fn finish_kind(&mut self, kind: &RecordKind, fresh: bool) {
        if fresh && self.settled.insert(kind.clone()) {
            let slots = self.slots.iter().filter(|(_, slot)| slot.kind() == kind);
            for key in slots.map(|(key, _)| *key).collect::<Vec<_>>() {
                self.errand.finish(&key);
            }
        }
    }

    async fn learn_document(&mut self, document: KeyDocument) -> Vec<PeerAddresses> {
        if self.document.as_ref().is_some_and(|held| !document.supersedes(held)) {
            return Vec::new();
        }
        if let Err(error) = self.dht.0.directory.keep_document(document.clone()).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a key document is not kept");
        }
        self.document = Some(document);
        self.seek_nodes();
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().filter_map(|record| self.judge(record)).collect()
    }

    /// The addresses in a record that is a node's of this server, and newer than what was found of it.
    fn judge(&mut self, record: AddressRecord) -> Option<PeerAddresses> {
        let verified = match &self.document {
            Some(document) => record.verify(document),
            None => Err(RecordError::UnknownNode),
        };
        match verified {
            Ok(()) => {}
            Err(RecordError::DocumentNeeded { .. }) if self.waiting.len() < MAX_NODES => {
                self.waiting.push(record);
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "addresses from the DHT are not good");
                return None;
            }
        }
        let newest = self.newest.entry(record.key_id()).or_default();
        if record.seq <= *newest {
            return None;
        }
        *newest = record.seq;
        addresses(&record)
    }
}

/// What to dial. Straight addresses come first; at relays the node has a place.
fn addresses(record: &AddressRecord) -> Option<PeerAddresses> {
    let whereabouts = &record.whereabouts;
    let parse = |bytes: &Vec<u8>| Multiaddr::try_from(bytes.clone()).ok();
    let straight = whereabouts.addrs.iter().filter_map(parse);
    let straight = straight.map(|address| split_peer_id(address).0);
    let relayed = whereabouts.relays.iter().filter_map(parse);
    let relayed = relayed.filter_map(|relay| circuit_address(&relay));
    Some(PeerAddresses {
        peer_id: PeerId::from_bytes(&whereabouts.peer_id).ok()?,
        addresses: straight
            .filter(|address| !is_relayed(address))
            .chain(relayed)
            .filter(is_dialable)
            .collect(),
    })
}
