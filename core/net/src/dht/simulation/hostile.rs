//! Servers that work against the others. All of them send everybody to their friends, and seem to take every record. None
//! forges a PeerId or breaks cryptography.

use std::{
    borrow::Cow,
    collections::HashMap,
    iter,
    task::{Context, Poll, ready},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify, kad,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{RecordStore, Result as Stored},
    },
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
    },
};

use crate::dht::settings;

/// What a hostile server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hostility {
    /// Answers every question for a record with garbage.
    Garbage,
    /// Takes every connection and answers nothing.
    Silent,
    /// Gives the first good record that it was ever given of each key, whatever came later.
    Stale,
}

impl Hostility {
    pub(super) const ALL: [Self; 3] = [Self::Garbage, Self::Silent, Self::Stale];
}

#[derive(NetworkBehaviour)]
pub(super) struct Hostile {
    identify: identify::Behaviour,
    liar: Liar,
}

impl Hostile {
    pub(super) fn new(
        identify: identify::Behaviour,
        local: PeerId,
        hostility: Hostility,
        friends: impl IntoIterator<Item = (PeerId, Multiaddr)>,
    ) -> Self {
        let lies = match hostility {
            Hostility::Garbage | Hostility::Silent => Lies::Garbage,
            Hostility::Stale => Lies::First(HashMap::new()),
        };
        let mut kad = kad::Behaviour::with_config(local, lies, settings());
        kad.set_mode(Some(kad::Mode::Server));
        for (friend, address) in friends {
            kad.add_address(&friend, address);
        }
        let silent = hostility == Hostility::Silent;
        Self {
            identify,
            liar: Liar { kad, silent },
        }
    }
}

/// What a hostile server gives for a record.
pub(super) enum Lies {
    Garbage,
    First(HashMap<RecordKey, Record>),
}

impl RecordStore for Lies {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        match self {
            Self::Garbage => Some(Cow::Owned(Record::new(key.clone(), vec![0x42; 1000]))),
            Self::First(records) => records.get(key).map(Cow::Borrowed),
        }
    }

    fn put(&mut self, record: Record) -> Stored<()> {
        if let Self::First(records) = self {
            records.entry(record.key.clone()).or_insert(record);
        }
        Ok(())
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Stored<()> {
        Ok(())
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// Kademlia, whose words are held back if it is silent.
pub(super) struct Liar {
    kad: kad::Behaviour<Lies>,
    silent: bool,
}

impl NetworkBehaviour for Liar {
    type ConnectionHandler = <kad::Behaviour<Lies> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.kad.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            // Answers go to the connection's handler in this way.
            match ready!(self.kad.poll(cx)) {
                ToSwarm::NotifyHandler { .. } if self.silent => {}
                event => return Poll::Ready(event),
            }
        }
    }
}
