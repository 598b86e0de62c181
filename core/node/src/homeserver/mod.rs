//! The services of one homeserver. Each is a cheap handle over the [`Context`]; none of them knows HTTP.

pub mod accounts;
mod context;
pub mod key_backup;

pub use accounts::{Accounts, Session};
pub use context::Context;
pub use key_backup::KeyBackups;

use std::ops::Deref;
use std::sync::Arc;

/// The running homeserver: every service, made once. Cheap to clone.
#[derive(Clone)]
pub struct Homeserver {
    services: Arc<Services>,
}

/// One field per service, each over the same context. A service may hold those above it, never those below.
pub struct Services {
    /// What every service stands on.
    pub context: Context,
    /// Users, devices and sessions.
    pub accounts: Accounts,
    /// Backups of room keys.
    pub key_backups: KeyBackups,
}

impl Homeserver {
    /// Makes the services over a context.
    pub fn new(context: Context) -> Self {
        let accounts = Accounts::new(context.clone());
        let key_backups = KeyBackups::new(context.clone());
        Self {
            services: Arc::new(Services {
                context,
                accounts,
                key_backups,
            }),
        }
    }
}

impl Deref for Homeserver {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}
