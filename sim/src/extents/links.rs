//! Uplinks and the origin: one extent at a time, to receivers that can take it.

use std::collections::VecDeque;

use millstream_types::{AssignmentId, Time};

use super::{Event, World};
use crate::clock::transfer_us;

/// Waiting requests looked at for one whose receiver is ready.
const SCAN_MAX: usize = 64;

/// An extent that somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub to: u32,
    pub id: AssignmentId,
    pub attempt: u32,
}

/// One sender.
#[derive(Debug)]
pub(super) struct Uplink {
    pub rate: f64,
    pub busy: bool,
    pub jobs: VecDeque<Job>,
}

impl Uplink {
    pub fn new(rate: f64) -> Uplink {
        Uplink { rate, busy: false, jobs: VecDeque::new() }
    }
}

impl World {
    /// Lets a node's uplink (or the origin's) send what is next.
    pub(super) fn serve(&mut self, sender: Option<u32>) {
        let now = self.clock.now();
        let uplink = match sender {
            Some(n) if !self.nodes[n as usize].alive => return,
            Some(n) => &mut self.nodes[n as usize].uplink,
            None => &mut self.origin,
        };
        if uplink.busy || uplink.jobs.is_empty() {
            return;
        }
        let rate = uplink.rate;
        let mut jobs = std::mem::take(&mut uplink.jobs);
        let (chosen, soonest) = self.choose(&mut jobs);
        let free_at = match chosen {
            Some(job) => Some(self.send(sender, rate, job)),
            None => soonest,
        };
        let uplink = match sender {
            Some(n) => &mut self.nodes[n as usize].uplink,
            None => &mut self.origin,
        };
        uplink.jobs = jobs;
        if let Some(at) = free_at {
            uplink.busy = true;
            let event = sender.map_or(Event::OriginFree, |node| Event::UplinkFree { node });
            self.clock.at(at.max(now), event);
        }
    }

    /// The first job whose receiver is free, or the moment when one will be.
    fn choose(&mut self, jobs: &mut VecDeque<Job>) -> (Option<Job>, Option<Time>) {
        let now = self.clock.now();
        let mut soonest: Option<Time> = None;
        let mut i = 0;
        while i < jobs.len().min(SCAN_MAX) {
            let job = jobs[i];
            let node = &mut self.nodes[job.to as usize];
            let free = node.down_free;
            let Some(_) = node.flight(job.id).filter(|f| f.attempt == job.attempt) else {
                jobs.remove(i);
                continue;
            };
            if free <= now + self.piece_us {
                jobs.remove(i);
                return (Some(job), None);
            }
            let free = free - self.piece_us;
            soonest = Some(soonest.map_or(free, |s| s.min(free)));
            i += 1;
        }
        (None, soonest)
    }

    /// Books both links; says when the sender is free again.
    fn send(&mut self, sender: Option<u32>, rate: f64, job: Job) -> Time {
        let now = self.clock.now();
        let latency = self.scenario.peer_latency_us;
        let piece_us = self.piece_us;
        let Some(flight) = self.nodes[job.to as usize].flight(job.id) else {
            return now;
        };
        let (bytes, first) = (flight.bytes, flight.pieces.start);
        let sent = now + transfer_us(bytes, rate);
        let upstream = sender.and_then(|p| {
            let coming = self.nodes[p as usize].flights.iter().find(|f| f.pieces.contains(&first));
            coming.and_then(|f| f.end)
        });
        let node = &mut self.nodes[job.to as usize];
        let start = node.down_free.max(now);
        node.down_free = start + transfer_us(bytes, node.down_rate);
        let mut end = node.down_free.max(sent) + latency;
        if let Some(upstream) = upstream {
            end = end.max(upstream + piece_us + latency);
        }
        if let Some(flight) = node.flight(job.id) {
            flight.end = Some(end);
        }
        if sender.is_none() {
            self.origin_bytes += bytes;
        }
        let (node, id, attempt) = (job.to, job.id, job.attempt);
        self.clock.at(start + piece_us + latency, Event::Begun { node, id, attempt });
        self.clock.at(end, Event::Ended { node, id, attempt });
        sent
    }
}
