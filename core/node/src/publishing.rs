//! Has whoever knows this node's name find it: its key document and its addresses go to the DHT when the node comes online,
//! when they change, and before they end there. What a record looks like is kith-identity's business, who stores it
//! kith-net's.

use std::{sync::Arc, time::Duration};

use kith_identity::{AddressRecord, Day, KeyDocument, Record, RecordError, RecordLifetime, SealedRecord, Whereabouts};
use kith_net::{Net, PublishError};
use ruma::MilliSecondsSinceUnixEpoch;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{Node, keystore::KeystoreError};

/// Records are published again when this is left of their time, so that there is time to try twice.
const BEFORE_END: Duration = Duration::from_secs(20 * 60);

/// At the start, for relays to give a place.
const FOR_RELAYS: Duration = Duration::from_secs(5);

/// Addresses come and go several at a time.
const SETTLE: Duration = Duration::from_secs(2);

/// Pauses after a failure, doubled each time.
const RETRY: Duration = Duration::from_secs(30);
const LONGEST_RETRY: Duration = Duration::from_secs(30 * 60);

/// The longest time between two looks at the clock: sleeping machines stop the timers of this process.
const LONGEST_NAP: Duration = Duration::from_secs(15 * 60);

/// Why a record was not published.
#[derive(Debug, thiserror::Error)]
enum PublishingError {
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Keys(#[from] KeystoreError),
    #[error("the record cannot be made")]
    Record(#[from] RecordError),
    #[error("there is no certificate for today")]
    NoCertificate,
}

/// What was published last.
#[derive(Default)]
struct Published {
    document: Option<u64>,
    whereabouts: Option<Whereabouts>,
    /// In milliseconds since the epoch.
    ends: u64,
}

/// Publishes for as long as it is polled, which is while `net` is up.
pub(crate) async fn run(node: Node, net: Net) {
    let context = &node.inner.homeserver.context;
    if node.all_relays().await.is_ok_and(|relays| !relays.is_empty()) {
        // A relay that takes longer is a change like any other.
        let _ = timeout(FOR_RELAYS, placed(&net)).await;
    }
    let mut document = context.key_document.clone();
    let mut published = Published::default();
    let mut failures = 0;
    loop {
        let mut seen = net.addresses_seen();
        document.mark_unchanged();
        let pause = match publish(&node, &net, &mut published).await {
            Ok(()) => {
                failures = 0;
                None
            }
            Err(error) => {
                let pause = RETRY.saturating_mul(1 << failures.min(6)).min(LONGEST_RETRY);
                failures += 1;
                match &error {
                    // It is so until a relay is added, which starts the network anew.
                    PublishingError::Publish(PublishError::NoServers) => tracing::debug!("{error}"),
                    error => tracing::warn!(
                        error = error as &dyn std::error::Error,
                        "nobody finds this node by its name alone; trying again"
                    ),
                }
                Some(pause)
            }
        };
        tokio::select! {
            () = due(&node, &published, pause) => {}
            () = settled(&net, &mut seen) => {}
            () = renewed(&mut document) => {}
        }
    }
}

/// Waits until there is a place at a relay to publish.
pub(crate) async fn placed(net: &Net) {
    let mut seen = net.addresses_seen();
    while net.whereabouts().relays.is_empty() {
        net.addresses_changed(&mut seen).await;
    }
}

/// Waits until something is to be published again.
async fn due(node: &Node, published: &Published, pause: Option<Duration>) {
    if let Some(pause) = pause {
        return sleep(pause).await;
    }
    loop {
        let context = &node.inner.homeserver.context;
        match published.lasts(context.world.now(), context.config.dht.lifetime) {
            None => return,
            Some(left) => sleep(left.min(LONGEST_NAP)).await,
        }
    }
}

impl Published {
    /// For how long nothing need be published again.
    fn lasts(&self, now: MilliSecondsSinceUnixEpoch, lifetime: RecordLifetime) -> Option<Duration> {
        let left = self.ends.checked_sub(now.0.into())?;
        // Longer than a record holds: the clock was set back, and others take its time for right now.
        if left > lifetime.as_millis() {
            return None;
        }
        Duration::from_millis(left)
            .checked_sub(BEFORE_END)
            .filter(|left| !left.is_zero())
    }
}

/// Waits until the addresses changed, and then until they stay as they are.
async fn settled(net: &Net, seen: &mut kith_net::AddressesSeen) {
    net.addresses_changed(seen).await;
    while timeout(SETTLE, net.addresses_changed(seen)).await.is_ok() {}
}

async fn renewed(document: &mut watch::Receiver<Arc<KeyDocument>>) {
    if document.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Publishes what is new, or both when they are about to end.
async fn publish(node: &Node, net: &Net, published: &mut Published) -> Result<(), PublishingError> {
    let context = &node.inner.homeserver.context;
    let document = context.key_document();
    let whereabouts = net.whereabouts();
    let now = context.world.now();
    let lifetime = context.config.dht.lifetime;
    let ends_soon = published.lasts(now, lifetime).is_none();
    let same_document = !ends_soon && published.document == Some(document.version());
    let same_whereabouts = same_document && published.whereabouts.as_ref() == Some(&whereabouts);
    let mut records = Vec::new();
    // Addresses first: whoever was here before holds the key document already.
    let reachable = !whereabouts.addrs.is_empty() || !whereabouts.relays.is_empty();
    if reachable && !same_whereabouts {
        let record = AddressRecord::sign_for(lifetime, whereabouts.clone(), &document, &context.node_key, now)?;
        records.push(Record::Address(record));
    }
    if !same_document {
        records.push(Record::keys_for(lifetime, KeyDocument::clone(&document), now));
    }
    let inner = &node.inner;
    let keys = inner
        .keystore
        .record_keys(&inner.identity, &document, context.node_key.key_id(), &context.world)?;
    for record in &records {
        let signer = keys.signer(&record.kind(), Day::of(now))?;
        let signer = signer.ok_or(PublishingError::NoCertificate)?;
        let sealed = SealedRecord::seal(record, &signer, &mut context.world.rng())?;
        let servers = net.publish(&sealed).await?;
        tracing::debug!(servers, "a record is in the DHT");
        match record {
            Record::Address(_) => published.whereabouts = Some(whereabouts.clone()),
            Record::Keys { .. } => published.document = Some(document.version()),
        }
    }
    if ends_soon {
        published.ends = records
            .iter()
            .map(|record| record.expires().0.into())
            .min()
            .unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;

    #[test]
    fn records_are_published_again_before_they_end() {
        const MINUTE: u64 = 60 * 1000;
        let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(1_790_000_000_000));
        let (short, long) = (RecordLifetime::Short, RecordLifetime::Long);
        // (their lifetime, minutes until the end of what was published, minutes for which nothing is due)
        let cases = [
            (short, 0, None),
            (short, 20, None),
            (short, 21, Some(1)),
            (short, 120, Some(100)),
            (short, 121, None),
            (short, 100_000, None),
            (long, 20, None),
            (long, 121, Some(101)),
            (long, 360, Some(340)),
            (long, 361, None),
        ];
        for (lifetime, ends, lasts) in cases {
            let published = Published {
                ends: u64::from(now.0) + ends * MINUTE,
                ..Published::default()
            };
            let lasts = lasts.map(|minutes| Duration::from_millis(minutes * MINUTE));
            assert_eq!(published.lasts(now, lifetime), lasts, "{ends}");
        }
        assert_eq!(Published::default().lasts(now, short), None);
    }
}
