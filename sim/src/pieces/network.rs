//! Bytes on their way: uplinks, the origin, what breaks there.

use std::collections::{BTreeMap, VecDeque};

use millstream_agent_core::event::{FailureKind, FetchId, Source};
use millstream_types::{Crc64, PieceNo, Time};

use super::{Event, World, peer};
use crate::clock::transfer_us;
use crate::coordinator::DATASET;

/// A piece travels in this many segments; a sender takes turns between its receivers, segment by segment.
const SEGMENTS: u64 = 4;
/// How far a receiver's downlink may be booked ahead before a sender turns to others: what switches buffer, at least.
const BACKLOG_US: u64 = 500;
/// Until a peer that does not answer is given up.
const CONNECT_US: u64 = 1_000_000;

/// A piece that somebody waits for; of a GET, the next of several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub to: u32,
    pub epoch: u32,
    pub fetch: FetchId,
    pub piece: PieceNo,
    /// The end of the GET's range.
    pub end: PieceNo,
}

/// One sender: requests of one receiver in their order, receivers in turn.
#[derive(Debug)]
pub(super) struct Uplink {
    pub rate: f64,
    pub busy: bool,
    /// Requests and the bytes of each that are still to be sent, by receiver.
    queues: BTreeMap<u32, VecDeque<(Job, u64)>>,
    /// Receivers with requests, next one first.
    turns: VecDeque<u32>,
}

impl Uplink {
    pub fn new(rate: f64) -> Uplink {
        Uplink { rate, busy: false, queues: BTreeMap::new(), turns: VecDeque::new() }
    }

    pub fn push(&mut self, job: Job, bytes: u64) {
        let queue = self.queues.entry(job.to).or_default();
        if queue.is_empty() {
            self.turns.push_back(job.to);
        }
        queue.push_back((job, bytes));
    }

    /// Forgets all requests, and says which there were.
    pub fn clear(&mut self) -> Vec<Job> {
        self.turns.clear();
        std::mem::take(&mut self.queues).into_values().flatten().map(|(job, _)| job).collect()
    }
}

/// The object store.
#[derive(Debug)]
pub(super) struct Origin {
    pub uplink: Uplink,
    pub sent_bytes: u64,
    pub last_sent: Time,
    pub throttled_until: Time,
    /// GETs that break off, in a million.
    pub breaks_ppm: u32,
    /// Wrong reads to come, by piece.
    pub corrupt: BTreeMap<PieceNo, u32>,
}

impl Origin {
    pub fn new(rate: f64) -> Origin {
        Origin {
            uplink: Uplink::new(rate),
            sent_bytes: 0,
            last_sent: Time::ZERO,
            throttled_until: Time::ZERO,
            breaks_ppm: 0,
            corrupt: BTreeMap::new(),
        }
    }
}

/// What an uplink does next.
enum Next {
    /// A segment of this many bytes of a request, and whether it is the last.
    Send(Job, u64, bool),
    /// All receivers are backed up until then.
    Wait(Time),
    Idle,
}

impl World {
    /// A request for a piece reaches a peer.
    pub(super) fn request_arrived(&mut self, parent: u32, job: Job) {
        let now = self.clock.now();
        let node = &mut self.nodes[parent as usize];
        if !node.alive || node.cut_until > now || self.nodes[job.to as usize].cut_until > now {
            self.end_if_current(&job, FailureKind::Unreachable, CONNECT_US);
            return;
        }
        let node = &mut self.nodes[parent as usize];
        if node.refuses {
            self.end_if_current(&job, FailureKind::NotHave, self.scenario.peer_latency_us);
        } else if node.verified[job.piece as usize].is_some() {
            let bytes = u64::from(self.layout.place(job.piece).len);
            node.uplink.push(job, bytes);
            self.serve_uplink(parent);
        } else if node.agent.is_expecting(DATASET, job.piece) {
            node.waiters.entry(job.piece).or_default().push(job);
        } else {
            self.end_if_current(&job, FailureKind::NotHave, self.scenario.peer_latency_us);
        }
    }

    pub(super) fn get_arrived(&mut self, job: Job) {
        let now = self.clock.now();
        if self.nodes[job.to as usize].cut_until > now {
            self.end_if_current(&job, FailureKind::OriginTransient, CONNECT_US);
        } else if self.origin.throttled_until > now {
            self.end_if_current(&job, FailureKind::Throttled, self.scenario.origin_latency_us);
        } else {
            self.push_get(job);
            self.serve_origin();
        }
    }

    fn end_if_current(&mut self, job: &Job, kind: FailureKind, us: u64) {
        if self.nodes[job.to as usize].epoch == job.epoch {
            self.end_live(job.to, job.fetch, kind, us);
        }
    }

    /// Is the receiver still waiting for it?
    fn is_wanted(&self, job: &Job) -> bool {
        let node = &self.nodes[job.to as usize];
        node.alive && node.epoch == job.epoch && node.live.get(&job.fetch).is_some_and(|live| !live.over)
    }

    pub(super) fn push_get(&mut self, job: Job) {
        let bytes = u64::from(self.layout.place(job.piece).len);
        self.origin.uplink.push(job, bytes);
    }

    /// A segment for the first receiver in turn that can take one. Requests that nobody waits for are dropped.
    fn next_segment(&self, uplink: &mut Uplink) -> Next {
        let now = self.clock.now();
        let segment = self.layout.piece_len().div_ceil(SEGMENTS);
        let mut soonest: Option<Time> = None;
        for _ in 0..uplink.turns.len() {
            let Some(to) = uplink.turns.pop_front() else {
                break;
            };
            let Some(queue) = uplink.queues.get_mut(&to) else {
                continue;
            };
            while queue.front().is_some_and(|(job, _)| !self.is_wanted(job)) {
                queue.pop_front();
            }
            let Some((job, left)) = queue.front_mut() else {
                uplink.queues.remove(&to);
                continue;
            };
            let node = &self.nodes[to as usize];
            let backlog = BACKLOG_US.max(transfer_us(segment, node.down_rate));
            if node.down_free > now + backlog {
                let free = node.down_free - backlog;
                soonest = Some(soonest.map_or(free, |s| s.min(free)));
                uplink.turns.push_back(to);
                continue;
            }
            let (job, bytes) = (*job, segment.min(*left));
            *left -= bytes;
            let last = *left == 0;
            if last {
                queue.pop_front();
            }
            match queue.is_empty() {
                true => drop(uplink.queues.remove(&to)),
                false => uplink.turns.push_back(to),
            }
            return Next::Send(job, bytes, last);
        }
        soonest.map_or(Next::Idle, Next::Wait)
    }

    /// Books the receiver's downlink; says when the last bit is there.
    fn book_downlink(&mut self, to: u32, bytes: u64, sent: Time) -> Time {
        let now = self.clock.now();
        let node = &mut self.nodes[to as usize];
        let start = node.down_free.max(now);
        node.down_free = start + transfer_us(bytes, node.down_rate);
        node.down_free.max(sent) + self.scenario.peer_latency_us
    }

    pub(super) fn serve_uplink(&mut self, n: u32) {
        let now = self.clock.now();
        if self.nodes[n as usize].uplink.busy || !self.nodes[n as usize].alive {
            return;
        }
        let mut uplink = std::mem::replace(&mut self.nodes[n as usize].uplink, Uplink::new(0.0));
        let next = self.next_segment(&mut uplink);
        uplink.busy = !matches!(next, Next::Idle);
        let rate = uplink.rate;
        self.nodes[n as usize].uplink = uplink;
        let (job, bytes, last) = match next {
            Next::Send(job, bytes, last) => (job, bytes, last),
            Next::Idle => return,
            Next::Wait(at) => {
                self.clock.at(at, Event::UplinkFree { node: n });
                return;
            }
        };
        let cut = self.nodes[n as usize].cut_until > now || self.nodes[job.to as usize].cut_until > now;
        let Some(mut crc) = self.nodes[n as usize].verified[job.piece as usize].filter(|_| !cut) else {
            // The way is cut, or the piece was discarded since it was asked for.
            let (kind, us) = if cut { (FailureKind::Unreachable, CONNECT_US) } else { (FailureKind::NotHave, 0) };
            self.end_if_current(&job, kind, us);
            self.clock.after(0, Event::UplinkFree { node: n });
            return;
        };
        let sent = now + transfer_us(bytes, rate);
        self.clock.at(sent, Event::UplinkFree { node: n });
        let at = self.book_downlink(job.to, bytes, sent);
        if last {
            if self.rng.chance(self.nodes[n as usize].corrupt_ppm) {
                crc = Crc64(!crc.0);
            }
            let source = Source::Peer(peer(n));
            self.clock.at(at, Event::Arrived { job, crc, source });
        }
    }

    pub(super) fn serve_origin(&mut self) {
        let now = self.clock.now();
        if self.origin.uplink.busy {
            return;
        }
        let mut uplink = std::mem::replace(&mut self.origin.uplink, Uplink::new(0.0));
        let next = self.next_segment(&mut uplink);
        uplink.busy = !matches!(next, Next::Idle);
        let rate = uplink.rate;
        self.origin.uplink = uplink;
        let (job, bytes, last) = match next {
            Next::Send(job, bytes, last) => (job, bytes, last),
            Next::Idle => return,
            Next::Wait(at) => {
                self.clock.at(at, Event::OriginFree);
                return;
            }
        };
        let broken = last && self.rng.chance(self.origin.breaks_ppm);
        if broken || self.nodes[job.to as usize].cut_until > now {
            self.end_if_current(&job, FailureKind::OriginTransient, self.scenario.origin_latency_us);
            self.clock.after(0, Event::OriginFree);
            return;
        }
        let sent = now + transfer_us(bytes, rate);
        self.clock.at(sent, Event::OriginFree);
        self.origin.sent_bytes += bytes;
        self.origin.last_sent = sent;
        let at = self.book_downlink(job.to, bytes, sent);
        if !last {
            return;
        }
        let mut crc = self.truth[job.piece as usize];
        if let Some(reads) = self.origin.corrupt.get_mut(&job.piece).filter(|reads| **reads > 0) {
            *reads -= 1;
            crc = Crc64(!crc.0);
        }
        self.clock.at(at, Event::Arrived { job, crc, source: Source::Origin });
        if job.piece + 1 < job.end {
            self.push_get(Job { piece: job.piece + 1, ..job });
        }
    }
}
