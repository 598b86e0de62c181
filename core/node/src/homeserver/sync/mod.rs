//! `/sync`: everything that happened since a client last asked. It waits for news and never looks for them on a timer.

mod answer;
mod ephemeral;
mod invited;
mod joined;
mod lazy_members;
mod left;
mod rooms;
mod state;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use kith_engine::SyncFilter;
use kith_store::StoreError;
use ruma::api::client::sync::sync_events::v3;
use tokio::time::Instant;

use self::{
    answer::{Answer, Live, Query},
    lazy_members::LazyMembers,
};
use super::{
    AccountData, Context, Ephemeral, Passing, Presence, Session, accounts::unknown_token, timeline::SyncToken,
};
use crate::Error;

/// The longest that a request is held open, whatever the client asks.
const MAX_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The sync service.
#[derive(Clone)]
pub struct Sync {
    ctx: Context,
    account_data: AccountData,
    live: Live,
    lazy_members: Arc<LazyMembers>,
}

impl Sync {
    /// Makes the service.
    pub fn new(
        ctx: Context,
        account_data: AccountData,
        passing: Passing,
        ephemeral: Ephemeral,
        presence: Presence,
    ) -> Self {
        Self {
            ctx,
            account_data,
            live: Live {
                passing,
                ephemeral,
                presence,
            },
            lazy_members: Arc::default(),
        }
    }

    /// What happened since a client's token, as soon as there is anything, or after the timeout.
    pub async fn sync(&self, session: &Session, request: v3::Request) -> Result<v3::Response, Error> {
        let since = request.since.as_deref().map(parse_token).transpose()?;
        let filter = self.filter(session, request.filter).await?;
        let told = self.lazy_members.confirmed(session, since.as_ref());
        let query = Arc::new(Query {
            session: session.clone(),
            since,
            filter,
            full_state: request.full_state,
            use_state_after: request.use_state_after,
            told,
        });
        let timeout = request.timeout.unwrap_or_default().min(MAX_TIMEOUT);
        self.live
            .presence
            .handle_sync(session, request.set_presence, timeout)
            .await?;
        let waits = since.is_some() && !request.full_state && !timeout.is_zero();
        let answering = self.answer(&query, waits.then(|| Instant::now() + timeout));
        let (answer, acknowledged) = tokio::join!(answering, self.acknowledge(session, since));
        acknowledged?;
        let answer = answer?;
        self.lazy_members
            .told(session, since.as_ref(), answer.next, answer.told);
        Ok(answer.response)
    }

    /// Answers at once, or when there is something to tell, at the latest at the deadline.
    async fn answer(&self, query: &Arc<Query>, deadline: Option<Instant>) -> Result<Answer, Error> {
        let mut committed = self.ctx.store.committed();
        let mut passing = self.live.passing.watch();
        let mut keys_left = None;
        loop {
            // Seen before reading, so that whatever comes while reading wakes the wait below.
            committed.borrow_and_update();
            passing.borrow_and_update();
            let answer = self.look(query).await?;
            let Some(deadline) = deadline else {
                return Ok(answer);
            };
            // A key that was taken must be replaced soon, so that is news too.
            let taken = keys_left.get_or_insert_with(|| answer.keys_left()) != &answer.keys_left();
            if answer.has_news || taken {
                return Ok(answer);
            }
            tokio::select! {
                // The store is closing: what is known is all there will be.
                changed = committed.changed() => if changed.is_err() { return Ok(answer) },
                changed = passing.changed() => if changed.is_err() { return Ok(answer) },
                () = tokio::time::sleep_until(deadline) => return Ok(answer),
            }
        }
    }

    /// Reads what there is to tell now, in one snapshot. 401 `M_UNKNOWN_TOKEN` for a device that was logged out while it
    /// waited.
    async fn look(&self, query: &Arc<Query>) -> Result<Answer, Error> {
        let (query, live) = (Arc::clone(query), self.live.clone());
        let now = self.ctx.world.now();
        self.ctx
            .store
            .read(move |txn| {
                let session = &query.session;
                if txn.device(&session.user_id, &session.device_id)?.is_none() {
                    return Err(unknown_token(false));
                }
                Answer::read(txn, &live, &query, now)
            })
            .await
    }

    /// Forgets the messages that a device has got: those before the token that it goes on from.
    async fn acknowledge(&self, session: &Session, since: Option<SyncToken>) -> Result<(), Error> {
        let Some(since) = since else {
            return Ok(());
        };
        let device = session.clone();
        let got = self
            .ctx
            .store
            .read(move |txn| {
                let got = txn.to_device_messages(
                    &device.user_id,
                    &device.device_id,
                    kith_store::Seq(0),
                    since.to_device,
                    1,
                )?;
                Ok::<_, Error>(!got.is_empty())
            })
            .await?;
        if !got {
            return Ok(());
        }
        let device = session.clone();
        let deleting = self
            .ctx
            .store
            .write(move |txn| txn.delete_to_device(&device.user_id, &device.device_id, since.to_device));
        match deleting.await {
            // On a full disk reading goes on. The token says what is told, and a later sync deletes.
            Ok(_) | Err(StoreError::Full) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn filter(&self, session: &Session, filter: Option<v3::Filter>) -> Result<SyncFilter, Error> {
        match filter {
            None => Ok(SyncFilter::default()),
            Some(v3::Filter::FilterDefinition(definition)) => Ok(SyncFilter::from(&definition)),
            Some(v3::Filter::FilterId(id)) => {
                // "The server will detect whether it is an ID or a JSON object by whether the first character is a `{`."
                if id.starts_with('{') {
                    return Err(Error::bad_json("the filter is not a filter in JSON"));
                }
                let stored = self.account_data.filter(session, &session.user_id, &id).await;
                match stored {
                    Ok(definition) => Ok(SyncFilter::from(&definition)),
                    Err(Error::Refused { .. }) => Err(Error::invalid_param("there is no such filter")),
                    Err(error) => Err(error),
                }
            }
            Some(_) => Err(Error::invalid_param("a filter is its id or JSON")),
        }
    }
}

fn parse_token(token: &str) -> Result<SyncToken, Error> {
    token
        .parse()
        .map_err(|_| Error::invalid_param("the `since` token is not one of this server's"))
}
