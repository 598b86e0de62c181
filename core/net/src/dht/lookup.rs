//! Finds a server's key document and its nodes' addresses in the DHT. Each record is checked and opened before anything
//! follows from it; a forged one neither counts nor ends the search.

use std::{cmp::Ordering, collections::HashMap, time::Duration};

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
    Dht, ERRAND, PATHS,
    errand::{Errand, Given},
};
use crate::{
    PeerAddresses,
    address::{circuit_address, is_dialable, is_relayed, split_peer_id},
};

/// Records of the neighbouring days are asked for after this, or when today's are not there: few clocks are wrong.
const HEAD_START: Duration = Duration::from_millis(700);

/// A key document is taken for the newest when this many servers gave it and none a newer one. Addresses are asked for until
/// everybody was asked who should be, or nobody wants them any more: hostile servers may keep older ones of the same day, which
/// are as true as the newest but for being old, and name each other. What is found is used at once all the same.
const AGREEING: usize = 3;

/// How often a name is searched for at the most: again when hostile servers had the word, and then not by way of them.
const ROUNDS: usize = 2;

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
        for _ in 0..ROUNDS {
            let misled = self.search(identity, server, found, unwanted).await;
            if !misled || unwanted.is_cancelled() || found.is_closed() {
                return;
            }
        }
    }

    /// One search. Says whether hostile servers had the word in it.
    async fn search(
        &self,
        identity: IdentityPublicKey,
        server: &ServerName,
        found: &mpsc::Sender<Found>,
        unwanted: &CancellationToken,
    ) -> bool {
        let servers = self.servers().await;
        if servers.is_empty() {
            return false;
        }
        let errand = match self.errand(&servers, PATHS) {
            Ok(errand) => errand,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the DHT cannot be asked");
                return false;
            }
        };
        let mut lookup = Lookup {
            dht: self,
            identity,
            document: self.known_document(server).await,
            errand,
            days: Day::around(self.0.directory.now())[..1].to_vec(),
            kinds: Vec::new(),
            slots: HashMap::new(),
            waiting: Vec::new(),
            newest: HashMap::new(),
        };
        // What was found until now stays found.
        let searched = timeout(ERRAND, lookup.run(server, found));
        let _ = unwanted.run_until_cancelled(searched).await;
        let misled = lookup.is_misled();
        self.learn(&servers, lookup.errand).await;
        misled
    }

    async fn known_document(&self, server: &ServerName) -> Option<KeyDocument> {
        let document = self.0.directory.document(server).await;
        document.unwrap_or_else(|error| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a key document cannot be read"
            );
            None
        })
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
    /// Of each kind the newest record that was found.
    newest: HashMap<RecordKind, Newest>,
}

/// The newest record of a kind, as far as it is known.
#[derive(Default)]
struct Newest {
    seq: u64,
    /// How many servers gave it.
    servers: usize,
    /// Whether it has not expired, in one of its publications. One that has may be what a server gives in place of a newer one, or
    /// its publisher's clock is wrong.
    fresh: bool,
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
                    }
                    None if one_day && !self.is_found() => self.widen(),
                    None => return,
                },
                () = sleep_until(head_start), if one_day && !self.is_found() => self.widen(),
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

    /// Whether addresses that have not expired are found of every node that there is.
    fn is_found(&self) -> bool {
        let of_node = |id: &OwnedServerSigningKeyId| self.newest.get(&RecordKind::Address(id.clone()));
        let document = self.document.as_ref();
        document.is_some_and(|document| {
            document
                .nodes()
                .all(|(id, _)| of_node(id).is_some_and(|newest| newest.fresh))
        })
    }

    async fn handle(&mut self, given: &Given) -> Vec<PeerAddresses> {
        let now = self.dht.0.directory.now();
        match self.open(given, now) {
            Ok(Record::Keys { document, expires }) => {
                self.note(&RecordKind::Keys, document.version(), expires > now);
                self.learn_document(document).await
            }
            Ok(Record::Address(record)) => self.judge(record, now).into_iter().collect(),
            Err(error) => {
                tracing::debug!(%error, "a record of the DHT is not good");
                Vec::new()
            }
        }
    }

    /// Whether there were more lies than servers that gave the newest addresses of any node.
    fn is_misled(&self) -> bool {
        let addresses = |kind: &RecordKind| matches!(kind, RecordKind::Address(_));
        let given = self.newest.iter().filter(|(kind, _)| addresses(kind));
        let most = given.map(|(_, newest)| newest.servers).max();
        self.errand.lies() > most.unwrap_or(0)
    }

    fn open(&mut self, given: &Given, now: MilliSecondsSinceUnixEpoch) -> Result<Record, RecordError> {
        let slot = self.slots.get(&given.key).ok_or(RecordError::OtherSlot)?;
        let sealed = SealedRecord::decode(&given.value).and_then(|sealed| {
            sealed.check(&given.key, now)?;
            Ok(sealed)
        });
        if let (Err(error), Some(liar)) = (&sealed, given.by)
            && is_lie(error)
        {
            self.errand.distrust(liar);
        }
        sealed?.open(slot)
    }

    /// A good record was given. Says whether it is newer than all before. Once enough servers agree on the key document, nobody is
    /// asked for it any more.
    fn note(&mut self, kind: &RecordKind, seq: u64, fresh: bool) -> bool {
        let newest = self.newest.entry(kind.clone()).or_default();
        match seq.cmp(&newest.seq) {
            Ordering::Less => return false,
            Ordering::Equal => {}
            Ordering::Greater => *newest = Newest::default(),
        }
        newest.seq = seq;
        newest.servers += 1;
        newest.fresh |= fresh;
        let is_new = newest.servers == 1;
        if *kind == RecordKind::Keys && newest.fresh && newest.servers >= AGREEING {
            let slots = self.slots.iter().filter(|(_, slot)| slot.kind() == kind);
            for key in slots.map(|(key, _)| *key).collect::<Vec<_>>() {
                self.errand.finish(&key);
            }
        }
        is_new
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
        let now = self.dht.0.directory.now();
        let waiting = std::mem::take(&mut self.waiting);
        waiting
            .into_iter()
            .filter_map(|record| self.judge(record, now))
            .collect()
    }

    /// The addresses in a record that is a node's of this server, and newer than what was found of it.
    fn judge(&mut self, record: AddressRecord, now: MilliSecondsSinceUnixEpoch) -> Option<PeerAddresses> {
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
        let kind = RecordKind::Address(record.key_id());
        if !self.note(&kind, record.seq, record.expires > now) {
            return None;
        }
        addresses(&record)
    }
}

/// Whether a record that fails in this way is kept by no honest server, whatever its clock and ours say.
fn is_lie(error: &RecordError) -> bool {
    !matches!(
        error,
        RecordError::OtherDay | RecordError::Expired | RecordError::TooFarAhead
    )
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
