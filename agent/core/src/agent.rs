//! The one struct that owns the agent's state.

use std::collections::VecDeque;

use millstream_types::Time;

use crate::config::AgentConfig;
use crate::event::{Action, Event};

/// The agent's policy. Drive it as [`event`](crate::event) says: events in, then drain the actions.
#[derive(Debug)]
pub struct AgentCore {
    #[expect(dead_code, reason = "read by the code that follows")]
    config: AgentConfig,
    actions: VecDeque<Action>,
}

impl AgentCore {
    /// A core that knows no version yet.
    pub fn new(config: AgentConfig) -> AgentCore {
        AgentCore {
            config,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event in. Drain [`poll_action`](Self::poll_action) afterwards; several events may come before.
    pub fn handle_event(&mut self, _now: Time, _event: Event) {}

    /// The moment of [`poll_timeout`](Self::poll_timeout) has come (or passed).
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next order to carry out, until `None`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) shall be called next; `None` while nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
}
