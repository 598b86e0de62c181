//! Finds users by name among those that a user can know of. It ranks nobody.

use ruma::{OwnedMxcUri, OwnedUserId, UserId};
use rusqlite::params;

use crate::{ReadTxn, StoreError, column};

/// A user as the directory shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryUser {
    /// The user.
    pub user_id: OwnedUserId,
    /// The name they go by.
    pub display_name: Option<String>,
    /// Their picture.
    pub avatar_url: Option<OwnedMxcUri>,
}

impl ReadTxn<'_> {
    /// Users who share a room with the searcher, or have an account here, and whom the closure wants; at most `limit`.
    pub fn known_users(
        &self,
        searcher: &UserId,
        limit: usize,
        mut wanted: impl FnMut(&DirectoryUser) -> bool,
    ) -> Result<Vec<DirectoryUser>, StoreError> {
        // A user in several rooms may go by several names: each is looked at, and the first that is wanted counts.
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id, (SELECT value FROM profiles WHERE user_id = accounts.user_id AND field = 'displayname') ->> '$',
                    (SELECT value FROM profiles WHERE user_id = accounts.user_id AND field = 'avatar_url') ->> '$'
             FROM accounts WHERE NOT deactivated AND user_id <> ?1
             UNION
             SELECT user_id, json ->> '$.content.displayname', json ->> '$.content.avatar_url'
             FROM members AS own JOIN members AS others USING (room) JOIN users ON users.user = others.user
             JOIN events ON events.event = others.event
             WHERE own.user = (SELECT user FROM users WHERE user_id = ?1) AND own.membership = 0
               AND others.membership = 0 AND others.user <> own.user",
        )?;
        let mut rows = statement.query(params![searcher.as_str()])?;
        let mut found: Vec<DirectoryUser> = Vec::new();
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let user = DirectoryUser {
                user_id: column::id(row, 0)?,
                // Members write what they like into their events; what is no text is no name.
                display_name: row.get(1).unwrap_or(None),
                avatar_url: row.get::<_, Option<String>>(2).unwrap_or(None).map(OwnedMxcUri::from),
            };
            if wanted(&user) && !found.iter().any(|other| other.user_id == user.user_id) {
                found.push(user);
            }
        }
        Ok(found)
    }
}
