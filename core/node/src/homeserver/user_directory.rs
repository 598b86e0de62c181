//! The user directory: finds people by name among those one shares a room with and those who live on this node. It asks
//! no other server.

use kith_store::DirectoryUser;

use super::{Context, Session};
use crate::Error;

/// Results at the most.
const RESULTS: usize = 50;
/// Matches looked at before the best are chosen.
const MATCHES: usize = 500;
/// The longest search term, in bytes.
const LONGEST_TERM: usize = 255;

/// The user directory service.
#[derive(Clone)]
pub struct UserDirectory {
    ctx: Context,
}

/// What a search found.
pub struct FoundUsers {
    /// Best first.
    pub users: Vec<DirectoryUser>,
    /// Whether there are more.
    pub limited: bool,
}

impl UserDirectory {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Users whose name or id holds the term, whatever the case; those that begin with it first.
    pub async fn search(&self, session: &Session, term: &str, limit: usize) -> Result<FoundUsers, Error> {
        if term.len() > LONGEST_TERM {
            return Err(Error::invalid_param(format!(
                "a search term has at most {LONGEST_TERM} bytes"
            )));
        }
        let (searcher, term) = (session.user_id.clone(), term.trim().to_lowercase());
        let limit = limit.min(RESULTS);
        let mut users = self
            .ctx
            .store
            .read({
                let term = term.clone();
                move |txn| Ok::<_, Error>(txn.known_users(&searcher, MATCHES, |user| rank(user, &term).is_some())?)
            })
            .await?;
        users.sort_by_cached_key(|user| (rank(user, &term), user.user_id.clone()));
        let limited = users.len() > limit;
        users.truncate(limit);
        Ok(FoundUsers { users, limited })
    }
}

/// How well a user matches: 0 for a name or id that begins with the term, 1 for one that holds it.
fn rank(user: &DirectoryUser, term: &str) -> Option<u8> {
    let name = user.display_name.as_deref().unwrap_or_default().to_lowercase();
    let id = user.user_id.as_str().to_lowercase();
    let localpart = id.strip_prefix('@').unwrap_or(&id);
    if name.starts_with(term) || localpart.starts_with(term) || id.starts_with(term) {
        Some(0)
    } else if name.contains(term) || user.user_id.localpart().to_lowercase().contains(term) {
        Some(1)
    } else {
        None
    }
}
