//! What is known of media: whose they are, what they are called, and the hash that names their file. It touches no file.

use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId, ServerName, UserId};
use rusqlite::{OptionalExtension, Row, params};

use crate::{ReadTxn, StoreError, WriteTxn, column};

/// The BLAKE3 hash of a file's bytes.
pub type MediaHash = [u8; 32];

/// A file and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaFile {
    /// The hash of its bytes.
    pub hash: MediaHash,
    /// How many bytes.
    pub size: u64,
    /// What its uploader says it is.
    pub content_type: Option<String>,
    /// What its uploader calls it.
    pub filename: Option<String>,
}

/// One media name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// The file; none: nothing was uploaded yet.
    pub file: Option<MediaFile>,
    /// Who uploaded it, or may; none: it is another server's.
    pub user_id: Option<OwnedUserId>,
    /// When the name is void if nothing is uploaded.
    pub expires: Option<MilliSecondsSinceUnixEpoch>,
}

fn file(row: &Row<'_>) -> rusqlite::Result<Option<MediaFile>> {
    let Some(hash) = row.get(0)? else {
        return Ok(None);
    };
    Ok(Some(MediaFile {
        hash,
        size: row.get(1)?,
        content_type: row.get(2)?,
        filename: row.get(3)?,
    }))
}

impl ReadTxn<'_> {
    /// What is known of a media name.
    pub fn media(&self, server: &ServerName, media_id: &str) -> Result<Option<Media>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT hash, size, content_type, filename, user_id, expires_ts FROM media
             WHERE server = ?1 AND media_id = ?2",
        )?;
        let media = statement.query_row([server.as_str(), media_id], |row| {
            Ok(Media {
                file: file(row)?,
                user_id: match row.get_ref(4)? {
                    rusqlite::types::ValueRef::Null => None,
                    _ => Some(column::id(row, 4)?),
                },
                expires: column::optional_time(row, 5)?,
            })
        });
        Ok(media.optional()?)
    }

    /// A thumbnail of a file, made in one of the ways that thumbnails are made.
    pub fn thumbnail(&self, of: &MediaHash, variant: &str) -> Result<Option<MediaFile>, StoreError> {
        let mut statement = self.conn().prepare_cached(
            "SELECT thumbnail, size, content_type, NULL FROM thumbnails WHERE hash = ?1 AND variant = ?2",
        )?;
        Ok(statement.query_row(params![of, variant], file).optional()?.flatten())
    }

    /// How many names a user was given to which nothing was uploaded and which are not void.
    pub fn unused_media(&self, user_id: &UserId, now: MilliSecondsSinceUnixEpoch) -> Result<u64, StoreError> {
        let count = self.lookup(
            "SELECT count(*) FROM media WHERE user_id = ?1 AND hash IS NULL AND expires_ts > ?2",
            params![user_id.as_str(), column::millis(now)],
        )?;
        Ok(count.unwrap_or(0))
    }

    /// Whether any name or thumbnail needs the file of a hash.
    pub fn media_file_needed(&self, hash: &MediaHash) -> Result<bool, StoreError> {
        let needed = self.lookup(
            "SELECT EXISTS (SELECT 1 FROM media WHERE hash = ?1) OR EXISTS (SELECT 1 FROM thumbnails WHERE thumbnail = ?1)",
            [hash],
        )?;
        Ok(needed.unwrap_or(false))
    }

    /// How many bytes of other servers' media are kept.
    pub fn fetched_media_bytes(&self) -> Result<u64, StoreError> {
        let sql = "SELECT coalesce(sum(size), 0) FROM media INDEXED BY media_fetched WHERE user_id IS NULL";
        Ok(self.lookup(sql, [])?.unwrap_or(0))
    }
}

impl WriteTxn<'_> {
    /// Keeps a file under a name. A name that has one already keeps what it has.
    pub fn insert_media(
        &self,
        server: &ServerName,
        media_id: &str,
        file: &MediaFile,
        user_id: Option<&UserId>,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO media (server, media_id, hash, size, content_type, filename, user_id, created_ts)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                server.as_str(),
                media_id,
                file.hash,
                file.size,
                file.content_type,
                file.filename,
                user_id.map(UserId::as_str),
                column::millis(now),
            ])?;
        Ok(())
    }

    /// Gives a user a name to upload to, and forgets names that are void.
    pub fn reserve_media(
        &self,
        server: &ServerName,
        media_id: &str,
        user_id: &UserId,
        now: MilliSecondsSinceUnixEpoch,
        expires: MilliSecondsSinceUnixEpoch,
    ) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached("DELETE FROM media WHERE user_id = ?1 AND hash IS NULL AND expires_ts <= ?2")?
            .execute(params![user_id.as_str(), column::millis(now)])?;
        self.conn()
            .prepare_cached(
                "INSERT INTO media (server, media_id, user_id, created_ts, expires_ts) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                server.as_str(),
                media_id,
                user_id.as_str(),
                column::millis(now),
                column::millis(expires),
            ])?;
        Ok(())
    }

    /// Puts a file under a name that was given out; false if there is one already, or no such name.
    pub fn fill_media(&self, server: &ServerName, media_id: &str, file: &MediaFile) -> Result<bool, StoreError> {
        let filled = self
            .conn()
            .prepare_cached(
                "UPDATE media SET hash = ?3, size = ?4, content_type = ?5, filename = ?6, expires_ts = NULL
                 WHERE server = ?1 AND media_id = ?2 AND hash IS NULL",
            )?
            .execute(params![
                server.as_str(),
                media_id,
                file.hash,
                file.size,
                file.content_type,
                file.filename,
            ])?;
        Ok(filled == 1)
    }

    /// Keeps a thumbnail of a file.
    pub fn insert_thumbnail(&self, of: &MediaHash, variant: &str, thumbnail: &MediaFile) -> Result<(), StoreError> {
        self.conn()
            .prepare_cached(
                "INSERT INTO thumbnails (hash, variant, thumbnail, size, content_type) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                of,
                variant,
                thumbnail.hash,
                thumbnail.size,
                thumbnail.content_type
            ])?;
        Ok(())
    }

    /// Forgets the other server's media that were fetched longest ago, and their thumbnails; returns the hashes of
    /// files that nothing needs any more. None when there is nothing to forget.
    pub fn forget_oldest_fetched(&self) -> Result<Option<Vec<MediaHash>>, StoreError> {
        let mut oldest = self.conn().prepare_cached(
            "DELETE FROM media WHERE (server, media_id) IN
             (SELECT server, media_id FROM media WHERE user_id IS NULL ORDER BY created_ts LIMIT 1) RETURNING hash",
        )?;
        let Some(hash) = oldest.query_row([], |row| row.get::<_, MediaHash>(0)).optional()? else {
            return Ok(None);
        };
        let mut files = vec![hash];
        if self
            .lookup::<i64>("SELECT 1 FROM media WHERE hash = ? LIMIT 1", [hash])?
            .is_none()
        {
            let mut thumbnails = self
                .conn()
                .prepare_cached("DELETE FROM thumbnails WHERE hash = ? RETURNING thumbnail")?;
            for thumbnail in thumbnails.query_map([hash], |row| row.get(0))? {
                files.push(thumbnail?);
            }
        }
        let mut free = Vec::with_capacity(files.len());
        for file in files {
            if !self.media_file_needed(&file)? {
                free.push(file);
            }
        }
        Ok(Some(free))
    }
}
