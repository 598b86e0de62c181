//! What a DHT server keeps for others: sealed records, checked one by one before they come here, in memory and bounded.
//! It reads none of them, keeps no providers, and lets nothing older come back in place of something newer.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    iter,
    net::IpAddr,
    sync::Arc,
};

use kith_identity::{DhtKey, RecordError, RecordRank, SealedRecord};
use libp2p::{
    PeerId,
    kad::{
        KBucketDistance, KBucketKey, ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result as Stored},
    },
};
use ruma::MilliSecondsSinceUnixEpoch;

use super::Clock;

/// How much of others' records a server keeps.
#[derive(Debug, Clone)]
pub struct ShelfLimits {
    /// Records.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Records of one host (an IPv4 address, or an IPv6 network), those that only their number is remembered of included.
    pub per_host: usize,
    /// Records that ended, of which only the number is remembered, so that none older comes back.
    pub tombstones: usize,
}

impl Default for ShelfLimits {
    fn default() -> Self {
        Self {
            records: 4096,
            bytes: 8 << 20,
            per_host: 1024,
            tombstones: 16_384,
        }
    }
}

/// Why a record was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("its key has no 32 bytes")]
    Key,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("it is not newer than what is held, or was")]
    NotNewer,
    #[error("there is no room, and what is here is nearer")]
    Full,
    #[error("too many come from there")]
    TooMany,
}

/// One slot's newest record, or what is remembered of it.
struct Slot {
    rank: RecordRank,
    /// The record's bytes, while it is kept.
    value: Option<Arc<[u8]>>,
    kept_until: MilliSecondsSinceUnixEpoch,
    remembered_until: MilliSecondsSinceUnixEpoch,
    host: Option<IpAddr>,
    distance: KBucketDistance,
}

/// The records that a server keeps.
pub(crate) struct Shelf {
    local: KBucketKey<PeerId>,
    limits: ShelfLimits,
    clock: Clock,
    slots: HashMap<DhtKey, Slot>,
    /// Of those that are kept.
    records: usize,
    bytes: usize,
    per_host: HashMap<Option<IpAddr>, usize>,
    /// What hosts brought since then.
    brought: HashMap<Option<IpAddr>, u32>,
    /// When those that ended were last looked for.
    swept: MilliSecondsSinceUnixEpoch,
}

/// Ended records are looked for this often at the most. None is given out after its end, looked for or not.
const SWEEP_MS: u64 = 60 * 1000;

/// Records of one host that are checked in a minute: each costs two signatures. Many nodes may share an address.
const MAX_A_MINUTE: u32 = 600;

/// Hosts whose records are checked in a minute.
const MAX_HOSTS: usize = 65_536;

impl Shelf {
    pub(super) fn new(local: PeerId, limits: ShelfLimits, clock: Clock) -> Self {
        Self {
            local: KBucketKey::from(local),
            limits,
            swept: clock(),
            clock,
            slots: HashMap::new(),
            records: 0,
            bytes: 0,
            per_host: HashMap::new(),
            brought: HashMap::new(),
        }
    }

    /// Takes a record that `host` brought, if it is good, newer than what is held of its slot, and there is room for it
    /// or something further away to give up.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8], host: Option<IpAddr>) -> Result<(), Refusal> {
        let now = (self.clock)();
        let key = DhtKey::from_bytes(key.try_into().map_err(|_| Refusal::Key)?);
        let record = SealedRecord::decode(value)?;
        // Two signatures are dearer than a look.
        if self.slots.get(&key).is_some_and(|held| record.rank() <= held.rank) {
            return Err(Refusal::NotNewer);
        }
        self.sweep(now);
        let hosts = self.brought.len();
        match self.brought.entry(host) {
            Entry::Occupied(mut brought) if *brought.get() < MAX_A_MINUTE => *brought.get_mut() += 1,
            Entry::Vacant(first) if hosts < MAX_HOSTS => drop(first.insert(1)),
            _ => return Err(Refusal::TooMany),
        }
        record.check(&key, now)?;
        let slot = Slot {
            rank: record.rank(),
            value: Some(value.into()),
            kept_until: record.kept_until(now),
            remembered_until: record.refused_from(),
            host,
            distance: self.distance(&key),
        };
        self.make_room(&key, &slot)?;
        self.insert(key, slot);
        Ok(())
    }

    /// Records that are kept, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.records, self.bytes)
    }

    fn distance(&self, key: &DhtKey) -> KBucketDistance {
        self.local.distance(&KBucketKey::new(RecordKey::new(key.as_bytes())))
    }

    fn insert(&mut self, key: DhtKey, slot: Slot) {
        self.forget(&key);
        if let Some(value) = &slot.value {
            self.records += 1;
            self.bytes += value.len();
        }
        *self.per_host.entry(slot.host).or_default() += 1;
        self.slots.insert(key, slot);
    }

    /// Gives up a record, its number too.
    fn forget(&mut self, key: &DhtKey) {
        let Some(slot) = self.slots.remove(key) else { return };
        if let Some(value) = slot.value {
            self.records -= 1;
            self.bytes -= value.len();
        }
        if let Some(count) = self.per_host.get_mut(&slot.host) {
            *count -= 1;
            if *count == 0 {
                self.per_host.remove(&slot.host);
            }
        }
    }

    /// Gives up a record, and remembers its number.
    fn bury(&mut self, key: &DhtKey) {
        if let Some(value) = self.slots.get_mut(key).and_then(|slot| slot.value.take()) {
            self.records -= 1;
            self.bytes -= value.len();
        }
    }

    /// Makes room for a record by giving up what is furthest away. A host that has its share gives up its own.
    fn make_room(&mut self, key: &DhtKey, new: &Slot) -> Result<(), Refusal> {
        let held = self.slots.get(key);
        if held.is_none_or(|held| held.host != new.host) {
            let own = self.per_host.get(&new.host).copied().unwrap_or_default();
            if own >= self.limits.per_host {
                self.evict(key, new, |slot| slot.host == new.host)?;
            }
        }
        // What the new one replaces gives its room.
        let size = |slot: &Slot| slot.value.as_ref().map_or(0, |value| value.len());
        let (mut records, mut bytes) = (1, size(new));
        if let Some(held) = self.slots.get(key) {
            records -= usize::from(held.value.is_some());
            bytes -= size(held).min(bytes);
        }
        while self.records + records > self.limits.records || self.bytes + bytes > self.limits.bytes {
            self.evict(key, new, |slot| slot.value.is_some())?;
        }
        if self.slots.len() - self.records > self.limits.tombstones {
            self.evict(key, new, |slot| slot.value.is_none())?;
        }
        Ok(())
    }

    /// Gives up the furthest of some others, if it is further than what comes.
    fn evict(&mut self, key: &DhtKey, new: &Slot, among: impl Fn(&Slot) -> bool) -> Result<(), Refusal> {
        let some = self.slots.iter().filter(|(other, slot)| *other != key && among(slot));
        let furthest = some.max_by_key(|(_, slot)| slot.distance);
        match furthest.map(|(key, slot)| (*key, slot.distance)) {
            Some((furthest, distance)) if distance > new.distance => {
                self.forget(&furthest);
                Ok(())
            }
            _ => Err(Refusal::Full),
        }
    }

    fn sweep(&mut self, now: MilliSecondsSinceUnixEpoch) {
        if u64::from(now.0).abs_diff(self.swept.0.into()) < SWEEP_MS {
            return;
        }
        self.swept = now;
        self.brought.clear();
        let ended = |until: fn(&Slot) -> MilliSecondsSinceUnixEpoch, slots: &HashMap<DhtKey, Slot>| {
            let ended = slots.iter().filter(|(_, slot)| until(slot) <= now);
            ended.map(|(key, _)| *key).collect::<Vec<_>>()
        };
        for key in ended(|slot| slot.kept_until, &self.slots) {
            self.bury(&key);
        }
        for key in ended(|slot| slot.remembered_until, &self.slots) {
            self.forget(&key);
        }
    }

    fn record(key: &DhtKey, value: &[u8]) -> Record {
        Record::new(RecordKey::new(key.as_bytes()), value.to_vec())
    }
}

impl RecordStore for Shelf {
    type RecordsIter<'a> = Box<dyn Iterator<Item = Cow<'a, Record>> + 'a>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let key = DhtKey::from_bytes(key.as_ref().try_into().ok()?);
        let slot = self.slots.get(&key)?;
        let value = slot.value.as_ref().filter(|_| (self.clock)() < slot.kept_until)?;
        Some(Cow::Owned(Self::record(&key, value)))
    }

    fn put(&mut self, record: Record) -> Stored<()> {
        let taken = self.take(record.key.as_ref(), &record.value, None);
        taken.map_err(|refusal| match refusal {
            Refusal::Full => Error::MaxRecords,
            Refusal::Key | Refusal::Record(_) | Refusal::NotNewer | Refusal::TooMany => Error::ValueTooLarge,
        })
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Ok(key) = key.as_ref().try_into() {
            self.bury(&DhtKey::from_bytes(key));
        }
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        let now = (self.clock)();
        let kept = self.slots.iter().filter(move |(_, slot)| now < slot.kept_until);
        Box::new(kept.filter_map(|(key, slot)| Some(Cow::Owned(Self::record(key, slot.value.as_ref()?)))))
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Stored<()> {
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dht::tests::{Bob, Time};

    const HOUR: u64 = 60 * 60 * 1000;

    struct Fixture {
        time: Time,
        shelf: Shelf,
    }

    fn fixture(limits: ShelfLimits) -> Fixture {
        let time = Time::noon();
        let clock = time.server_config(Vec::new()).clock;
        Fixture {
            shelf: Shelf::new(PeerId::random(), limits, clock),
            time,
        }
    }

    fn host(number: u8) -> Option<IpAddr> {
        Some([192, 0, 2, number].into())
    }

    impl Fixture {
        fn take(&mut self, record: &SealedRecord, from: Option<IpAddr>) -> Result<(), Refusal> {
            self.shelf
                .take(record.dht_key().as_bytes(), &record.encode().unwrap(), from)
        }

        fn holds(&self, record: &SealedRecord) -> bool {
            self.shelf.get(&RecordKey::new(record.dht_key().as_bytes())).is_some()
        }

        /// Somebody's addresses, and how far they are from here.
        fn record(&self) -> (KBucketDistance, SealedRecord) {
            let record = Bob::new().where_at(self.time.now(), 1);
            (self.shelf.distance(&record.dht_key()), record)
        }
    }

    #[test]
    fn what_is_furthest_goes_when_there_is_no_room() {
        let size = Bob::new().where_at(Time::noon().now(), 1).encode().unwrap().len();
        let (few, little) = (
            ShelfLimits {
                records: 8,
                ..ShelfLimits::default()
            },
            ShelfLimits {
                bytes: 8 * size + size / 2,
                ..ShelfLimits::default()
            },
        );
        for limits in [few, little] {
            let mut f = fixture(limits);
            let records: BTreeMap<_, _> = (0..24).map(|_| f.record()).collect();
            for (index, record) in records.values().rev().chain(records.values()).enumerate() {
                let _ = f.take(record, host(index as u8));
            }
            assert_eq!(f.shelf.size(), (8, 8 * size));
            let held: Vec<_> = records.values().map(|record| f.holds(record)).collect();
            assert_eq!(held, [[true; 8].as_slice(), &[false; 16]].concat());
        }
    }

    #[test]
    fn a_host_that_brings_much_shuts_out_itself_alone() {
        let mut f = fixture(ShelfLimits {
            per_host: 3,
            ..ShelfLimits::default()
        });
        let (_, others) = f.record();
        f.take(&others, host(1)).unwrap();
        let records: BTreeMap<_, _> = (0..9).map(|_| f.record()).collect();
        for record in records.values().rev() {
            f.take(record, host(2)).unwrap();
        }
        let held: Vec<_> = records.values().map(|record| f.holds(record)).collect();
        assert_eq!(held, [[true; 3].as_slice(), &[false; 6]].concat());
        assert!(f.holds(&others));
        let furthest = records.values().last().unwrap();
        assert!(matches!(f.take(furthest, host(2)), Err(Refusal::Full)));
        f.take(furthest, host(3)).unwrap();
    }

    #[test]
    fn what_ended_is_remembered_until_its_day_is_over_and_no_longer() {
        let mut f = fixture(ShelfLimits::default());
        let mut bob = Bob::new();
        let older = bob.where_at(f.time.now(), 1);
        f.time.pass(1);
        let record = bob.where_at(f.time.now(), 2);
        f.take(&record, host(1)).unwrap();
        assert!(matches!(f.take(&record, host(1)), Err(Refusal::NotNewer)));
        f.time.pass(2 * HOUR);
        assert!(!f.holds(&record), "it ended, looked for or not");
        // Whatever comes makes the shelf look.
        let (_, other) = f.record();
        f.take(&other, host(2)).unwrap();
        assert_eq!((f.shelf.size().0, f.shelf.slots.len()), (1, 2));
        for replay in [&record, &older] {
            assert!(matches!(f.take(replay, host(3)), Err(Refusal::NotNewer)));
        }
        f.time.pass(36 * HOUR);
        let (_, other) = f.record();
        f.take(&other, host(2)).unwrap();
        assert_eq!((f.shelf.size().0, f.shelf.slots.len()), (1, 1));
        assert_eq!(f.shelf.per_host.len(), 1);
        assert!(matches!(
            f.take(&record, host(3)),
            Err(Refusal::Record(RecordError::OtherDay | RecordError::Expired))
        ));
    }

    #[test]
    fn tombstones_are_bounded_too() {
        let mut f = fixture(ShelfLimits {
            tombstones: 4,
            ..ShelfLimits::default()
        });
        for _ in 0..20 {
            let (_, record) = f.record();
            let _ = f.take(&record, host(1));
            f.time.pass(2 * HOUR);
        }
        assert!(f.shelf.slots.len() <= 4 + 2, "{}", f.shelf.slots.len());
    }

    #[test]
    fn a_host_that_brings_rubbish_is_soon_not_listened_to() {
        let mut f = fixture(ShelfLimits::default());
        let (_, good) = f.record();
        let mut forged = good.encode().unwrap();
        forged[600] ^= 1;
        let key = good.dht_key();
        for _ in 0..MAX_A_MINUTE {
            let refusal = f.shelf.take(key.as_bytes(), &forged, host(1));
            assert!(matches!(refusal, Err(Refusal::Record(RecordError::Signature))));
        }
        assert!(matches!(f.take(&good, host(1)), Err(Refusal::TooMany)));
        f.take(&good, host(2)).unwrap();
        f.time.pass(SWEEP_MS);
        let (_, later) = f.record();
        f.take(&later, host(1)).unwrap();
    }
}
