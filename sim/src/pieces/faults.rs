//! What goes wrong, when it is time.

use millstream_agent_core::event::FailureKind;
use millstream_coordinator_core::event::Event as Word;
use millstream_types::NodeId;

use super::{Event, World};
use crate::scenario::FaultKind;

/// Until the coordinator sees that a session broke.
const SESSION_LOST_US: u64 = 50_000;

impl World {
    pub(super) fn fault(&mut self, i: usize) {
        self.faults_left -= 1;
        let now = self.clock.now();
        match self.scenario.faults[i].kind.clone() {
            FaultKind::Dies(n) => self.node_dies(n),
            FaultKind::Returns(n) | FaultKind::Joins(n) => {
                self.nodes[n as usize].alive = true;
                self.schedule_reconnect(n);
                let epoch = self.nodes[n as usize].epoch;
                self.clock.after(super::HEARTBEAT_US, Event::Heartbeat { node: n, epoch });
            }
            FaultKind::Slow(n, percent) => {
                let rate = self.scenario.link_bytes_per_s * f64::from(percent) / 100.0;
                self.nodes[n as usize].uplink.rate = rate;
                self.nodes[n as usize].down_rate = rate;
            }
            FaultKind::Cut(n, us) => self.nodes[n as usize].cut_until = now + us,
            FaultKind::Corrupts(n, ppm) => self.nodes[n as usize].corrupt_ppm = ppm,
            FaultKind::Refuses(n) => self.nodes[n as usize].refuses = true,
            FaultKind::Full(n) => self.nodes[n as usize].disk_full = true,
            FaultKind::OriginCorrupts(piece, reads) => {
                self.origin.corrupt.insert(piece, reads);
            }
            FaultKind::OriginThrottles(us) => self.origin.throttled_until = now + us,
            FaultKind::OriginBreaks(ppm) => self.origin.breaks_ppm = ppm,
            FaultKind::CoordinatorRestarts(_) if !self.coordinator.is_up() => {}
            FaultKind::CoordinatorRestarts(us) => {
                self.coordinator.stop();
                self.coordinator_timer = None;
                for node in &mut self.nodes {
                    node.session = None;
                }
                self.clock.after(us, Event::CoordinatorUp);
            }
        }
    }

    pub(super) fn coordinator_up(&mut self) {
        let orders = self.coordinator.start(self.clock.now());
        self.carry_out(orders);
        for n in 0..self.scenario.nodes {
            if self.nodes[n as usize].alive {
                self.schedule_reconnect(n);
            }
        }
    }

    fn node_dies(&mut self, n: u32) {
        let session = self.nodes[n as usize].session;
        // Those who wait for its pieces see the connection break.
        let mut broken = self.nodes[n as usize].uplink.clear();
        broken.extend(self.nodes[n as usize].waiters.values().flatten().copied());
        self.nodes[n as usize].die();
        for job in broken {
            if self.nodes[job.to as usize].epoch == job.epoch {
                self.end_live(job.to, job.fetch, FailureKind::Unreachable, self.scenario.peer_latency_us);
            }
        }
        if session == Some(self.coordinator.incarnation) {
            let incarnation = self.coordinator.incarnation;
            self.clock.after(SESSION_LOST_US, Event::SessionLost { node: n, incarnation });
        }
    }

    /// The coordinator's shell sees that a session broke, unless the node is back already.
    pub(super) fn session_lost(&mut self, n: u32, incarnation: u32) {
        if self.nodes[n as usize].session.is_none() && self.coordinator.incarnation == incarnation {
            let orders = self.coordinator.handle(self.clock.now(), Word::NodeLost { node: NodeId(n) });
            self.carry_out(orders);
        }
    }
}
