//! From a request to a piece that can be sent: most are here, or are waited for and then here; a few must be opened.
//!
//! A request waits without a task or a future of its own: the source wakes the connection, which looks again. Only
//! what cannot be had at once (a file that is not open, a piece that is not in the page cache) is a future.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{AbortHandle, Abortable};
use millstream_agent_core::wire::{Frame, StatusCode};
use tokio::time::Instant;

use super::super::server::Context;
use super::super::stats::add;
use super::super::warm::{is_warm, warm};
use super::{Closed, Serving};
use crate::limits::{READY_PIECES_MAX, UNKNOWN_PIECE_GRACE};
use crate::piece::Served;
use crate::transport::waiting::patience;
use crate::transport::{Look, PieceRequest};

/// What opening a piece came to. The outer error: it was cancelled.
pub(super) type Opened = (u64, Result<Result<Served, StatusCode>, futures::future::Aborted>);

/// A request that is not answered yet.
pub(super) struct Open {
    request: PieceRequest,
    deadline: Instant,
    state: State,
}

enum State {
    /// The source wakes us when its piece is here, or when it will not come.
    Waiting {
        /// And if it does not, this long.
        until: Instant,
    },
    /// Its piece is being opened.
    Opening(AbortHandle),
    /// Its piece is in the queue to be sent.
    Ready,
    /// So it is, and it is being opened again.
    Reopening(AbortHandle),
}

/// A piece in the queue.
pub(super) struct Ready {
    id: u64,
    hold: Hold,
}

/// Only the first few pieces of the queue are held, to leave buffers free; the others were available and are opened
/// again when their turn comes near.
enum Hold {
    Released,
    Opening,
    Held(Served),
}

fn len_of(served: &Served) -> u32 {
    match served {
        Served::Memory(piece) => piece.len(),
        Served::File { len, .. } => *len,
    }
}

/// Can it be sent without waiting for the disk?
fn is_at_hand(served: &Served) -> bool {
    match served {
        Served::Memory(_) => true,
        Served::File { file, offset, len, .. } => is_warm(file, *offset, u64::from(*len)),
    }
}

impl Serving {
    pub(super) fn request(&mut self, id: u64, request: PieceRequest, wait: Duration) -> Result<(), Closed> {
        if self.open.len() >= self.context.config.requests_per_connection {
            return Err(Closed::Misuse("more requests than allowed"));
        }
        if self.open.contains_key(&id) || self.out.sending() == Some(id) {
            return Err(Closed::Misuse("a request number twice"));
        }
        if self.draining {
            return self.status(id, StatusCode::Draining);
        }
        let deadline = Instant::now() + patience(wait);
        self.open.insert(id, Open { request, deadline, state: State::Waiting { until: deadline } });
        self.look(id, false)
    }

    /// Looks for a request's piece; `woken`: not for the first time.
    fn look(&mut self, id: u64, woken: bool) -> Result<(), Closed> {
        let Some(open) = self.open.get_mut(&id) else { return Ok(()) };
        let (request, deadline) = (open.request, open.deadline);
        let waiter = self.inbox.waiter(id);
        match self.context.source.look(&request, &waiter) {
            Look::Here(served) if len_of(&served) == request.len && is_at_hand(&served) => self.enqueue(id, served),
            Look::Here(_) | Look::Open => {
                let abort = self.start_opening(id, request, deadline);
                self.open.entry(id).and_modify(|o| o.state = State::Opening(abort));
            }
            // Its order was given back, here.
            Look::Wait { expected: false } if woken => {
                self.context.source.forget(&request, &waiter);
                return self.refuse(id, StatusCode::NotHave);
            }
            Look::Wait { expected } => {
                let grace = Instant::now() + UNKNOWN_PIECE_GRACE;
                open.state = State::Waiting { until: if expected { deadline } else { deadline.min(grace) } };
            }
            Look::No => return self.refuse(id, StatusCode::NotHave),
        }
        Ok(())
    }

    /// Looks again for what the source said to.
    pub(super) fn look_again(&mut self) -> Result<(), Closed> {
        let mut woken = std::mem::take(&mut self.woken);
        self.inbox.take(&mut woken);
        for id in woken.drain(..) {
            // Answered or cancelled since: nobody waits.
            if matches!(self.open.get(&id), Some(Open { state: State::Waiting { .. }, .. })) {
                self.look(id, true)?;
            }
        }
        self.woken = woken;
        Ok(())
    }

    /// When a request will have waited for long enough.
    pub(super) fn patience_ends(&self) -> Option<Instant> {
        let waiting = self.open.values().filter_map(|open| match open.state {
            State::Waiting { until } => Some(until),
            _ => None,
        });
        waiting.min()
    }

    /// Answers requests that have waited for long enough.
    pub(super) fn lose_patience(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        let over = |open: &Open| matches!(open.state, State::Waiting { until } if until <= now);
        while let Some((&id, open)) = self.open.iter().find(|(_, open)| over(open)) {
            let code = if open.deadline <= now { StatusCode::Deadline } else { StatusCode::NotHave };
            self.context.source.forget(&open.request, &self.inbox.waiter(id));
            self.refuse(id, code)?;
        }
        Ok(())
    }

    fn refuse(&mut self, id: u64, code: StatusCode) -> Result<(), Closed> {
        self.open.remove(&id);
        self.unqueue(id);
        self.status(id, code)
    }

    fn start_opening(&mut self, id: u64, request: PieceRequest, deadline: Instant) -> AbortHandle {
        let (abort, registration) = AbortHandle::new_pair();
        let opening = Abortable::new(open(self.context.clone(), request, deadline), registration);
        self.opening.push(Box::pin(async move { (id, opening.await) }));
        abort
    }

    pub(super) fn cancel(&mut self, id: u64) -> Result<(), Closed> {
        // Not open: the answer is on its way, or was given.
        let Some(open) = self.open.remove(&id) else { return Ok(()) };
        self.let_go(id, &open);
        self.unqueue(id);
        self.status(id, StatusCode::Cancelled)
    }

    /// Nobody waits for this request's piece any more.
    fn let_go(&self, id: u64, open: &Open) {
        match &open.state {
            State::Waiting { .. } => self.context.source.forget(&open.request, &self.inbox.waiter(id)),
            State::Opening(abort) | State::Reopening(abort) => abort.abort(),
            State::Ready => {}
        }
    }

    /// The connection has ended.
    pub(super) fn forget_all(&self) {
        self.open.iter().for_each(|(id, open)| self.let_go(*id, open));
    }

    fn unqueue(&mut self, id: u64) {
        if let Some(at) = self.ready.iter().position(|r| r.id == id)
            && let Some(Ready { hold: Hold::Opening | Hold::Held(_), .. }) = self.ready.remove(at)
        {
            self.ready_held -= 1;
        }
    }

    pub(super) fn opened(&mut self, (id, opened): Opened) -> Result<(), Closed> {
        let (Ok(opened), Some(open)) = (opened, self.open.get_mut(&id)) else { return Ok(()) };
        let served = match opened {
            Ok(served) => served,
            Err(code) => return self.refuse(id, code),
        };
        if matches!(open.state, State::Reopening(_)) {
            open.state = State::Ready;
            if let Some(ready) = self.ready.iter_mut().find(|r| r.id == id) {
                ready.hold = Hold::Held(served);
            }
        } else {
            self.enqueue(id, served);
        }
        Ok(())
    }

    /// Puts a piece into the queue.
    fn enqueue(&mut self, id: u64, served: Served) {
        self.open.entry(id).and_modify(|open| open.state = State::Ready);
        let hold = if self.ready_held < READY_PIECES_MAX {
            self.ready_held += 1;
            Hold::Held(served)
        } else {
            Hold::Released
        };
        self.ready.push_back(Ready { id, hold });
    }

    /// Puts the first piece that is held behind the frames that wait, and takes hold of those that come next.
    pub(super) fn next_piece(&mut self) {
        self.hold_next();
        if let Some(at) = self.ready.iter().position(|r| matches!(r.hold, Hold::Held(_)))
            && let Some(Ready { id, hold: Hold::Held(served) }) = self.ready.remove(at)
        {
            self.ready_held -= 1;
            self.open.remove(&id);
            self.out.begin(id, served);
            self.hold_next();
        }
    }

    fn hold_next(&mut self) {
        for at in 0..self.ready.len() {
            if self.ready_held >= READY_PIECES_MAX {
                return;
            }
            let Ready { id, hold: Hold::Released } = self.ready[at] else { continue };
            let Some((request, deadline)) = self.open.get(&id).map(|o| (o.request, o.deadline)) else { continue };
            let waiter = self.inbox.waiter(id);
            self.ready[at].hold = match self.context.source.look(&request, &waiter) {
                Look::Here(served) if len_of(&served) == request.len && is_at_hand(&served) => Hold::Held(served),
                look => {
                    if matches!(look, Look::Wait { .. }) {
                        self.context.source.forget(&request, &waiter);
                    }
                    let abort = self.start_opening(id, request, deadline);
                    self.open.entry(id).and_modify(|o| o.state = State::Reopening(abort));
                    Hold::Opening
                }
            };
            self.ready_held += 1;
        }
    }

    /// Refuses what has to be waited for, keeps what is ready, tells the peer.
    pub(super) fn go_away(&mut self) -> Result<(), Closed> {
        self.draining = true;
        self.reply(Frame::GoAway)?;
        let has_to_wait = |open: &Open| matches!(open.state, State::Waiting { .. } | State::Opening(_));
        while let Some((&id, open)) = self.open.iter().find(|(_, open)| has_to_wait(open)) {
            self.let_go(id, open);
            self.refuse(id, StatusCode::Draining)?;
        }
        Ok(())
    }
}

/// Waits for a piece, and for its bytes to be in memory.
async fn open(context: Arc<Context>, request: PieceRequest, deadline: Instant) -> Result<Served, StatusCode> {
    let wait = deadline.saturating_duration_since(Instant::now());
    let Some(served) = context.source.open(request, wait).await else {
        return Err(if Instant::now() >= deadline { StatusCode::Deadline } else { StatusCode::NotHave });
    };
    if len_of(&served) != request.len {
        return Err(StatusCode::Length);
    }
    if let Served::File { file, offset, len, .. } = &served {
        match warm(file, *offset, *len, &context.cold_reads).await {
            Ok(cold) => add(&context.config.stats.cold_reads, u64::from(cold)),
            Err(error) => {
                tracing::warn!(%error, piece = request.piece, "cannot read a piece that a peer asked for");
                return Err(StatusCode::Failed);
            }
        }
    }
    Ok(served)
}
