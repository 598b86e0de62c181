//! Where users' devices want to be woken through a push gateway. It pushes nothing.

use ruma::{DeviceId, OwnedUserId, UserId};
use rusqlite::params;

use crate::{ReadTxn, StoreError, WriteTxn, column};

impl ReadTxn<'_> {
    /// The JSON of a user's pushers.
    pub fn pushers(&self, user_id: &UserId) -> Result<Vec<String>, StoreError> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT pusher FROM pushers WHERE user_id = ?1 ORDER BY app_id, pushkey")?;
        let pushers = statement.query_map([user_id.as_str()], |row| row.get(0))?;
        Ok(pushers.collect::<Result<_, _>>()?)
    }
}

impl WriteTxn<'_> {
    /// Keeps a pusher for a device. It ends with the device.
    pub fn set_pusher(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        app_id: &str,
        pushkey: &str,
        pusher: &str,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO pushers (user_id, device_id, app_id, pushkey, pusher) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET device_id = excluded.device_id, pusher = excluded.pusher",
            )?
            .execute(params![user_id.as_str(), device_id.as_str(), app_id, pushkey, pusher])?;
        Ok(())
    }

    /// Removes a user's pusher, if it is there.
    pub fn delete_pusher(&self, user_id: &UserId, app_id: &str, pushkey: &str) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM pushers WHERE app_id = ?1 AND pushkey = ?2 AND user_id = ?3")?
            .execute([app_id, pushkey, user_id.as_str()])?;
        Ok(())
    }

    /// Removes a pusher from everyone but one user; returns whose it was.
    pub fn delete_others_pushers(
        &self,
        keep: &UserId,
        app_id: &str,
        pushkey: &str,
    ) -> Result<Vec<OwnedUserId>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "DELETE FROM pushers WHERE app_id = ?1 AND pushkey = ?2 AND user_id <> ?3 RETURNING user_id",
        )?;
        let owners = statement.query_map([app_id, pushkey, keep.as_str()], |row| column::id(row, 0))?;
        Ok(owners.collect::<Result<_, _>>()?)
    }
}
