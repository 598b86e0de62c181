//! The relays that hold a place for this node: those that its configuration names, and those that were added while it was in
//! use, which the database keeps. Asks no relay itself; the network does.

use kith_net::{Multiaddr, relay_peer};
use kith_store::StoreError;
use serde::{Deserialize, Serialize};

use crate::Node;

/// The setting that holds the relays that were added, as a JSON array of addresses.
const RELAYS: &str = "relays";

/// Relays that can be added: each costs a look when places are lost.
const MAX_RELAYS: usize = 32;

/// A relay that this node uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Its address; ends in `/p2p/RELAY`.
    pub address: String,
    /// Whether the configuration names it; then it cannot be removed at run time.
    pub configured: bool,
    /// Whether it holds a place for this node now.
    pub place: bool,
}

/// Why the list of relays stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// It is no relay's address.
    #[error("{0} is no relay's address: it must end in /p2p/ and the relay's peer id")]
    Address(String),
    /// There are 32 already.
    #[error("there are {MAX_RELAYS} relays already; remove one first")]
    TooMany,
    /// Nobody added it.
    #[error("{0} is not among the relays; see `kith relay list`")]
    Unknown(String),
    /// The configuration names it.
    #[error("{0} is in the configuration; remove it there")]
    Configured(String),
    /// The database failed.
    #[error("the relays cannot be kept")]
    Store(#[from] StoreError),
}

impl Node {
    /// The relays that this node uses, those of the configuration first.
    pub async fn relays(&self) -> Result<Vec<Relay>, StoreError> {
        let net = self.inner.network.net();
        let listening = net.map(|net| net.listen_addrs()).unwrap_or_default();
        let held: Vec<_> = listening
            .iter()
            .filter(|address| address.to_string().contains("/p2p-circuit"))
            .filter_map(relay_peer)
            .collect();
        let relay = |address: &Multiaddr, configured| Relay {
            address: address.to_string(),
            configured,
            place: relay_peer(address).is_some_and(|relay| held.contains(&relay)),
        };
        let configured = &self.homeserver().context.config.relays;
        let added = self.added_relays().await?;
        let added = added.iter().filter(|address| !configured.contains(address));
        let configured = configured.iter().map(|address| relay(address, true));
        Ok(configured.chain(added.map(|address| relay(address, false))).collect())
    }

    /// Uses a relay from now on; its address ends in `/p2p/RELAY`. One that is known already stays.
    pub async fn add_relay(&self, relay: &Multiaddr) -> Result<(), RelayError> {
        if relay_peer(relay).is_none() || relay.to_string().contains("/p2p-circuit") {
            return Err(RelayError::Address(relay.to_string()));
        }
        self.change_relays(relay, |relays, relay| match relays.len() {
            _ if relays.contains(&relay) => Ok(()),
            MAX_RELAYS.. => Err(RelayError::TooMany),
            _ => {
                relays.push(relay);
                Ok(())
            }
        })
        .await
    }

    /// Uses a relay no longer. Places there are given up.
    pub async fn remove_relay(&self, relay: &Multiaddr) -> Result<(), RelayError> {
        if self.homeserver().context.config.relays.contains(relay) {
            return Err(RelayError::Configured(relay.to_string()));
        }
        self.change_relays(relay, |relays, relay| {
            let before = relays.len();
            relays.retain(|known| *known != relay);
            match relays.len() < before {
                true => Ok(()),
                false => Err(RelayError::Unknown(relay)),
            }
        })
        .await
    }

    async fn change_relays(
        &self,
        relay: &Multiaddr,
        change: fn(&mut Vec<String>, String) -> Result<(), RelayError>,
    ) -> Result<(), RelayError> {
        // A network that starts meanwhile would start with the relays of before.
        let _changing = self.inner.changing.lock().await;
        let relay = relay.to_string();
        let store = &self.homeserver().context.store;
        store
            .write(move |txn| {
                let mut relays = parse(txn.setting(RELAYS)?);
                change(&mut relays, relay)?;
                let text = serde_json::to_string(&relays).unwrap_or_default();
                txn.set_setting(RELAYS, &text)?;
                Ok::<_, RelayError>(())
            })
            .await?;
        if let Some(net) = self.inner.network.net()
            && let Err(error) = net.set_relays(&self.all_relays().await?).await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "the relays were not changed");
        }
        Ok(())
    }

    /// Every relay to use: the configuration's first.
    pub(crate) async fn all_relays(&self) -> Result<Vec<Multiaddr>, StoreError> {
        let mut relays = self.homeserver().context.config.relays.clone();
        for relay in self.added_relays().await? {
            if !relays.contains(&relay) {
                relays.push(relay);
            }
        }
        Ok(relays)
    }

    async fn added_relays(&self) -> Result<Vec<Multiaddr>, StoreError> {
        let kept = self.homeserver().context.store.read(|txn| txn.setting(RELAYS)).await?;
        Ok(parse(kept).iter().filter_map(|relay| relay.parse().ok()).collect())
    }
}

fn parse(kept: Option<String>) -> Vec<String> {
    kept.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}
