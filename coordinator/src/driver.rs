//! The one task that owns the core: it takes inputs, applies them, and carries out what the core orders.
//!
//! Participants: agent sessions and client requests send [`Input`]s through a [`DriverHandle`]; orders leave through
//! the nodes' bounded channels. Goals: state changes in one place and never across an await; one message per node
//! and round, however many orders it holds. Non-goals: policy (the core's), sockets (grpc, http), disk (store).

use std::time::Duration;

use millstream_proto::v1::agent_message::Body;
use millstream_types::{NodeId, Time};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::RequestError;
use crate::limits::{INPUTS_MAX, INPUTS_PER_ROUND};
use crate::nodes::SessionId;

mod demand;
mod evict;
mod jobs;
mod messages;
mod observing;
mod orders;
mod requests;
mod stages;
pub(crate) mod state;
mod wait;
mod watch;

pub(crate) use state::State;

type Call = Box<dyn FnOnce(&mut State, Time) + Send>;

/// What reaches the driver.
pub(crate) enum Input {
    /// A message of an agent.
    Agent { node: NodeId, session: SessionId, body: Box<Body> },
    /// An agent's stream ended.
    Closed { node: NodeId, session: SessionId },
    /// A request: runs on the state between two rounds.
    Call(Call),
}

/// How others reach the driver.
#[derive(Clone)]
pub(crate) struct DriverHandle(mpsc::Sender<Input>);

/// The same, for the state itself: it does not keep its own inputs open.
#[derive(Clone)]
pub(crate) struct WeakHandle(mpsc::WeakSender<Input>);

impl WeakHandle {
    /// While somebody else has a handle.
    pub(crate) fn upgrade(&self) -> Option<DriverHandle> {
        self.0.upgrade().map(DriverHandle)
    }
}

impl DriverHandle {
    /// For inputs that somebody else applies.
    pub(crate) fn new(inputs: mpsc::Sender<Input>) -> DriverHandle {
        DriverHandle(inputs)
    }

    /// Passes an input on; waits while the driver is behind. False when the driver has ended.
    pub(crate) async fn send(&self, input: Input) -> bool {
        self.0.send(input).await.is_ok()
    }

    /// Runs `request` on the state.
    pub(crate) async fn call<R: Send + 'static>(
        &self,
        request: impl FnOnce(&mut State, Time) -> R + Send + 'static,
    ) -> Result<R, RequestError> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |state, now| {
            // The caller may have gone: then nobody wants to know.
            let _ = answer.send(request(state, now));
        });
        if !self.send(Input::Call(call)).await {
            return Err(RequestError::Stopping);
        }
        answered.await.map_err(|_| RequestError::Stopping)
    }
}

/// Microseconds since the start of this process's driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    fn now(self) -> Time {
        Time(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn instant(self, time: Time) -> Instant {
        // Far futures are cut: the loop looks again then.
        self.0 + Duration::from_micros(time.0.min(u64::MAX / 2)).min(Duration::from_secs(86_400 * 365))
    }
}

/// Starts the driver. It ends when `stop` is cancelled; sessions and watchers end with it.
pub(crate) fn start(mut state: State, stop: CancellationToken) -> (DriverHandle, JoinHandle<()>) {
    let (tx, rx) = mpsc::channel(INPUTS_MAX);
    state.handle = Some(WeakHandle(tx.downgrade()));
    let task = tokio::spawn(drive(state, rx, stop));
    (DriverHandle(tx), task)
}

/// A round is not repeated faster than this, whatever the core's timeouts say.
const ROUND_MIN_US: u64 = 500;

async fn drive(mut state: State, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
    let clock = Clock::start();
    let mut round = Vec::with_capacity(INPUTS_PER_ROUND);
    loop {
        let now = clock.now();
        let due = state.due().map(|due| due.max(now + ROUND_MIN_US));
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            taken = inputs.recv_many(&mut round, INPUTS_PER_ROUND) => {
                if taken == 0 {
                    break;
                }
            }
            () = sleep_until(due.map(|due| clock.instant(due))) => {}
        }
        let now = clock.now();
        for input in round.drain(..) {
            state.apply(now, input);
        }
        state.on_time(now);
        state.judge_jobs(now);
        state.carry_out(now);
    }
    state.stop();
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
