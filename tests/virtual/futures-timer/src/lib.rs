//! The interface of futures-timer 3 over tokio's clock, so that libp2p waits for virtual time where that clock is paused.
//! Never part of a product: see `tests/virtual/run.sh`.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// A future that is ready once some time has passed, and stays so until it is reset.
#[derive(Debug)]
pub struct Delay {
    sleep: Pin<Box<Sleep>>,
    over: bool,
}

impl Delay {
    /// Ready after `duration` from now. Must be called within a tokio runtime.
    pub fn new(duration: Duration) -> Self {
        Self {
            sleep: Box::pin(sleep(duration)),
            over: false,
        }
    }

    /// Ready after `duration` from now, whatever was waited for before.
    pub fn reset(&mut self, duration: Duration) {
        let now = Instant::now();
        // As `sleep` does it: for ever, where the clock has no such time.
        let never = || now + Duration::from_secs(60 * 60 * 24 * 365 * 30);
        let deadline = now.checked_add(duration).unwrap_or_else(never);
        self.sleep.as_mut().reset(deadline);
        self.over = false;
    }
}

impl Future for Delay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.over && self.sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.over = true;
        Poll::Ready(())
    }
}
