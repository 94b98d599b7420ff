//! How requests wait for pieces that are on their way: a source wakes a [`Waiter`], and the connection it belongs to
//! looks again. Nothing is allocated per piece, and a connection that goes away leaves nothing that anyone waits for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::limits::{PEER_ANSWER_MAX, PEER_ANSWER_PART};

/// How long a request waits here for its piece, where its requester waits for `wait`.
pub(super) fn patience(wait: Duration) -> Duration {
    wait - (wait / PEER_ANSWER_PART).min(PEER_ANSWER_MAX)
}

/// Where a connection hears which of its requests to look at again.
#[derive(Debug, Default)]
pub struct Inbox {
    woken: Mutex<Vec<u64>>,
    there: Notify,
}

impl Inbox {
    fn locked(&self) -> MutexGuard<'_, Vec<u64>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one request of this connection's.
    pub fn waiter(self: &Arc<Self>, id: u64) -> Waiter {
        Waiter { inbox: self.clone(), id }
    }

    /// Waits until someone was woken. Safe to cancel.
    pub async fn woken(&self) {
        self.there.notified().await;
    }

    /// Moves the requests that were woken to `into`.
    pub fn take(&self, into: &mut Vec<u64>) {
        into.append(&mut self.locked());
    }
}

/// A request that waits. Each waits in one place at most, and is woken once for it.
#[derive(Clone, Debug)]
pub struct Waiter {
    inbox: Arc<Inbox>,
    id: u64,
}

impl Waiter {
    /// Has the connection look again.
    pub fn wake(&self) {
        self.inbox.locked().push(self.id);
        self.inbox.there.notify_one();
    }

    /// Is it the same request?
    pub fn is(&self, other: &Waiter) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.inbox, &other.inbox)
    }
}
