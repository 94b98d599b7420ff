//! Chains: while nodes are few against the pieces of a version, every extent moves along the same line of nodes.
//!
//! A chain keeps every link busy all the time, which no tree does: each node receives from the one before it and
//! serves the one after it, and nobody else. That holds for what is fresh, for what some nodes have already, and after
//! accidents, by one rule: a node gets an extent from the nearest node before it that has it or is receiving it. (The
//! line is closed to a ring: before the first comes the last, whose uplink would idle.)
//!
//! A chain is as fast as its slowest link, so at every sweep that link is looked for: where much less came in than the
//! node before it had to give. Whoever is slow, not to be trusted or far behind goes to the end of the line, and stays
//! there when it has recovered: a place in the middle would make all behind it wait for what it lacks.

mod flow;

use millstream_types::{NodeId, Time};

pub(crate) use self::flow::Flow;
use crate::Core;
use crate::catalog::{Dataset, ExtentNo};
use crate::event::{NodeState, Source};
use crate::flight::Flight;
use crate::limits::{
    BLAME_US, CHAIN_ALTERNATES, CHAIN_NODES_MAX, CHAIN_PART, CHAIN_WINDOWS, HEAD_CALM_US, KEPT_UP_SWEEPS, LATE_EXTENTS,
    LATE_SWEEPS, SETTLING_SWEEPS, TICK_US,
};
use crate::membership::Node;
use crate::source::Found;

/// No node: what is asked for has no dependants yet.
pub(crate) const NOBODY: NodeId = NodeId(u32::MAX);

/// How much a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// As far as the others, and as fast.
    Steady,
    /// Behind them: it joined later.
    Late,
    /// Slow, or not to be trusted: it feeds nobody.
    Poor,
}

/// A place in the line; they are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    standing: Standing,
    /// When it was last sent to the end of the line.
    demoted: u32,
    rack: u32,
    pub(crate) node: NodeId,
}

impl Place {
    fn feeds(&self) -> bool {
        self.standing != Standing::Poor
    }
}

/// Somebody who has an extent or is receiving it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feeder {
    place: Place,
    holder: bool,
    /// It receives it from the origin.
    reads: bool,
}

/// The line as one extent runs through it: from the first who has it round the ring of steady nodes, then to the others.
/// (If those came before the ring is closed, the last steady node would feed two.)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ring {
    first: Place,
}

impl Ring {
    fn order(self, place: Place) -> impl Ord {
        (place != self.first, place.standing != Standing::Steady, place < self.first, place)
    }
}

/// A link at which a chain breaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Break {
    before: Option<NodeId>,
    node: NodeId,
    /// It feeds nobody.
    last: bool,
}

impl Core {
    /// Do the extents of this version move along a chain?
    pub(crate) fn chain(&self, ds: &Dataset) -> bool {
        let nodes = self.nodes.len();
        nodes <= CHAIN_NODES_MAX && CHAIN_PART * u64::from(nodes) * ds.layout.piece_len() <= ds.layout.bytes()
    }

    pub(crate) fn place(&self, ds: &Dataset, now: Time, node: NodeId) -> Place {
        let known = self.nodes.get(node);
        let poor = known.is_none_or(|n| n.is_poor(now));
        let standing = match ds.replica(node) {
            _ if poor => Standing::Poor,
            Some(replica) if replica.late => Standing::Late,
            _ => Standing::Steady,
        };
        Place { standing, demoted: known.map_or(0, |n| n.demoted), rack: known.map_or(0, |n| n.rack), node }
    }

    /// How many windows' bytes stages may order for a node. Steady nodes of a chain take part in all that is fresh, also
    /// while they are behind by what an accident cost.
    pub(crate) fn windows(&self, ds: &Dataset, node: &Node) -> u64 {
        match (self.chain(ds), node.was_poor) {
            (true, false) => CHAIN_WINDOWS,
            (true, true) => 1,
            (false, _) => 2,
        }
    }

    /// Lists who has an extent or is receiving it, not by way of `node`, in the order of the ring that is returned. Poor
    /// ones only where there is nobody else.
    pub(crate) fn list_feeders(&mut self, ds: &Dataset, now: Time, e: ExtentNo, node: NodeId) -> Option<Ring> {
        let mut feeders = std::mem::take(&mut self.scratch.feeders);
        feeders.clear();
        let extent = &ds.extents[e as usize];
        let fit = |node| self.nodes.get(node).is_some_and(|n| n.serves() && !n.quarantine.distrusted(now));
        if ds.checkable(e) {
            let holders = extent.have.iter().map(NodeId).filter(|&n| fit(n) && n != node);
            feeders.extend(holders.map(|n| Feeder { place: self.place(ds, now, n), holder: true, reads: false }));
        }
        let flights = extent.flights.iter().filter_map(|&no| self.flights.get(no));
        feeders.extend(flights.filter(|f| fit(f.node) && self.fed_without(ds, e, f.node, node)).map(|f| Feeder {
            place: self.place(ds, now, f.node),
            holder: false,
            reads: f.source == Source::Origin,
        }));
        if feeders.iter().any(|f| f.place.feeds()) {
            feeders.retain(|f| f.place.feeds());
        }
        let first = feeders.iter().min_by_key(|f| (!f.holder && !f.reads, f.place)).map(|f| f.place);
        let ring = first.map(|first| Ring { first });
        if let Some(ring) = ring {
            feeders.sort_unstable_by_key(|f| ring.order(f.place));
        }
        self.scratch.feeders = feeders;
        ring
    }

    /// Hangs all wanters behind those who have the extent or receive it: of feeders that were just listed.
    pub(crate) fn grow_chain(&mut self, ds: &mut Dataset, now: Time, e: ExtentNo, ring: Ring) -> bool {
        let mut wanters = std::mem::take(&mut self.scratch.wanters);
        wanters.sort_unstable_by_key(|w| ring.order(self.place(ds, now, w.node)));
        let feeders = std::mem::take(&mut self.scratch.feeders);
        let mut ahead = feeders.iter().map(|f| f.place).peekable();
        let mut before = None;
        let mut grown = false;
        for wanter in &wanters {
            let place = self.place(ds, now, wanter.node);
            match (wanter.full, place.standing) {
                (true, Standing::Steady) => break,
                (true, _) => continue,
                _ => {}
            }
            while let Some(feeder) = ahead.next_if(|&f| ring.order(f) < ring.order(place)) {
                before = Some(feeder.node);
            }
            let Some(parent) = before.filter(|&p| self.takes_children(p)) else {
                break;
            };
            // The one before its source, who takes over if that falls out. No others: their uplinks are needed.
            let alternates = match self.flight_on(ds, e, parent).map(|f| f.source) {
                Some(Source::Peer(above)) if above != wanter.node => vec![above],
                _ => Vec::new(),
            };
            if self.launch(ds, now, e, wanter.node, Source::Peer(parent), alternates, 0).is_none() {
                break;
            }
            grown = true;
            if place.feeds() {
                before = Some(wanter.node);
            }
        }
        self.scratch.wanters = wanters;
        self.scratch.feeders = feeders;
        grown
    }

    /// Another source for one node of a chain: the nearest one before it that does not depend on it.
    pub(crate) fn chain_source(
        &mut self,
        ds: &Dataset,
        now: Time,
        e: ExtentNo,
        node: NodeId,
        not: Option<NodeId>,
    ) -> Option<Found> {
        let ring = self.list_feeders(ds, now, e, node)?;
        let place = self.place(ds, now, node);
        // Who was cut off tries the same one again: it was not to blame.
        let not = not.filter(|_| !self.slanders(now, node));
        let mut feeders = std::mem::take(&mut self.scratch.feeders);
        feeders.retain(|f| Some(f.place.node) != not);
        // The nearest before it comes first.
        let before = feeders.partition_point(|f| ring.order(f.place) < ring.order(place));
        feeders.rotate_left(before);
        let found = feeders.last().map(|f| Found {
            source: f.place.node,
            alternates: feeders.iter().rev().skip(1).take(CHAIN_ALTERNATES).map(|f| f.place.node).collect(),
            holder: f.holder,
        });
        self.scratch.feeders = feeders;
        found
    }

    /// A source for a node that asks by itself: the end of the branch that hangs below the nearest one before it, so that
    /// no uplink carries the extent twice, whoever asked first.
    pub(crate) fn branch_end(&mut self, ds: &Dataset, now: Time, e: ExtentNo, node: NodeId) -> Option<Found> {
        let mut found = self.chain_source(ds, now, e, node, None)?;
        let flights = || ds.extents[e as usize].flights.iter().filter_map(|&no| self.flights.get(no));
        for _ in 0..self.nodes.len() {
            let below = |f: &&Flight| f.source == Source::Peer(found.source) && self.place(ds, now, f.node).feeds();
            let Some(next) = flights().find(below).map(|f| f.node) else {
                break;
            };
            found = Found { source: next, alternates: vec![found.source], holder: false };
        }
        Some(found)
    }

    /// Keeps the order of the line, once per sweep and when a node has just become poor: it goes to the end, and the
    /// chains go on without it.
    pub(crate) fn demote_poor(&mut self, now: Time) {
        self.sweeps = self.sweeps.wrapping_add(1);
        for node in (0..self.nodes.len()).map(NodeId) {
            let sweeps = self.sweeps;
            let Some(known) = self.nodes.get_mut(node) else {
                continue;
            };
            let poor = known.is_poor(now);
            let turned = poor && !known.was_poor;
            known.was_poor = poor;
            if poor {
                known.last_poor = Some(now);
            }
            if turned {
                known.demoted = sweeps;
                known.flow.lag = 0;
                self.lead_around(now, node, false);
            }
        }
    }

    /// Who is far behind the typical node goes to the end of the line, too.
    fn demote_late(&mut self, typical_flow: u64) {
        let sweeps = self.sweeps;
        for id in self.dataset_ids() {
            self.with(id, |core, ds| {
                let up = |n| core.nodes.get(n).is_some_and(|n| n.state != NodeState::Down);
                let mut missing = std::mem::take(&mut core.scratch.missing);
                missing.clear();
                let members = ds.members().filter(|(n, r)| r.wanted_bytes > 0 && r.refused.is_none() && up(*n));
                missing.extend(members.map(|(n, r)| (r.wanted_bytes.saturating_sub(r.ready_bytes), n)));
                let count = missing.len();
                if count > 0 {
                    let (_, &mut (typical, _), _) = missing.select_nth_unstable(count / 2);
                    let late = typical + (count as u64 + LATE_EXTENTS) * ds.target + LATE_SWEEPS * typical_flow;
                    for &(missing, node) in &missing {
                        let Some(replica) = ds.replica_mut(node) else {
                            continue;
                        };
                        let turned = !replica.late && missing > late;
                        replica.late = missing > late;
                        if let Some(known) = core.nodes.get_mut(node).filter(|_| turned) {
                            known.demoted = sweeps;
                        }
                    }
                }
                core.scratch.missing = missing;
            });
        }
    }

    /// Looks for the link where the flow breaks, once per sweep, and leads it around the node behind that link.
    pub(crate) fn watch_chains(&mut self, now: Time) {
        for id in self.dataset_ids() {
            let broken = self.with(id, |core, ds| core.chain(ds).then(|| core.find_break(ds, now)).flatten());
            if let Some(broken) = broken.flatten() {
                self.mend_chain(now, broken);
            }
        }
        let settled = |(at, b): &(Time, Break)| b.last && now.since(*at) >= u64::from(SETTLING_SWEEPS) * TICK_US;
        if let Some((_, Break { before: Some(before), .. })) = self.blamed.take_if(|blamed| settled(blamed)) {
            // Behind another source the last one keeps up.
            self.nodes.sends_slowly(before);
        }
        let (typical, poor) = self.typical_flow(now);
        self.demote_late(typical);
        for node in (0..self.nodes.len()).map(NodeId) {
            let mut recovered = false;
            if let Some(known) = self.nodes.get_mut(node) {
                // Those at the end of the line share what its last node can give.
                let keeps_up = known.flow.came > 0 && 2 * poor * known.flow.came >= typical;
                known.kept_up = if keeps_up { known.kept_up.saturating_add(1) } else { 0 };
                if known.slow_in.is_slow() && known.kept_up >= KEPT_UP_SWEEPS {
                    known.slow_in.clear();
                    recovered = true;
                }
                known.flow.turn();
            }
            if recovered {
                // What it could not get, it may be asking of others than it was told to.
                self.lead_around(now, node, true);
            }
        }
    }

    /// What came to the typical node that is not poor since the last sweep, and how many are poor.
    fn typical_flow(&mut self, now: Time) -> (u64, u64) {
        let mut flows = std::mem::take(&mut self.scratch.missing);
        flows.clear();
        let up = self.nodes.iter().filter(|(_, n)| n.serves());
        flows.extend(up.filter(|(_, n)| !n.is_poor(now)).map(|(node, n)| (n.flow.came, node)));
        let poor = self.nodes.iter().filter(|(_, n)| n.serves() && n.is_poor(now)).count() as u64;
        let middle = flows.len() / 2;
        let typical = match flows.is_empty() {
            true => 0,
            false => flows.select_nth_unstable(middle).1.0,
        };
        self.scratch.missing = flows;
        (typical, poor)
    }

    /// The first steady node to which much less came than the one before it had to give, and that one.
    fn find_break(&mut self, ds: &Dataset, now: Time) -> Option<Break> {
        let mut line = std::mem::take(&mut self.scratch.line);
        line.clear();
        let members = ds.members().map(|(n, _)| n).filter(|&n| self.nodes.get(n).is_some_and(|n| n.serves()));
        line.extend(members.map(|n| self.place(ds, now, n)).filter(|p| p.standing == Standing::Steady));
        line.sort_unstable();
        // Where the first reads nothing, the ring begins elsewhere, and the last one feeds it.
        let fed = line.first().and_then(|p| self.nodes.get(p.node)).is_some_and(|n| n.leases == 0);
        let mut before = line.get(1..).and_then(<[_]>::last).filter(|_| fed).map(|p| p.node);
        let mut found = None;
        for &Place { node, .. } in &line {
            let feeder = before.and_then(|b| self.nodes.get(b)).map(|b| (b.flow, b.flights.is_empty()));
            // Only where something was on its way all the time: what nobody asked for could not come.
            let asked = |n: &&mut Node| n.rate_in.busy_for(now).is_some_and(|us| us >= TICK_US) && n.flights.len() > 1;
            if let Some(known) = self.nodes.get_mut(node).filter(asked).filter(|n| before.is_some() || n.leases > 0) {
                let given = feeder.and_then(|(flow, has_all)| match has_all {
                    false => Some(flow.given()),
                    // It could give all that is missing.
                    true if flow.usual > 0 => Some(known.down_backlog.min(flow.usual)).map(|bytes| (bytes, bytes)),
                    true => {
                        let long = known.rate_in.busy_for(now).is_some_and(|us| us > TICK_US);
                        long.then_some((known.down_backlog, known.down_backlog))
                    }
                });
                let broken = known.flow.judge(given, ds.target);
                // Led to the end of the line, it first catches up.
                let settled = known.demoted == 0 || self.sweeps.wrapping_sub(known.demoted) > SETTLING_SWEEPS;
                let judged = settled && now >= if before.is_some() { self.judged_from } else { self.head_judged_from };
                if found.is_none() && judged && broken {
                    found = Some(Break { before, node, last: known.serving.is_empty() });
                }
            }
            before = Some(node);
        }
        self.scratch.line = line;
        found
    }

    /// Somebody was found to blame: what nodes lack they lack for its sake. What is ordered anew flows for a sweep before
    /// it is judged.
    pub(crate) fn excuse_lags(&mut self, now: Time) {
        self.judged_from = now + 2 * TICK_US - 1;
        self.nodes.iter_mut().for_each(|n| n.flow.lag = 0);
    }

    /// The chain goes on without `node`, which is slow or cut off (or `before` is: then the next one breaks, too).
    fn mend_chain(&mut self, now: Time, broken: Break) {
        self.counters.overdue += 1;
        let Break { before, node, last } = broken;
        let former = self.blamed.replace((now, broken)).filter(|(at, _)| now.since(*at) < BLAME_US).map(|(_, b)| b);
        if last && former.is_some_and(|b| b.last) {
            // Nobody waits for it: only to know that it is not the others' fault.
            self.nodes.receives_slowly(node);
            self.blamed = None;
            return;
        }
        let lag = self.nodes.get(node).map_or(0, |n| n.flow.lag);
        self.excuse_lags(now);
        if let Some(known) = self.nodes.get_mut(node).filter(|_| last) {
            // Changed places show whether it was to blame: sooner than the first time.
            known.flow.lag = lag / 2;
        }
        if before.is_none() {
            self.head_judged_from = now + HEAD_CALM_US;
            self.origin.disturbed(now);
            // It may be the origin: the next one is compared with what comes now.
            let now_usual = self.nodes.get(node).map_or(0, |n| n.flow.came);
            self.nodes.iter_mut().for_each(|n| (n.flow.before, n.flow.usual) = (now_usual, now_usual));
        }
        let wronged = former.filter(|b| !b.last && b.before == before && b.node != node).map(|b| b.node);
        match (before, wronged) {
            // It is the last one's link or its source's: with their places changed, it shows.
            (Some(before), _) if last => {
                if let Some(known) = self.nodes.get_mut(before) {
                    known.demoted = self.sweeps;
                }
                self.lead_around(now, before, false);
            }
            // What it gives is judged by nothing else for a while; what a node gets is, at every sweep.
            (Some(before), Some(wronged)) => {
                self.nodes.sends_slowly(before);
                if let Some(known) = self.nodes.get_mut(wronged) {
                    known.slow_in.clear();
                }
            }
            _ => self.nodes.receives_slowly(node),
        }
        self.demote_poor(now);
        self.serve_all(now);
    }

    /// What a node feeds, and what it was to get, finds the sources that fit its place at the end of the line. `anew`:
    /// it is told again even if they are the same.
    fn lead_around(&mut self, now: Time, node: NodeId, anew: bool) {
        let Some(known) = self.nodes.get(node) else {
            return;
        };
        let (mut serving, mut flights) = (known.serving.clone(), known.flights.clone());
        // In the order of asking, so that extents arrive in the order in which they are passed on.
        serving.sort_unstable_by_key(|&no| self.flights.get(no).map(|f| (f.started, f.id)));
        flights.sort_unstable_by_key(|&no| self.flights.get(no).map(|f| (f.started, f.id)));
        for no in serving.into_iter().chain(flights) {
            let Some((id, e, to, source)) = self.flights.get(no).map(|f| (f.dataset, f.extent, f.node, f.source))
            else {
                continue;
            };
            self.with(id, |core, ds| match source {
                _ if !core.chain(ds) => {}
                Source::Origin if anew => {}
                Source::Origin => core.stalled(no),
                Source::Peer(old) => {
                    if let Some(found) = core.chain_source(ds, now, e, to, None).filter(|f| anew || f.source != old) {
                        core.reassign(ds, now, no, Some(found));
                    }
                }
            });
        }
    }
}
