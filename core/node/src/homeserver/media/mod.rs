//! Media: files beside the database, named by the BLAKE3 hash of their bytes, and who may call them what. It decodes
//! nothing but what a thumbnail is made of.
//!
//! The media id of an upload is the base32 of its hash, so any copy of it can be checked against its name. The same
//! bytes uploaded twice are the same media: type and file name stay as the first upload gave them.

mod files;
mod remote;
#[cfg(test)]
mod tests;
mod thumbnails;
mod variant;

pub use variant::{Fit, Variant};

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::Stream;
use kith_store::{Media as StoredMedia, MediaFile, MediaHash};
use ruma::{
    MilliSecondsSinceUnixEpoch, MxcUri, OwnedMxcUri, ServerName, UInt, UserId,
    api::error::{ErrorKind, LimitExceededErrorData},
    exports::http::StatusCode,
};
use tokio::sync::{Mutex, Notify, Semaphore};

use super::{Context, Session};
use crate::{Error, data_folder::DataFolder};

/// Names that a user may hold without having uploaded to them.
const UNUSED_NAMES: u64 = 50;
/// How long a name waits for its upload.
const UNUSED_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest a download waits for an upload or another server.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest media id of another server, in bytes.
const LONGEST_ID: usize = 255;
/// The longest content type or file name kept, in bytes.
const LONGEST_LABEL: usize = 255;
/// Uploads written at once; others wait.
const UPLOADS: usize = 16;

/// The media service.
#[derive(Clone)]
pub struct Media {
    ctx: Context,
    inner: Arc<Inner>,
}

struct Inner {
    files: files::Files,
    /// Held while a file is named and its row written, or while unneeded files are removed.
    naming: Mutex<()>,
    uploads: Semaphore,
    /// Wakes downloads that wait for an upload.
    uploaded: Notify,
    remote: remote::Fetching,
    thumbnails: thumbnails::Thumbnailer,
}

/// What an uploader says about a file.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// Its MIME type.
    pub content_type: Option<String>,
    /// Its name.
    pub filename: Option<String>,
}

/// A file to hand out.
#[derive(Debug, Clone)]
pub struct Found {
    /// Where its bytes are.
    pub path: PathBuf,
    /// What it is.
    pub file: MediaFile,
}

impl Media {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        let inner = Inner {
            files: files::Files::new(DataFolder::media(&ctx.config.data), ctx.world.clone()),
            naming: Mutex::default(),
            uploads: Semaphore::new(UPLOADS),
            uploaded: Notify::new(),
            remote: remote::Fetching::default(),
            thumbnails: thumbnails::Thumbnailer::default(),
        };
        Self {
            ctx,
            inner: Arc::new(inner),
        }
    }

    /// Clears away what uploads left behind that a crash cut short.
    pub async fn start(&self) -> Result<(), Error> {
        self.inner.files.clear_unfinished().await
    }

    /// Keeps what a user uploads; returns its name once file and row are on disk. `M_TOO_LARGE` over the limit.
    pub async fn upload<E>(
        &self,
        user_id: &UserId,
        labels: Labels,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<OwnedMxcUri, Error> {
        let labels = labels.checked()?;
        let written = self.receive(body).await?;
        let media_id = media_id(&written.hash);
        let file = labels.on(&written);
        let _naming = self.inner.naming.lock().await;
        self.inner.files.name(written).await?;
        let (server, id, user_id) = (self.ctx.server_name.clone(), media_id.clone(), user_id.to_owned());
        let now = self.ctx.world.now();
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.insert_media(&server, &id, &file, Some(&user_id), now)?))
            .await?;
        Ok(self.uri(&media_id))
    }

    /// A name to upload to later, and until when. Such a name says nothing about the bytes.
    pub async fn create(&self, user_id: &UserId) -> Result<(OwnedMxcUri, MilliSecondsSinceUnixEpoch), Error> {
        let (now, media_id) = (self.ctx.world.now(), self.ctx.world.random_token());
        let lifetime = u64::try_from(UNUSED_LIFETIME.as_millis()).unwrap_or(u64::MAX);
        let expires = MilliSecondsSinceUnixEpoch(now.0.saturating_add(UInt::new_saturating(lifetime)));
        let (server, id, user_id) = (self.ctx.server_name.clone(), media_id.clone(), user_id.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                if txn.unused_media(&user_id, now)? >= UNUSED_NAMES {
                    return Err(Error::refused(
                        StatusCode::TOO_MANY_REQUESTS,
                        ErrorKind::LimitExceeded(LimitExceededErrorData::new()),
                        "upload to the names that you have first",
                    ));
                }
                Ok(txn.reserve_media(&server, &id, &user_id, now, expires)?)
            })
            .await?;
        Ok((self.uri(&media_id), expires))
    }

    /// Uploads to a name that [`Self::create`] gave the user.
    ///
    /// Refuses with `M_NOT_FOUND`, `M_FORBIDDEN`, `M_CANNOT_OVERWRITE_MEDIA` or `M_TOO_LARGE`.
    pub async fn upload_to<E>(
        &self,
        session: &Session,
        server: &ServerName,
        media_id: &str,
        labels: Labels,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), Error> {
        let labels = labels.checked()?;
        if !self.ctx.is_self(server) {
            return Err(Error::forbidden("that name is another server's"));
        }
        let media = self.look_up(server, media_id).await?.ok_or_else(not_found)?;
        if media.user_id.as_ref() != Some(&session.user_id) {
            return Err(Error::forbidden("that name was given to someone else"));
        }
        if media.file.is_some() {
            return Err(taken());
        }
        if media.expires.is_some_and(|expires| expires <= self.ctx.world.now()) {
            return Err(not_found());
        }
        let written = self.receive(body).await?;
        let file = labels.on(&written);
        let naming = self.inner.naming.lock().await;
        self.inner.files.name(written).await?;
        let (server, id) = (server.to_owned(), media_id.to_owned());
        let filled = self
            .ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.fill_media(&server, &id, &file)?))
            .await?;
        drop(naming);
        self.inner.uploaded.notify_waiters();
        if filled { Ok(()) } else { Err(taken()) }
    }

    /// Finds media of any server: here, or there and kept here from then on. Waits at most `wait` for what was announced
    /// and is not uploaded yet.
    pub async fn find(&self, server: &ServerName, media_id: &str, wait: Duration, fetch: bool) -> Result<Found, Error> {
        if media_id.is_empty() || media_id.len() > LONGEST_ID {
            return Err(not_found());
        }
        if self.ctx.is_self(server) {
            return self.find_own(media_id, wait).await;
        }
        if let Some(file) = self.look_up(server, media_id).await?.and_then(|media| media.file) {
            return Ok(self.found(file));
        }
        if !fetch {
            return Err(not_found());
        }
        self.fetch(server, media_id, wait.min(LONGEST_WAIT)).await
    }

    /// Finds media of this server, waiting for its upload if need be.
    pub async fn find_own(&self, media_id: &str, wait: Duration) -> Result<Found, Error> {
        let server = self.ctx.server_name.clone();
        let deadline = tokio::time::Instant::now() + wait.min(LONGEST_WAIT);
        loop {
            let uploaded = self.inner.uploaded.notified();
            tokio::pin!(uploaded);
            // From here on an upload wakes us, even one that ends before we wait.
            uploaded.as_mut().enable();
            let media = self.look_up(&server, media_id).await?.ok_or_else(not_found)?;
            if let Some(file) = media.file {
                return Ok(self.found(file));
            }
            if media.expires.is_some_and(|expires| expires <= self.ctx.world.now()) {
                return Err(not_found());
            }
            if tokio::time::timeout_at(deadline, uploaded).await.is_err() {
                return Err(Error::refused(
                    StatusCode::GATEWAY_TIMEOUT,
                    ErrorKind::NotYetUploaded,
                    "nothing was uploaded under that name yet",
                ));
            }
        }
    }

    /// A thumbnail of what was found, made now or kept from earlier.
    pub async fn thumbnail(&self, of: &Found, variant: Variant) -> Result<Found, Error> {
        let (hash, name) = (of.file.hash, variant.name());
        let kept = self
            .ctx
            .store
            .read({
                let name = name.clone();
                move |txn| Ok::<_, Error>(txn.thumbnail(&hash, &name)?)
            })
            .await?;
        if let Some(file) = kept {
            return Ok(self.found(file));
        }
        let made = self
            .inner
            .thumbnails
            .make(&self.ctx.world, of.path.clone(), variant)
            .await?;
        let written = self.inner.files.write_whole(made.bytes).await?;
        let file = MediaFile {
            hash: written.hash,
            size: written.size,
            content_type: Some(made.content_type.to_owned()),
            filename: None,
        };
        let _naming = self.inner.naming.lock().await;
        self.inner.files.name(written).await?;
        let kept = file.clone();
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.insert_thumbnail(&hash, &name, &kept)?))
            .await?;
        Ok(self.found(file))
    }

    async fn receive<E>(&self, body: impl Stream<Item = Result<Bytes, E>>) -> Result<files::Written, Error> {
        let _place = self
            .inner
            .uploads
            .acquire()
            .await
            .map_err(|error| Error::Internal("uploads are closed", Some(Box::new(error))))?;
        self.inner.files.write(body, self.ctx.config.max_upload_bytes).await
    }

    async fn look_up(&self, server: &ServerName, media_id: &str) -> Result<Option<StoredMedia>, Error> {
        let (server, media_id) = (server.to_owned(), media_id.to_owned());
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.media(&server, &media_id)?))
            .await
    }

    fn found(&self, file: MediaFile) -> Found {
        Found {
            path: self.inner.files.path(&file.hash),
            file,
        }
    }

    fn uri(&self, media_id: &str) -> OwnedMxcUri {
        <&MxcUri>::from(format!("mxc://{}/{media_id}", self.ctx.server_name).as_str()).to_owned()
    }
}

impl Labels {
    fn checked(self) -> Result<Self, Error> {
        let usable = |label: &String| label.len() <= LONGEST_LABEL && !label.contains(|c: char| c.is_control());
        if !self.content_type.iter().chain(&self.filename).all(usable) {
            return Err(Error::invalid_param(format!(
                "content type and file name have at most {LONGEST_LABEL} bytes and no control characters"
            )));
        }
        Ok(self)
    }

    fn on(self, written: &files::Written) -> MediaFile {
        MediaFile {
            hash: written.hash,
            size: written.size,
            content_type: self.content_type,
            filename: self.filename,
        }
    }
}

/// The media id of a hash: base32, lower case, no padding (52 characters).
fn media_id(hash: &MediaHash) -> String {
    data_encoding::BASE32_NOPAD.encode(hash).to_ascii_lowercase()
}

/// The hash that a media id promises; none for ids that are just names.
fn promised_hash(media_id: &str) -> Option<MediaHash> {
    if media_id.len() != 52 || media_id.contains(|c: char| c.is_ascii_uppercase()) {
        return None;
    }
    let bytes = data_encoding::BASE32_NOPAD
        .decode(media_id.to_ascii_uppercase().as_bytes())
        .ok()?;
    bytes.try_into().ok()
}

fn not_found() -> Error {
    Error::not_found("there is no such media")
}

fn taken() -> Error {
    Error::refused(
        StatusCode::CONFLICT,
        ErrorKind::CannotOverwriteMedia,
        "something was uploaded under that name already",
    )
}

fn too_large(limit: u64) -> Error {
    Error::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::TooLarge,
        format!("the file is over {limit} bytes"),
    )
}
