//! The services of one homeserver. Each is a cheap handle over the [`Context`]; none of them knows HTTP.

pub mod accounts;
mod context;

pub use accounts::{Accounts, Session};
pub use context::Context;

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
}

impl Homeserver {
    /// Makes the services over a context.
    pub fn new(context: Context) -> Self {
        let accounts = Accounts::new(context.clone());
        Self {
            services: Arc::new(Services { context, accounts }),
        }
    }
}

impl Deref for Homeserver {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}
