//! Presence: who is there. All of it is in memory: after a restart everybody is away until they show themselves. It
//! sends only when something changes, and only to servers that are connected.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UInt, UserId,
    api::federation::transactions::edu::{Edu, PresenceContent, PresenceUpdate},
    events::{presence::PresenceEventContent, room::member::MembershipState},
    presence::PresenceState,
};
use serde_json::value::{RawValue, to_raw_value};
use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinHandle,
    time::Instant,
};

use super::{Context, Outbox, Passing, Session};
use crate::{Error, network::PeerEvent};

/// How long a user counts as there after the last sign of life.
const GRACE: Duration = Duration::from_secs(60);
/// The longest status message, in bytes.
const LONGEST_STATUS: usize = 1024;
/// Other servers' users remembered; whoever changed longest ago makes room.
const REMOTE_USERS: usize = 4096;
/// Updates looked at in one EDU.
const UPDATES: usize = 100;

/// The presence service.
#[derive(Clone)]
pub struct Presence {
    shared: Arc<Shared>,
    /// Ends the task when the last handle goes.
    task: Arc<Task>,
}

#[derive(Default)]
struct Task(Mutex<Option<JoinHandle<()>>>);

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.0).take() {
            task.abort();
        }
    }
}

struct Shared {
    ctx: Context,
    passing: Passing,
    outbox: Outbox,
    users: Mutex<Users>,
    /// Wakes the task: a device may now be the next to fall silent.
    touched: Notify,
}

#[derive(Default)]
struct Users {
    shown: HashMap<OwnedUserId, Shown>,
    /// The devices that keep users of this node there.
    devices: HashMap<OwnedUserId, HashMap<OwnedDeviceId, Device>>,
}

struct Device {
    presence: PresenceState,
    until: Instant,
}

/// A user as others see them.
#[derive(Debug, Clone, PartialEq)]
struct Shown {
    presence: PresenceState,
    status: Option<String>,
    last_active: Option<MilliSecondsSinceUnixEpoch>,
    /// When it last changed, by the counter of passing news.
    changed: u64,
}

impl Shown {
    fn away() -> Self {
        Self {
            presence: PresenceState::Offline,
            status: None,
            last_active: None,
            changed: 0,
        }
    }

    fn content(&self, now: MilliSecondsSinceUnixEpoch) -> PresenceEventContent {
        let mut content = PresenceEventContent::new(self.presence.clone());
        content.status_msg = self.status.clone();
        content.last_active_ago = self.last_active.map(|then| ago(then, now));
        content.currently_active = Some(self.presence == PresenceState::Online);
        content
    }
}

impl Presence {
    /// Makes the service.
    pub fn new(ctx: Context, passing: Passing, outbox: Outbox) -> Self {
        let shared = Shared {
            ctx,
            passing,
            outbox,
            users: Mutex::default(),
            touched: Notify::new(),
        };
        Self {
            shared: Arc::new(shared),
            task: Arc::default(),
        }
    }

    /// Begins to notice devices that fall silent, and servers that come and go.
    pub fn start(&self) {
        let events = self.shared.ctx.network.events();
        let task = tokio::spawn(watch(Arc::downgrade(&self.shared), events));
        if let Some(old) = lock(&self.task.0).replace(task) {
            old.abort();
        }
    }

    /// Ends the task.
    pub async fn shutdown(&self) {
        let task = lock(&self.task.0).take();
        if let Some(task) = task {
            task.abort();
            // It ends with being cancelled, which is what was asked for.
            let _ = task.await;
        }
    }

    /// Sets one's own presence, as a client says it.
    pub async fn set(
        &self,
        session: &Session,
        user_id: &UserId,
        presence: PresenceState,
        status: Option<String>,
    ) -> Result<(), Error> {
        session.must_be(user_id)?;
        if !known(&presence) {
            return Err(Error::invalid_param("presence is online, unavailable or offline"));
        }
        let status = status.filter(|status| !status.is_empty());
        if status.as_ref().is_some_and(|status| status.len() > LONGEST_STATUS) {
            return Err(Error::invalid_param(format!(
                "a status has at most {LONGEST_STATUS} bytes"
            )));
        }
        self.shared.touch(session, presence, GRACE, Some(status)).await
    }

    /// Notes that a device asks for news for at most `lasts`, and how that is to look to others.
    pub async fn handle_sync(&self, session: &Session, presence: PresenceState, lasts: Duration) -> Result<(), Error> {
        let presence = if known(&presence) {
            presence
        } else {
            PresenceState::Online
        };
        self.shared
            .touch(session, presence, lasts.saturating_add(GRACE), None)
            .await
    }

    /// The presence of a user with whom one shares a room; `M_FORBIDDEN` for others.
    pub async fn status(&self, session: &Session, user_id: &UserId) -> Result<PresenceEventContent, Error> {
        if session.must_be(user_id).is_err() {
            let (own, other) = (session.user_id.clone(), user_id.to_owned());
            let store = &self.shared.ctx.store;
            let shared = store
                .read(move |txn| Ok::<_, Error>(!txn.shared_rooms(&own, &other)?.is_empty()))
                .await?;
            if !shared {
                return Err(Error::forbidden("you share no room with that user"));
            }
        }
        let shown = self.shared.users().shown.get(user_id).cloned();
        Ok(shown.unwrap_or_else(Shown::away).content(self.shared.ctx.world.now()))
    }

    /// Who changed after one number of the counter of passing news, up to another. From 0: everyone who is known, as far
    /// as they are not away.
    ///
    /// Whether a reader may know of them is for the caller to see to: only users who share a room may.
    pub fn changed_between(&self, after: u64, upto: u64) -> Vec<(OwnedUserId, PresenceEventContent)> {
        let now = self.shared.ctx.world.now();
        let users = self.shared.users();
        let changed = users.shown.iter().filter(|(_, shown)| {
            let news = shown.changed > after && shown.changed <= upto;
            news && (after > 0 || shown.presence != PresenceState::Offline)
        });
        changed
            .map(|(user_id, shown)| (user_id.clone(), shown.content(now)))
            .collect()
    }

    /// Takes in what another server says of its users. What it says of others', or of users in no room known here, is
    /// passed over.
    pub async fn handle_presence(&self, peer: &ServerName, content: PresenceContent) -> Result<(), Error> {
        let mut updates = content.push;
        updates.truncate(UPDATES);
        updates.retain(|update| update.user_id.server_name() == peer && known(&update.presence));
        let store = &self.shared.ctx.store;
        let updates = store
            .read(move |txn| {
                let mut near = Vec::with_capacity(updates.len());
                for update in updates {
                    if !txn.rooms_of(&update.user_id, &[MembershipState::Join])?.is_empty() {
                        near.push(update);
                    }
                }
                Ok::<_, Error>(near)
            })
            .await?;
        for update in updates {
            self.shared.take_in(update);
        }
        Ok(())
    }
}

impl Shared {
    fn users(&self) -> MutexGuard<'_, Users> {
        lock(&self.users)
    }

    /// Notes a sign of life of a device, and tells others if that changes how its user looks.
    async fn touch(
        &self,
        session: &Session,
        presence: PresenceState,
        lasts: Duration,
        status: Option<Option<String>>,
    ) -> Result<(), Error> {
        {
            let mut users = self.users();
            let devices = users.devices.entry(session.user_id.clone()).or_default();
            let until = Instant::now() + lasts;
            devices.insert(session.device_id.clone(), Device { presence, until });
        }
        self.touched.notify_one();
        self.update(&session.user_id, status, true).await
    }

    /// Works out how a user of this node looks now, and tells others if that has changed.
    async fn update(&self, user_id: &UserId, status: Option<Option<String>>, active: bool) -> Result<(), Error> {
        let now = self.ctx.world.now();
        let changed = {
            let mut users = self.users();
            let presence = users.most_present(user_id, Instant::now());
            let before = users.shown.get(user_id).cloned().unwrap_or_else(Shown::away);
            let mut shown = before.clone();
            shown.presence = presence;
            shown.status = status.unwrap_or(shown.status);
            if active {
                shown.last_active = Some(now);
            }
            let changed = (&before.presence, &before.status) != (&shown.presence, &shown.status);
            users.shown.insert(user_id.to_owned(), shown);
            changed
        };
        if !changed {
            return Ok(());
        }
        self.mark_changed(user_id);
        let user = user_id.to_owned();
        let servers = self
            .ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.servers_sharing_a_room(&user)?))
            .await?;
        self.tell(user_id, servers)
    }

    fn mark_changed(&self, user_id: &UserId) {
        self.passing.advance(|number| {
            if let Some(shown) = self.users().shown.get_mut(user_id) {
                shown.changed = number;
            }
        });
    }

    fn tell(&self, user_id: &UserId, servers: Vec<OwnedServerName>) -> Result<(), Error> {
        let Some(edu) = self.edu(user_id)? else {
            return Ok(());
        };
        let others = servers.into_iter().filter(|server| !self.ctx.is_self(server));
        self.outbox.tell(others, &format!("presence {user_id}"), &edu);
        Ok(())
    }

    fn edu(&self, user_id: &UserId) -> Result<Option<Box<RawValue>>, Error> {
        let Some(shown) = self.users().shown.get(user_id).cloned() else {
            return Ok(None);
        };
        let now = self.ctx.world.now();
        let last_active = shown.last_active.map_or(UInt::MIN, |then| ago(then, now));
        let mut update = PresenceUpdate::new(user_id.to_owned(), shown.presence.clone(), last_active);
        update.status_msg = shown.status;
        update.currently_active = shown.presence == PresenceState::Online;
        let edu = to_raw_value(&Edu::Presence(PresenceContent::new(vec![update])))
            .map_err(|error| Error::Internal("presence did not serialise", Some(Box::new(error))))?;
        Ok(Some(edu))
    }

    fn take_in(&self, update: PresenceUpdate) {
        let now = self.ctx.world.now();
        let status = update.status_msg.filter(|status| status.len() <= LONGEST_STATUS);
        let shown = Shown {
            presence: update.presence,
            status,
            last_active: Some(MilliSecondsSinceUnixEpoch(now.0.saturating_sub(update.last_active_ago))),
            changed: 0,
        };
        {
            let mut users = self.users();
            if let Some(before) = users.shown.get(&update.user_id)
                && (&before.presence, &before.status) == (&shown.presence, &shown.status)
            {
                let changed = before.changed;
                users.shown.insert(update.user_id, Shown { changed, ..shown });
                return;
            }
            users.make_room(&self.ctx);
            users.shown.insert(update.user_id.clone(), shown);
        }
        self.mark_changed(&update.user_id);
    }

    /// Users whose last device has fallen silent are away from now on.
    async fn drop_silent(&self) -> Result<(), Error> {
        let now = Instant::now();
        let silent: Vec<OwnedUserId> = {
            let mut users = self.users();
            let mut silent = Vec::new();
            users.devices.retain(|user_id, devices| {
                let before = devices.len();
                devices.retain(|_, device| device.until > now);
                if devices.len() < before {
                    silent.push(user_id.clone());
                }
                !devices.is_empty()
            });
            silent
        };
        for user_id in silent {
            self.update(&user_id, None, false).await?;
        }
        Ok(())
    }

    /// Tells a server that has come how this node's users are.
    async fn greet(&self, server: OwnedServerName) -> Result<(), Error> {
        let there: Vec<OwnedUserId> = {
            let users = self.users();
            let there = users
                .shown
                .iter()
                .filter(|(user_id, shown)| self.ctx.is_local(user_id) && shown.presence != PresenceState::Offline);
            there.map(|(user_id, _)| user_id.clone()).collect()
        };
        for user_id in there {
            let user = user_id.clone();
            let store = &self.ctx.store;
            let near = store
                .read(move |txn| Ok::<_, Error>(txn.servers_sharing_a_room(&user)?))
                .await?;
            if near.contains(&server) {
                self.tell(&user_id, vec![server.clone()])?;
            }
        }
        Ok(())
    }

    /// Users of a server that is not connected any more are away.
    fn part(&self, server: &ServerName) {
        let gone: Vec<OwnedUserId> = {
            let mut users = self.users();
            let there = users
                .shown
                .iter_mut()
                .filter(|(user_id, shown)| user_id.server_name() == server && shown.presence != PresenceState::Offline);
            there
                .map(|(user_id, shown)| {
                    shown.presence = PresenceState::Offline;
                    user_id.clone()
                })
                .collect()
        };
        for user_id in gone {
            self.mark_changed(&user_id);
        }
    }
}

impl Users {
    /// How the most present of a user's devices lets the user look.
    fn most_present(&self, user_id: &UserId, now: Instant) -> PresenceState {
        let devices = self.devices.get(user_id).into_iter().flat_map(HashMap::values);
        let mut present = devices
            .filter(|device| device.until > now)
            .map(|device| &device.presence);
        let mut most = PresenceState::Offline;
        if present.clone().any(|presence| *presence == PresenceState::Online) {
            most = PresenceState::Online;
        } else if present.any(|presence| *presence == PresenceState::Unavailable) {
            most = PresenceState::Unavailable;
        }
        most
    }

    fn next_silence(&self) -> Option<Instant> {
        let devices = self.devices.values().flat_map(HashMap::values);
        devices.map(|device| device.until).min()
    }

    fn make_room(&mut self, ctx: &Context) {
        if self.shown.len() < REMOTE_USERS {
            return;
        }
        let remote = self.shown.iter().filter(|(user_id, _)| !ctx.is_local(user_id));
        let oldest = remote
            .min_by_key(|(_, shown)| shown.changed)
            .map(|(user_id, _)| user_id.clone());
        if let Some(oldest) = oldest {
            self.shown.remove(&oldest);
        }
    }
}

/// The task: waits for the next device to fall silent, or for a server to come or go.
async fn watch(shared: Weak<Shared>, mut events: tokio::sync::broadcast::Receiver<PeerEvent>) {
    loop {
        let Some(now) = shared.upgrade() else {
            return;
        };
        let next = now.users().next_silence();
        let silence = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            () = silence => now.drop_silent().await,
            () = now.touched.notified() => Ok(()),
            event = events.recv() => match event {
                Ok(PeerEvent::Up(server)) => now.greet(server).await,
                // Nobody tells how the users of a server are that is not connected.
                Ok(PeerEvent::LetGo(server) | PeerEvent::Down(server)) => {
                    now.part(&server);
                    Ok(())
                }
                Err(RecvError::Lagged(_)) => Ok(()),
                Err(RecvError::Closed) => return,
            },
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "presence could not be told");
        }
    }
}

fn known(presence: &PresenceState) -> bool {
    matches!(
        presence,
        PresenceState::Online | PresenceState::Unavailable | PresenceState::Offline
    )
}

/// Milliseconds from a time until now.
fn ago(then: MilliSecondsSinceUnixEpoch, now: MilliSecondsSinceUnixEpoch) -> UInt {
    now.0.saturating_sub(then.0)
}

/// A poisoned lock only says that another thread panicked; what these locks guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
