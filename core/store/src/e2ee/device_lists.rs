//! Which device lists changed for whom, and where this node's own lists stand in the sequence of updates that other
//! servers get. It tells nobody.

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use rusqlite::{OptionalExtension, params};

use crate::{ReadTxn, Seq, StoreError, WriteTxn, column};

/// What one user's clients must be told about device lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceListChanges {
    /// Users whose devices changed, or with whom a room is shared only now.
    pub changed: Vec<OwnedUserId>,
    /// Users with whom no room is shared any more.
    pub left: Vec<OwnedUserId>,
}

/// The last announced update of a local user's device list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceListPosition {
    /// Its id.
    pub stream_id: i64,
    /// The id of the update before it; none for a user's first.
    pub prev_id: Option<i64>,
    /// The device that it was about.
    pub device_id: OwnedDeviceId,
}

impl ReadTxn<'_> {
    /// What a local user's clients must be told that happened after `since` up to `to`. A user who changed again after
    /// `to` is left for the next time.
    pub fn device_list_changes(&self, user: &UserId, since: Seq, to: Seq) -> Result<DeviceListChanges, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT subject, gone FROM device_list_changes WHERE observer = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq",
        )?;
        let rows = statement.query_map(params![user.as_str(), since.0, to.0], |row| {
            Ok((column::id::<OwnedUserId>(row, 0)?, row.get::<_, bool>(1)?))
        })?;
        let mut changes = DeviceListChanges::default();
        for row in rows {
            let (subject, gone) = row?;
            if gone {
                changes.left.push(subject);
            } else {
                changes.changed.push(subject);
            }
        }
        Ok(changes)
    }

    /// Where a local user's device list stands; none before its first update.
    pub fn device_list_position(&self, user: &UserId) -> Result<Option<DeviceListPosition>, StoreError> {
        let found = self
            .conn()
            .prepare_cached("SELECT stream_id, prev_id, device_id FROM device_list_positions WHERE user_id = ?1")?
            .query_row([user.as_str()], |row| {
                Ok(DeviceListPosition {
                    stream_id: row.get(0)?,
                    prev_id: row.get(1)?,
                    device_id: row.get::<_, String>(2)?.into(),
                })
            })
            .optional()?;
        Ok(found)
    }
}

impl WriteTxn<'_> {
    /// Moves a local user's device list on to its next update, which is about one device.
    pub fn advance_own_device_list(&self, user: &UserId, device: &DeviceId) -> Result<DeviceListPosition, StoreError> {
        let position = DeviceListPosition {
            stream_id: self.next_seq()?.0,
            prev_id: self.device_list_position(user)?.map(|last| last.stream_id),
            device_id: device.to_owned(),
        };
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO device_list_positions (user_id, stream_id, prev_id, device_id)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                user.as_str(),
                position.stream_id,
                position.prev_id,
                device.as_str()
            ])?;
        Ok(position)
    }

    /// Notes that a user's devices changed as one local user sees them.
    pub fn note_device_list_change_for(&self, observer: &UserId, subject: &UserId) -> Result<(), StoreError> {
        let seq = self.next_seq()?;
        self.conn()
            .prepare_cached(
                "INSERT OR REPLACE INTO device_list_changes (observer, subject, seq, gone) VALUES (?1, ?2, ?3, 0)",
            )?
            .execute(params![observer.as_str(), subject.as_str(), seq.0])?;
        Ok(())
    }
}
