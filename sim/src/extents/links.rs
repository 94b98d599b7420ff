//! Uplinks and the origin: one extent at a time, to receivers that can take it.

use std::collections::VecDeque;

use millstream_types::{AssignmentId, Time};

use super::{Event, World};
use crate::clock::transfer_us;

/// An extent travels in this many segments; a sender takes turns between its receivers, segment by segment.
const SEGMENTS: u64 = 4;
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

/// What a sender does next.
enum Next {
    /// A segment of this many bytes, the first, the last.
    Send {
        job: Job,
        bytes: u64,
        first: bool,
        last: bool,
    },
    /// All receivers are backed up until then.
    Wait(Time),
    Idle,
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
        let free_at = match self.next_segment(&mut jobs) {
            Next::Send { job, bytes, first, last } => {
                let sent = now + transfer_us(bytes, rate);
                self.send(sender, job, bytes, sent, (first, last));
                Some(sent)
            }
            Next::Wait(at) => Some(at),
            Next::Idle => None,
        };
        let uplink = match sender {
            Some(n) => &mut self.nodes[n as usize].uplink,
            None => &mut self.origin,
        };
        uplink.jobs = jobs;
        if let Some(at) = free_at {
            uplink.busy = true;
            let event = sender.map_or(Event::OriginFree, |node| Event::UplinkFree { node });
            self.clock.at(at, event);
        }
    }

    /// A segment for the first receiver that can take one; its request then queues behind the others.
    fn next_segment(&mut self, jobs: &mut VecDeque<Job>) -> Next {
        let now = self.clock.now();
        let mut soonest: Option<Time> = None;
        let mut i = 0;
        while i < jobs.len().min(SCAN_MAX) {
            let job = jobs[i];
            let node = &mut self.nodes[job.to as usize];
            let (down_free, down_rate) = (node.down_free, node.down_rate);
            let Some(flight) = node.flight(job.id).filter(|f| f.attempt == job.attempt) else {
                jobs.remove(i);
                continue;
            };
            let segment = flight.bytes.div_ceil(SEGMENTS);
            let backlog = 2 * transfer_us(segment, down_rate);
            if down_free > now + backlog {
                let free = down_free - backlog;
                soonest = Some(soonest.map_or(free, |s| s.min(free)));
                i += 1;
                continue;
            }
            jobs.remove(i);
            let bytes = segment.min(flight.left);
            let first = flight.left == flight.bytes;
            flight.left -= bytes;
            let last = flight.left == 0;
            if !last {
                jobs.push_back(job);
            }
            return Next::Send { job, bytes, first, last };
        }
        soonest.map_or(Next::Idle, Next::Wait)
    }

    /// Books the receiver's downlink, and tells it when the first piece and the last byte will be there.
    fn send(&mut self, sender: Option<u32>, job: Job, bytes: u64, sent: Time, (first, last): (bool, bool)) {
        let now = self.clock.now();
        let latency = self.scenario.peer_latency_us;
        let piece_us = self.piece_us;
        let start = self.nodes[job.to as usize].down_free.max(now);
        let upstream = self.upstream_end(sender, &job);
        let node = &mut self.nodes[job.to as usize];
        node.down_free = start + transfer_us(bytes, node.down_rate);
        let down_free = node.down_free;
        if sender.is_none() {
            self.origin_bytes += bytes;
            self.origin_done = sent;
        }
        let (node, id, attempt) = (job.to, job.id, job.attempt);
        if first {
            self.clock.at(start + piece_us + latency, Event::Begun { node, id, attempt });
        }
        if last {
            let mut end = down_free.max(sent) + latency;
            if let Some(upstream) = upstream {
                end = end.max(upstream + piece_us + latency);
            }
            if let Some(flight) = self.nodes[node as usize].flight(id) {
                flight.end = Some(end);
            }
            self.clock.at(end, Event::Ended { node, id, attempt });
        }
    }

    /// When the sender itself will have all of the extent, if it is still receiving it and knows.
    fn upstream_end(&mut self, sender: Option<u32>, job: &Job) -> Option<Time> {
        let first = self.nodes[job.to as usize].flight(job.id)?.pieces.start;
        let parent = &self.nodes[sender? as usize];
        parent.flights.iter().find(|f| f.pieces.contains(&first))?.end
    }
}
