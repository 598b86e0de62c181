//! What a node does while its app is in the background: nothing, or next to nothing. The homeserver stays; only the network
//! goes.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};

use crate::{Node, StartError};

/// A suspended node has this long to take leave of its peers before the caller goes on; leaving ends in the background.
const PATIENCE: Duration = Duration::from_millis(800);

/// Whether a node rests.
#[derive(Default)]
pub(crate) struct Rest {
    on: AtomicBool,
    /// A network that is still taking leave. It holds the ports that the next one wants.
    leaving: Mutex<Option<JoinHandle<()>>>,
}

impl Rest {
    /// Whether the network is meant to be down.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Waits until nothing is left of a network that was left.
    pub(crate) async fn wait(&self) {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(leaving) = leaving {
            // A task that failed left its ports too.
            let _ = leaving.await;
        }
    }
}

impl Node {
    /// Rests, as an app does that goes to the background. Returns within a second. With `wakeable`, and a relay that holds a
    /// place, one connection to that relay is all that stays, and whoever has something to say gets here through it; else
    /// nothing stays. Clients on this machine are served as before; what they send waits.
    pub async fn suspend(&self, wakeable: bool) -> Result<(), StartError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        if inner.stop.is_cancelled() {
            return Err(StartError::ShutDown);
        }
        inner.rest.on.store(true, Ordering::Relaxed);
        match inner.network.net() {
            Some(net) if wakeable && net.has_place() => net.doze().await,
            Some(_) => {
                let network = inner.network.clone();
                let mut leaving = tokio::spawn(async move { network.detach().await });
                if timeout(PATIENCE, &mut leaving).await.is_err() {
                    *inner.rest.leaving.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaving);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Ends [`Node::suspend`]: the network is back when this returns, and contacts and relays are being dialled.
    pub async fn resume(&self) -> Result<(), StartError> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        if inner.stop.is_cancelled() {
            return Err(StartError::ShutDown);
        }
        if !inner.rest.is_on() {
            return Ok(());
        }
        inner.rest.wait().await;
        match inner.network.net() {
            Some(net) => net.wake().await,
            None => self.attach(self.start_net().await?),
        }
        inner.rest.on.store(false, Ordering::Relaxed);
        Ok(())
    }
}
