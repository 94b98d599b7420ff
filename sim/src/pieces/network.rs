//! Bytes on their way: uplinks, the origin, what breaks there.

use std::collections::{BTreeMap, VecDeque};

use millstream_agent_core::event::{FailureKind, FetchId, Source};
use millstream_types::{Crc64, PieceNo, Time};

use super::{Event, World, peer};
use crate::clock::transfer_us;
use crate::coordinator::DATASET;

/// How far a receiver's downlink may be booked ahead before a sender turns to others: what switches buffer.
const BACKLOG_US: u64 = 2_000;
/// Waiting requests looked at for one whose receiver is ready.
const SCAN_MAX: usize = 64;
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

/// One sender: a piece at a time, first come first served among receivers that can take it.
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

/// The object store.
#[derive(Debug)]
pub(super) struct Origin {
    pub uplink: Uplink,
    pub sent_bytes: u64,
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
            throttled_until: Time::ZERO,
            breaks_ppm: 0,
            corrupt: BTreeMap::new(),
        }
    }
}

/// What an uplink does next.
enum Next {
    Send(Job),
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
        if node.verified[job.piece as usize].is_some() {
            node.uplink.jobs.push_back(job);
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
            self.origin.uplink.jobs.push_back(job);
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

    /// Takes the first job whose receiver can take it, and drops those that nobody waits for.
    fn next_job(&self, jobs: &mut VecDeque<Job>) -> Next {
        let now = self.clock.now();
        jobs.retain(|job| self.is_wanted(job));
        let mut soonest = None;
        for i in 0..jobs.len().min(SCAN_MAX) {
            let free = self.nodes[jobs[i].to as usize].down_free - BACKLOG_US;
            if free <= now {
                return jobs.remove(i).map_or(Next::Idle, Next::Send);
            }
            soonest = Some(soonest.map_or(free, |s: Time| s.min(free)));
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
        let mut jobs = std::mem::take(&mut self.nodes[n as usize].uplink.jobs);
        let next = self.next_job(&mut jobs);
        self.nodes[n as usize].uplink.jobs = jobs;
        let job = match next {
            Next::Send(job) => job,
            Next::Idle => return,
            Next::Wait(at) => {
                self.nodes[n as usize].uplink.busy = true;
                self.clock.at(at, Event::UplinkFree { node: n });
                return;
            }
        };
        if self.nodes[n as usize].cut_until > now || self.nodes[job.to as usize].cut_until > now {
            self.end_if_current(&job, FailureKind::Unreachable, CONNECT_US);
            self.nodes[n as usize].uplink.busy = true;
            self.clock.after(0, Event::UplinkFree { node: n });
            return;
        }
        let node = &mut self.nodes[n as usize];
        node.uplink.busy = true;
        let bytes = u64::from(self.layout.place(job.piece).len);
        let sent = now + transfer_us(bytes, node.uplink.rate);
        self.clock.at(sent, Event::UplinkFree { node: n });
        let Some(mut crc) = node.verified[job.piece as usize] else {
            // Discarded since it was asked for.
            self.end_if_current(&job, FailureKind::NotHave, 0);
            return;
        };
        if self.rng.chance(self.nodes[n as usize].corrupt_ppm) {
            crc = Crc64(!crc.0);
        }
        let at = self.book_downlink(job.to, bytes, sent);
        let source = Source::Peer(peer(n));
        self.clock.at(at, Event::Arrived { job, crc, source });
    }

    pub(super) fn serve_origin(&mut self) {
        let now = self.clock.now();
        if self.origin.uplink.busy {
            return;
        }
        let mut jobs = std::mem::take(&mut self.origin.uplink.jobs);
        let next = self.next_job(&mut jobs);
        self.origin.uplink.jobs = jobs;
        let job = match next {
            Next::Send(job) => job,
            Next::Idle => return,
            Next::Wait(at) => {
                self.origin.uplink.busy = true;
                self.clock.at(at, Event::OriginFree);
                return;
            }
        };
        self.origin.uplink.busy = true;
        let broken = self.rng.chance(self.origin.breaks_ppm) || self.nodes[job.to as usize].cut_until > now;
        if broken {
            self.end_if_current(&job, FailureKind::OriginTransient, self.scenario.origin_latency_us);
            self.clock.after(0, Event::OriginFree);
            return;
        }
        let bytes = u64::from(self.layout.place(job.piece).len);
        let sent = now + transfer_us(bytes, self.origin.uplink.rate);
        self.clock.at(sent, Event::OriginFree);
        self.origin.sent_bytes += bytes;
        let mut crc = self.truth[job.piece as usize];
        if let Some(reads) = self.origin.corrupt.get_mut(&job.piece).filter(|reads| **reads > 0) {
            *reads -= 1;
            crc = Crc64(!crc.0);
        }
        let at = self.book_downlink(job.to, bytes, sent);
        self.clock.at(at, Event::Arrived { job, crc, source: Source::Origin });
        if job.piece + 1 < job.end {
            self.origin.uplink.jobs.push_back(Job { piece: job.piece + 1, ..job });
        }
    }
}
