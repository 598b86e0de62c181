//! The loop that takes in what happens, and does what the engine says is due. It awaits nothing long: each exchange and
//! each pull is a task of its own, a few at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kith_engine::{Compared, Looked, Pulled, RoomReader, Task, limits::TOLD_AT_ONCE, whom_to_ask};
use rand::RngCore;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Duration, sleep},
};

use super::{Shared, heads::Unreached};
use crate::{Error, homeserver::tasks::Tasks, network::PeerEvent};

/// Runs until the service ends.
pub(super) async fn run(shared: Arc<Shared>, tasks: Tasks, mut events: Receiver<PeerEvent>) {
    let mut connected = BTreeSet::new();
    shared.handle_peers(&mut connected);
    loop {
        shared.take_news();
        while let Some(task) = shared.next_task() {
            match task {
                Task::Look(room) => shared.look(room).await,
                Task::Exchange {
                    server,
                    rooms,
                    except,
                    unreached,
                } => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move { shared.run_exchange(server, rooms, except, unreached).await });
                }
                Task::JoinHeads(room) => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move { shared.join_heads(room).await });
                }
                Task::Pull {
                    room,
                    wanted,
                    tellers,
                    tried,
                    lacking,
                } => {
                    let shared = Arc::clone(&shared);
                    tasks.spawn(async move {
                        let from = shared.whom(&room, &tellers, &tried, &lacking).await;
                        shared.run_pull(room, wanted, tellers, from).await;
                    });
                }
            }
        }
        let due = shared.decisions().next_due();
        tokio::select! {
            event = events.recv() => match event {
                Ok(PeerEvent::Up(server)) => {
                    connected.insert(server.clone());
                    shared.decisions().handle_up(&server, shared.now());
                }
                Ok(PeerEvent::LetGo(server)) => {
                    connected.remove(&server);
                    shared.decisions().handle_let_go(&server);
                }
                Ok(PeerEvent::Down(server)) => {
                    connected.remove(&server);
                    shared.decisions().handle_down(&server, shared.now());
                }
                Err(RecvError::Lagged(_)) => shared.handle_peers(&mut connected),
                Err(RecvError::Closed) => return,
            },
            () = shared.news.arrived() => {}
            () = shared.changed.notified() => {}
            () = wait(due.map(|due| due.saturating_sub(shared.now()))) => {}
        }
    }
}

async fn wait(time: Option<Duration>) {
    match time {
        Some(time) => sleep(time).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// Looks who is connected, at the start and when events were missed.
    fn handle_peers(&self, connected: &mut BTreeSet<OwnedServerName>) {
        let now = self.now();
        let peers = self.ctx.network.peers().into_iter();
        let current: BTreeSet<OwnedServerName> = peers.map(|peer| peer.server_name).collect();
        let mut decisions = self.decisions();
        for server in connected.difference(&current) {
            decisions.handle_down(server, now);
        }
        // Who is connected still may have been gone meanwhile.
        for server in &current {
            decisions.handle_up(server, now);
        }
        *connected = current;
    }

    fn take_news(&self) {
        let news = self.news.take();
        let now = self.now();
        let mut decisions = self.decisions();
        for (room, moved) in news.moved {
            let own = self.ctx.is_self(&moved.author);
            decisions.handle_moved(&room, moved.event, own, &moved.gone, now);
        }
        for removal in news.removals {
            let own = self.ctx.is_self(&removal.author);
            decisions.handle_removed(&removal.room, removal.event, own, removal.servers, now);
        }
        for (event, server, author) in news.holders {
            decisions.handle_holder(&event, &server, author);
        }
        for (server, room) in news.to_compare {
            decisions.compare(&server, &room);
        }
        for event in news.by_topic {
            decisions.handle_by_topic(&event);
        }
        for unconnected in news.unconnected {
            let compared = Compared {
                room: unconnected.room,
                told: Vec::new(),
                lacking: vec![unconnected.event],
                depth: unconnected.depth,
            };
            decisions.handle_compared(&unconnected.from, &compared, now);
        }
    }

    fn next_task(&self) -> Option<Task> {
        let now = self.now();
        self.decisions().poll_task(now)
    }

    async fn look(&self, room: OwnedRoomId) {
        let watched = self.decisions().watched(&room);
        let (wanted, own) = (room.clone(), self.ctx.server_name.clone());
        let read = self.ctx.store.read(move |txn| {
            let mut unheld = Vec::new();
            for id in watched {
                if !txn.has_event(&id)? {
                    unheld.push(id);
                }
            }
            let members = txn.joined_servers(&wanted)?;
            let mut servers = members.clone();
            let departure = txn.departure(&wanted, &own)?;
            if departure.is_some_and(|departure| departure.own_act && !departure.known) {
                // Those who stay must hear of it from here.
                servers.push(own);
            }
            let looked = Looked {
                heads: txn.forward_extremities(&wanted)?,
                servers,
                unheld,
            };
            Ok::<_, Error>((looked, members))
        });
        match read.await {
            Ok((looked, members)) => {
                self.topics.handle_members(&room, &members).await;
                let (now, random) = (self.now(), self.ctx.world.rng().next_u64());
                self.decisions().handle_looked(&room, &looked, now, random);
            }
            Err(error) => tracing::warn!(%room, %error, "a room's heads could not be read"),
        }
    }

    async fn run_exchange(
        &self,
        server: OwnedServerName,
        rooms: Option<BTreeSet<OwnedRoomId>>,
        except: BTreeSet<OwnedRoomId>,
        unreached: Unreached,
    ) {
        let outcome = self.exchange(&server, rooms.clone(), &except, &unreached).await;
        let (now, random) = (self.now(), self.ctx.world.rng().next_u64());
        self.decisions()
            .handle_exchanged(&server, rooms.as_ref(), outcome, now, random);
        self.changed.notify_one();
    }

    async fn run_pull(
        &self,
        room: OwnedRoomId,
        wanted: Vec<OwnedEventId>,
        tellers: BTreeMap<OwnedServerName, u64>,
        from: Option<(OwnedServerName, bool)>,
    ) {
        let outcome = match &from {
            Some((server, last_resort)) => {
                let depth = tellers.get(server).or_else(|| tellers.values().max());
                let depth = depth.copied().unwrap_or(0);
                self.incoming.pull(&room, server, &wanted, depth, *last_resort).await
            }
            None => Ok(Pulled::Nobody),
        };
        let server = from.map(|(server, _)| server);
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::debug!(%room, ?server, %error, "what a room lacks could not be pulled");
            match error {
                Error::Network(error) if error.is_final() => Pulled::Lacking,
                _ => Pulled::Unanswered,
            }
        });
        let held = self.held_of(wanted).await;
        let (now, random) = (self.now(), self.ctx.world.rng().next_u64());
        let mut decisions = self.decisions();
        decisions.handle_pulled(&room, server.as_deref(), outcome, &held, now, random);
        if outcome == Pulled::Done {
            // They see that nothing of it need be sent any more, and perhaps that they lack something themselves.
            for teller in tellers.keys().take(TOLD_AT_ONCE) {
                decisions.compare(teller, &room);
            }
        }
        drop(decisions);
        self.changed.notify_one();
    }

    async fn whom(
        &self,
        room: &OwnedRoomId,
        tellers: &BTreeMap<OwnedServerName, u64>,
        tried: &BTreeSet<OwnedServerName>,
        lacking: &BTreeSet<OwnedServerName>,
    ) -> Option<(OwnedServerName, bool)> {
        let wanted = room.clone();
        let members = self.ctx.store.read(move |txn| txn.joined_servers(&wanted)).await;
        let members: BTreeSet<OwnedServerName> = members.unwrap_or_default().into_iter().collect();
        let peers = self.ctx.network.peers().into_iter().map(|peer| peer.server_name);
        let mut in_reach: BTreeSet<OwnedServerName> = peers.filter(|server| members.contains(server)).collect();
        // Who was let go is asked all the same: that it is silent is no sign that it lacks something.
        let decisions = self.decisions();
        in_reach.extend(members.into_iter().filter(|server| decisions.is_let_go(server)));
        drop(decisions);
        whom_to_ask(tellers, &in_reach, tried, lacking)
    }

    async fn join_heads(&self, room: OwnedRoomId) {
        if let Err(error) = self.rooms.join_heads(&room).await {
            tracing::debug!(%room, %error, "many forward extremities could not be joined");
        }
    }

    async fn held_of(&self, wanted: Vec<OwnedEventId>) -> Vec<OwnedEventId> {
        match self.incoming.not_in_graph(wanted.clone()).await {
            Ok(lacking) => wanted.into_iter().filter(|id| !lacking.contains(id)).collect(),
            Err(_) => Vec::new(),
        }
    }
}
