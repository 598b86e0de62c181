//! The services of one homeserver. Each is a cheap handle over the [`Context`]; none of them knows HTTP.

mod account_data;
#[cfg(test)]
mod account_data_tests;
pub mod accounts;
mod admission;
mod archive;
pub mod catch_up;
mod context;
pub mod ephemeral;
mod incoming;
pub mod key_backup;
pub mod keys;
pub mod media;
pub mod outbox;
mod passing;
mod presence;
#[cfg(test)]
mod presence_tests;
mod profiles;
pub mod push;
mod reports;
pub mod rooms;
mod server_keys;
pub mod sync;
mod tasks;
mod terms;
pub mod timeline;
mod to_device;
#[cfg(test)]
mod to_device_tests;
pub mod topics;
mod turns;
mod user_directory;
mod verify;

pub use account_data::AccountData;
pub use accounts::{Accounts, Session};
pub use admission::{Admission, Work};
pub use archive::Archive;
pub use catch_up::{CatchUp, News};
pub use context::Context;
pub use ephemeral::Ephemeral;
pub use incoming::{Answer, Incoming};
pub use key_backup::KeyBackups;
pub use keys::Keys;
pub use media::Media;
pub use outbox::Outbox;
pub use passing::Passing;
pub use presence::Presence;
pub use profiles::Profiles;
pub use push::Push;
pub use reports::Reports;
pub use rooms::{PublicRooms, PublicRoomsQuery, Rooms};
pub(crate) use server_keys::MAX_BATCH as MAX_KEY_BATCH;
pub use server_keys::{KeyRing, ServerKeys};
pub use sync::Sync;
pub use timeline::Timeline;
pub use to_device::ToDevice;
pub use topics::Topics;
pub use user_directory::{FoundUsers, UserDirectory};

use std::ops::Deref;
use std::sync::Arc;

use crate::Error;

/// The running homeserver: every service, made once. Cheap to clone.
#[derive(Clone)]
pub struct Homeserver {
    services: Arc<Services>,
}

/// One field per service, each over the same context. A service may hold those above it, never those below.
pub struct Services {
    /// What every service stands on.
    pub context: Context,
    /// How much work other servers may make.
    pub admission: Admission,
    /// The counter of typing and presence.
    pub passing: Passing,
    /// What waits for other servers.
    pub outbox: Outbox,
    /// What servers sign with.
    pub server_keys: ServerKeys,
    /// Users, devices and sessions.
    pub accounts: Accounts,
    /// Public keys of users and devices.
    pub keys: Keys,
    /// Messages from device to device.
    pub to_device: ToDevice,
    /// Backups of room keys.
    pub key_backups: KeyBackups,
    /// What clients keep for themselves.
    pub account_data: AccountData,
    /// Names and pictures.
    pub profiles: Profiles,
    /// Files.
    pub media: Media,
    /// Who is there.
    pub presence: Presence,
    /// Finding people.
    pub user_directory: UserDirectory,
    /// Push rules, notifications and pushers.
    pub push: Push,
    /// What users have reported.
    pub reports: Reports,
    /// What other servers may read.
    pub archive: Archive,
    /// What is read of rooms.
    pub timeline: Timeline,
    /// What members of larger rooms pass on to each other.
    pub topics: Topics,
    /// Rooms, as their members change them.
    pub rooms: Rooms,
    /// Events of other servers.
    pub incoming: Incoming,
    /// What makes sure that members come to hold the same events.
    pub catch_up: CatchUp,
    /// What clients are told.
    pub sync: Sync,
    /// Typing and receipts.
    pub ephemeral: Ephemeral,
}

impl Homeserver {
    /// Makes the services over a context.
    pub fn new(context: Context) -> Self {
        let passing = Passing::new(&context.world);
        let news = News::default();
        let outbox = Outbox::new(context.clone(), news.clone());
        let server_keys = ServerKeys::new(context.clone());
        let accounts = Accounts::new(context.clone());
        let keys = Keys::new(context.clone(), outbox.clone());
        accounts.on_device_changes(keys.device_changes());
        let to_device = ToDevice::new(context.clone(), outbox.clone());
        let key_backups = KeyBackups::new(context.clone());
        let account_data = AccountData::new(context.clone());
        let profiles = Profiles::new(context.clone());
        let media = Media::new(context.clone());
        let presence = Presence::new(context.clone(), passing.clone(), outbox.clone());
        let user_directory = UserDirectory::new(context.clone());
        let push = Push::new(context.clone());
        let reports = Reports::new(context.clone());
        let archive = Archive::new(context.clone());
        let timeline = Timeline::new(context.clone());
        let topics = Topics::new(context.clone(), outbox.clone(), news.clone());
        let rooms = Rooms::new(
            context.clone(),
            outbox.clone(),
            topics.clone(),
            server_keys.clone(),
            profiles.clone(),
            push.clone(),
            news.clone(),
        );
        let incoming = Incoming::new(
            context.clone(),
            outbox.clone(),
            server_keys.clone(),
            rooms.clone(),
            topics.clone(),
            news.clone(),
        );
        let catch_up = CatchUp::new(context.clone(), incoming.clone(), rooms.clone(), topics.clone(), news);
        timeline.set_history(Arc::new(incoming.clone()));
        let ephemeral = Ephemeral::new(
            context.clone(),
            outbox.clone(),
            server_keys.clone(),
            topics.clone(),
            passing.clone(),
        );
        let sync = Sync::new(
            context.clone(),
            account_data.clone(),
            passing.clone(),
            ephemeral.clone(),
            presence.clone(),
        );
        Self {
            services: Arc::new(Services {
                context,
                admission: Admission::new(),
                passing,
                outbox,
                server_keys,
                accounts,
                keys,
                to_device,
                key_backups,
                account_data,
                profiles,
                media,
                presence,
                user_directory,
                push,
                reports,
                archive,
                incoming,
                catch_up,
                timeline,
                topics,
                rooms,
                sync,
                ephemeral,
            }),
        }
    }

    /// Starts what works by itself: call it once the network is up.
    pub async fn start(&self) -> Result<(), Error> {
        self.keys.start();
        self.media.start().await?;
        self.presence.start();
        self.rooms.start();
        self.topics.start().await?;
        self.ephemeral.start();
        self.incoming.start(&self.admission, &self.ephemeral);
        self.catch_up.start();
        self.outbox.start().await
    }

    /// Ends what [`Homeserver::start`] started; the store may be closed afterwards.
    pub async fn shutdown(&self) {
        self.ephemeral.shutdown().await;
        self.keys.shutdown().await;
        self.presence.shutdown().await;
        self.rooms.shutdown().await;
        self.topics.shutdown().await;
        self.incoming.shutdown().await;
        self.catch_up.shutdown().await;
        self.outbox.shutdown().await;
    }
}

impl Deref for Homeserver {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}
