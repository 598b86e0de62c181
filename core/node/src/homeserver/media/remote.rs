//! Media of other servers: fetched from where they were uploaded, checked against their name, kept while there is room.
//! The answer is held in memory whole, for requests between nodes are; so few run at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use kith_store::MediaFile;
use ruma::{
    OwnedServerName, ServerName,
    api::{
        error::ErrorKind,
        federation::authenticated_media::{Content, FileOrLocation, get_content},
    },
    exports::http::StatusCode,
};
use tokio::sync::{Mutex as Turn, Semaphore};

use super::{Found, LONGEST_LABEL, Labels, Media, promised_hash};
use crate::{Error, federation::client, network::Limits};

/// Fetches at once.
const FETCHES: usize = 4;
/// How much longer than the other server's own waiting an answer may take.
const TRANSFER: Duration = Duration::from_secs(120);
/// What a multipart answer may hold beside the file, in bytes.
const WRAPPING: usize = 16 * 1024;

type Key = (OwnedServerName, String);

/// The fetches under way: one for each name, however many ask for it.
pub(super) struct Fetching {
    turns: Mutex<HashMap<Key, Weak<Turn<()>>>>,
    places: Semaphore,
}

impl Default for Fetching {
    fn default() -> Self {
        Self {
            turns: Mutex::default(),
            places: Semaphore::new(FETCHES),
        }
    }
}

impl Fetching {
    fn turn(&self, key: Key) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }
}

impl Media {
    pub(super) async fn fetch(&self, server: &ServerName, media_id: &str, wait: Duration) -> Result<Found, Error> {
        let fetching = &self.inner.remote;
        let turn = fetching.turn((server.to_owned(), media_id.to_owned()));
        let _turn = turn.lock().await;
        // Somebody may have fetched it while we waited.
        if let Some(file) = self.look_up(server, media_id).await?.and_then(|media| media.file) {
            return Ok(self.found(file));
        }
        let place = fetching.places.acquire().await;
        let _place = place.map_err(|error| Error::Internal("fetching is closed", Some(Box::new(error))))?;
        let content = self.ask(server, media_id, wait).await?;
        let written = self.inner.files.write_whole(content.file.into()).await?;
        if promised_hash(media_id).is_some_and(|hash| hash != written.hash) {
            return Err(bad_gateway("the other server sent something else than the name says"));
        }
        let file = MediaFile {
            hash: written.hash,
            size: written.size,
            ..labels(
                content.content_type,
                content.content_disposition.and_then(|given| given.filename),
            )
            .on(&written)
        };
        let naming = self.inner.naming.lock().await;
        self.inner.files.name(written).await?;
        let (server, media_id, kept) = (server.to_owned(), media_id.to_owned(), file.clone());
        let now = self.ctx.world.now();
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.insert_media(&server, &media_id, &kept, None, now)?))
            .await?;
        self.make_room().await?;
        drop(naming);
        Ok(self.found(file))
    }

    async fn ask(&self, server: &ServerName, media_id: &str, wait: Duration) -> Result<Content, Error> {
        let mut request = get_content::v1::Request::new(media_id.to_owned());
        request.timeout_ms = wait;
        let limit = usize::try_from(self.ctx.config.max_upload_bytes).unwrap_or(usize::MAX);
        let limits = Limits {
            deadline: wait + TRANSFER,
            max_answer: limit.saturating_add(WRAPPING),
            bulk: true,
        };
        let answer = client::request_within(&self.ctx, server, request, limits)
            .await
            .map_err(Error::passed_on)?;
        match answer.content {
            FileOrLocation::File(content) => Ok(content),
            _ => Err(bad_gateway(
                "the other server keeps the file outside of the network of nodes",
            )),
        }
    }

    /// Forgets what was fetched longest ago until what is kept fits. The naming lock is held.
    async fn make_room(&self) -> Result<(), Error> {
        let most = self.ctx.config.max_fetched_media_bytes;
        let free = self
            .ctx
            .store
            .write(move |txn| {
                let mut free = Vec::new();
                while txn.fetched_media_bytes()? > most {
                    match txn.forget_oldest_fetched()? {
                        Some(files) => free.extend(files),
                        None => break,
                    }
                }
                Ok::<_, Error>(free)
            })
            .await?;
        self.inner.files.remove(&free).await;
        Ok(())
    }
}

/// What another server says of a file, as far as it is usable.
fn labels(content_type: Option<String>, filename: Option<String>) -> Labels {
    let usable = |label: &String| label.len() <= LONGEST_LABEL && !label.contains(|c: char| c.is_control());
    Labels {
        content_type: content_type.filter(usable),
        filename: filename.filter(usable),
    }
}

fn bad_gateway(message: &str) -> Error {
    Error::refused(StatusCode::BAD_GATEWAY, ErrorKind::Unknown, message)
}
