//! One answer from one side to the other, over memory that is used again: what a oneshot channel does, without
//! allocating for each piece.
//!
//! Participants: whoever asks makes a pair with [`Replies::pair`], gives the [`Sender`] away with the work and awaits
//! the [`Receiver`]. The last of the two to go gives the cell back. Non-goals: more than one value; blocking.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::limits::SPARE_REPLIES_MAX;

/// The sender went away without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left to answer")]
pub struct Unanswered;

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender: bool,
    receiver: bool,
}

struct Cell<T>(Mutex<State<T>>);

type Spare<T> = Mutex<Vec<Arc<Cell<T>>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes pairs. Cheap to clone; clones share what is spare.
pub struct Replies<T> {
    spare: Arc<Spare<T>>,
}

impl<T> Clone for Replies<T> {
    fn clone(&self) -> Self {
        Replies { spare: self.spare.clone() }
    }
}

impl<T> Default for Replies<T> {
    fn default() -> Self {
        Replies { spare: Arc::new(Mutex::new(Vec::new())) }
    }
}

impl<T> std::fmt::Debug for Replies<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replies({} spare)", locked(&self.spare).len())
    }
}

impl<T> Replies<T> {
    /// Two ends of one answer.
    pub fn pair(&self) -> (Sender<T>, Receiver<T>) {
        let spare = locked(&self.spare).pop();
        let cell = match spare {
            Some(cell) => {
                let mut state = locked(&cell.0);
                (state.sender, state.receiver) = (true, true);
                drop(state);
                cell
            }
            None => Arc::new(Cell(Mutex::new(State { value: None, waker: None, sender: true, receiver: true }))),
        };
        let end = End { cell, spare: self.spare.clone() };
        (Sender(end.clone()), Receiver(end))
    }
}

struct End<T> {
    cell: Arc<Cell<T>>,
    spare: Arc<Spare<T>>,
}

impl<T> Clone for End<T> {
    fn clone(&self) -> Self {
        End { cell: self.cell.clone(), spare: self.spare.clone() }
    }
}

impl<T> End<T> {
    /// One end goes; whoever is last leaves the cell empty and spare.
    fn leave(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = locked(&self.cell.0);
        change(&mut state);
        let waker = if state.sender { None } else { state.waker.take() };
        let last = !state.sender && !state.receiver;
        // Dropped outside the lock: what a value does when it is dropped is its own affair.
        let unread = if last { state.value.take() } else { None };
        drop(state);
        drop(unread);
        if let Some(waker) = waker {
            waker.wake();
        }
        if last {
            let mut spare = locked(&self.spare);
            if spare.len() < SPARE_REPLIES_MAX {
                spare.push(self.cell.clone());
            }
        }
    }
}

/// The end that answers. Dropping it is an answer too: [`Unanswered`].
pub struct Sender<T>(End<T>);

impl<T> Sender<T> {
    /// Answers. What nobody waits for any more is dropped.
    pub fn send(self, value: T) {
        let mut state = locked(&self.0.cell.0);
        if state.receiver {
            state.value = Some(value);
        } else {
            drop(state);
            drop(value);
        }
    }

    /// Does nobody wait for the answer any more?
    pub fn is_closed(&self) -> bool {
        !locked(&self.0.cell.0).receiver
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.leave(|state| state.sender = false);
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

/// The end that waits: a future.
pub struct Receiver<T>(End<T>);

impl<T> Future for Receiver<T> {
    type Output = Result<T, Unanswered>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = locked(&self.0.cell.0);
        if let Some(value) = state.value.take() {
            return Poll::Ready(Ok(value));
        }
        if !state.sender {
            return Poll::Ready(Err(Unanswered));
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.leave(|state| {
            state.receiver = false;
            state.waker = None;
        });
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn answers_come_over_the_same_memory_again_and_again() {
        let replies = Replies::default();
        for n in 0..1000 {
            let (sender, receiver) = replies.pair();
            let task = tokio::spawn(async move { sender.send(n) });
            assert_eq!(receiver.await, Ok(n));
            task.await.unwrap();
        }
        assert_eq!(locked(&replies.spare).len(), 1);
    }

    #[tokio::test]
    async fn a_sender_that_goes_is_heard_of() {
        let replies = Replies::<u8>::default();
        let (sender, receiver) = replies.pair();
        let waiting = tokio::spawn(receiver);
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waiting.await.unwrap(), Err(Unanswered));
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_at_once_and_a_late_answer_meets_nobody_else() {
        let replies = Replies::default();
        let value = Arc::new(());
        let (late, gone) = replies.pair();
        drop(gone);
        assert!(late.is_closed());
        let (sender, receiver) = replies.pair();
        late.send(value.clone());
        assert_eq!(Arc::strong_count(&value), 1, "dropped");
        sender.send(value.clone());
        drop(receiver);
        assert_eq!(Arc::strong_count(&value), 1, "dropped with the receiver");
        assert_eq!(locked(&replies.spare).len(), 2, "both cells are spare");
    }
}
