//! What comes to a node ahead of its readers, and what goes when there is no room for it.
//!
//! Beside what they read now, a quarter of the room is for what the readers of the node need next, or as much as they
//! read now: all of that may end at the same time. The rest keeps what was read: a group goes only when something else
//! needs its place, first those of which another node has a copy, then those that nobody needs. A last copy that
//! somebody still needs moves to a node that has room. Only when no node has any, and a reader waits, is the one dropped
//! that is needed last, be it by that reader, to be read from the origin again; and no last copy goes without the
//! origin's word that it still holds the object.

use std::collections::BTreeSet;

use millstream_types::{NodeId, RunSet, Time};

use super::moves::{Lack, Moves};
use super::{Group, Window, Word};
use crate::Core;
use crate::catalog::{Dataset, Replica, Wanted};
use crate::limits::{AHEAD_PART, ASK_GROUPS_MAX, KEPT_FOR_US};

/// A node's room for a version.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Its share, of so much for all versions that are read there, of which others have so much.
    share: u64,
    total: u64,
    beside: u64,
    /// Bytes there, on their way there, or being dropped.
    occupied: u64,
    /// Of those, being dropped.
    going: u64,
    /// Groups that may be dropped if others allow it.
    here: Vec<Group>,
    /// What readers there have open.
    in_use: BTreeSet<Group>,
}

impl Shelf {
    /// What is lacking for so many bytes more.
    fn short_of(&self, bytes: u64) -> u64 {
        (self.occupied + self.beside + bytes).saturating_sub(self.total)
    }

    fn free(&self) -> u64 {
        self.total.saturating_sub(self.occupied + self.beside)
    }

    /// Are others to make room for so many bytes more?
    fn may_ask(&self, bytes: u64) -> bool {
        self.beside > 0 && !self.in_use.is_empty() && self.occupied + bytes <= self.share
    }

    pub(super) fn going(&self) -> u64 {
        self.going
    }
}

impl Core {
    /// Every node with readers: after something changed that may let others move.
    /// True when something is to come somewhere: then the nodes are to be served.
    pub(crate) fn refill_all(&mut self, ds: &mut Dataset, now: Time) -> bool {
        let nodes = ds.window.as_ref().map(|w| w.nodes()).unwrap_or_default();
        let mut moved = false;
        for node in nodes {
            moved |= self.refill(ds, now, node);
        }
        moved
    }

    /// Brings a node what its readers need next, and makes room for it.
    pub(crate) fn refill(&mut self, ds: &mut Dataset, now: Time, node: NodeId) -> bool {
        let Some(window) = ds.window.take() else {
            return false;
        };
        let open = ds.replica(node).is_some_and(|r| r.inventoried && r.refused.is_none());
        let up = self.nodes.get(node).is_some_and(|n| n.serves());
        let read = window.rooms.contains_key(&node);
        let (moves, lack) =
            if open && up && read { self.plan_moves(ds, now, &window, node) } else { Default::default() };
        self.lacks.extend(lack);
        ds.window = Some(window);
        let comes = !moves.come.is_empty() || moves.hand.is_some();
        self.carry_moves(ds, now, node, moves);
        comes
    }

    fn plan_moves(&self, ds: &Dataset, now: Time, window: &Window, node: NodeId) -> (Moves, Option<Lack>) {
        let mut shelf = self.shelf(ds, now, window, node);
        let sequence = window.sequence(node);
        let mut moves = Moves::default();
        let in_use = shelf.in_use.len();
        let lack = |bytes, at| Some(Lack { dataset: ds.id, node, bytes, at, urgent: at < in_use });
        let reading: u64 = shelf.in_use.iter().map(|&g| ds.group_bytes(g)).sum();
        let most = (shelf.share / AHEAD_PART).max(reading.min(shelf.share.saturating_sub(reading) / 2));
        let mut ahead = 0;
        for (at, &group) in sequence.iter().enumerate() {
            let bytes = ds.group_bytes(group);
            // What is being read comes in any case, and the room ahead is for what comes after it.
            if !shelf.in_use.contains(&group) {
                ahead += bytes;
                if ahead > most {
                    break;
                }
            }
            if ds.is_here(node, group) || ds.is_coming(node, group) {
                continue;
            }
            let short = shelf.short_of(bytes);
            // What comes later waits, too: the soonest first.
            if short > 0 && shelf.may_ask(bytes) {
                return (moves, lack(short, at));
            }
            if short > 0 || ds.is_going(node, group) {
                self.make_room(ds, now, window, node, &shelf, short, at, at < in_use, &sequence, &mut moves);
                return (moves, None);
            }
            shelf.occupied += bytes;
            moves.come.push(group);
        }
        let over = shelf.short_of(0);
        if over > 0 && shelf.may_ask(0) {
            return (moves, lack(over, usize::MAX));
        }
        if over > 0 {
            self.make_room(ds, now, window, node, &shelf, over, usize::MAX, false, &sequence, &mut moves);
        }
        (moves, None)
    }

    /// Chooses what goes, so that `short` bytes become free. `at`: how many groups the reader has before it waits;
    /// `urgent`: it does wait. Says whether they become free, or may: something goes or will be asked or handed over.
    #[expect(clippy::too_many_arguments, reason = "one decision, with everything it looks at")]
    pub(super) fn make_room(
        &self,
        ds: &Dataset,
        now: Time,
        window: &Window,
        node: NodeId,
        shelf: &Shelf,
        short: u64,
        at: usize,
        urgent: bool,
        sequence: &[Group],
        moves: &mut Moves,
    ) -> bool {
        let mut lacking = short.saturating_sub(shelf.going);
        if lacking == 0 {
            return true;
        }
        let (mut copied, last): (Vec<Group>, Vec<Group>) =
            shelf.here.iter().partition(|&&g| self.copy_elsewhere(ds, now, node, g));
        // Among those with another copy: first what nobody needs, then what this node does not need, then what it
        // needs last.
        let turn = |g: &Group| sequence.iter().position(|s| s == g);
        let near = &sequence[..sequence.len().min(at.saturating_add(1))];
        copied.retain(|g| !near.contains(g));
        copied.sort_by_key(|g| {
            let mine = window.needed_on(node, *g);
            (window.need[*g as usize] > 0, mine, std::cmp::Reverse(turn(g).filter(|_| mine)))
        });
        let mut take = |g: Group, moves: &mut Moves| {
            lacking = lacking.saturating_sub(ds.group_bytes(g));
            moves.go.push(g);
            lacking == 0
        };
        if copied.into_iter().any(|g| take(g, moves)) {
            return true;
        }
        // Last copies of what nobody needs: with the origin's word.
        let (mine, last): (Vec<Group>, Vec<Group>) = last.into_iter().partition(|&g| window.needed_on(node, g));
        let mut asked = false;
        for &group in last.iter().filter(|&&g| window.need[g as usize] == 0) {
            match window.word(now, group) {
                Some(Word::Holds(_)) if take(group, moves) => return true,
                Some(Word::Asked(_)) => asked = true,
                Some(Word::Holds(_) | Word::Lacks(_)) => {}
                None if moves.ask.len() < ASK_GROUPS_MAX => moves.ask.push(group),
                None => {}
            }
        }
        if asked || shelf.going > 0 || !moves.go.is_empty() || !moves.ask.is_empty() {
            // Something will come of that.
            return true;
        }
        // Last copies that others need: to where there is room, best where they are needed.
        let mut needed: Vec<Group> = last.into_iter().filter(|&g| window.need[g as usize] > 0).collect();
        let already = needed.iter().any(|&g| window.nodes().iter().any(|&n| n != node && ds.is_coming(n, g)));
        if already {
            return true;
        }
        moves.hand = self.heir(ds, now, window, node, &needed);
        // A reader would wait for ever once all that is here is what it needs later.
        if needed.is_empty() && urgent {
            needed = mine;
        }
        if moves.hand.is_none() && at <= 1 {
            self.give_up_furthest(now, window, &needed, moves);
        }
        moves.hand.is_some() || !moves.go.is_empty() || !moves.ask.is_empty()
    }

    /// No node has room, and a reader waits: the group that is needed last goes, to be read from the origin again.
    fn give_up_furthest(&self, now: Time, window: &Window, needed: &[Group], moves: &mut Moves) {
        let distances = window.distances();
        let word = |g: Group| window.word(now, g);
        let held = needed.iter().copied().filter(|&g| !matches!(word(g), Some(Word::Lacks(_))));
        let furthest = held.max_by_key(|g| (distances.get(g), *g));
        match furthest.map(|g| (g, word(g))) {
            Some((g, Some(Word::Holds(_)))) => moves.go.push(g),
            Some((g, None)) => moves.ask.push(g),
            _ => {}
        }
    }

    /// A node with room for one of these groups.
    fn heir(
        &self,
        ds: &Dataset,
        now: Time,
        window: &Window,
        node: NodeId,
        groups: &[Group],
    ) -> Option<(Group, NodeId)> {
        let mut best = None;
        for &other in window.rooms.keys().filter(|&&n| n != node) {
            let open = ds.replica(other).is_some_and(|r| r.inventoried && r.refused.is_none());
            if !open || !self.nodes.get(other).is_some_and(|n| n.serves()) {
                continue;
            }
            let free = self.shelf(ds, now, window, other).free();
            let fits = groups.iter().copied().filter(|&g| ds.group_bytes(g) <= free && !ds.is_going(other, g));
            for group in fits {
                let score = (window.needed_on(other, group), free, std::cmp::Reverse(group), other);
                best = best.max(Some((score, group, other)));
            }
        }
        best.map(|(_, group, other)| (group, other))
    }

    pub(super) fn shelf(&self, ds: &Dataset, now: Time, window: &Window, node: NodeId) -> Shelf {
        let (share, in_use) = (window.rooms.get(&node).copied().unwrap_or(0), window.in_use(node));
        let (total, beside) = self.room_beside(ds, window, node);
        let mut shelf = Shelf { share, total, beside, in_use, ..Shelf::default() };
        let served = self.served_by(ds, node);
        for group in 0..ds.groups.len() as Group {
            let bytes = ds.group_bytes(group);
            if ds.is_going(node, group) {
                shelf.going += bytes;
            } else if ds.is_here(node, group) {
                let wanted = ds.replica(node).is_some_and(|r| ds.group_shards(group).any(|s| r.staged.wants(s)));
                let kept = window.kept.get(&(node, group)).is_some_and(|since| now.since(*since) < KEPT_FOR_US);
                if !wanted && !kept && !served.contains(group) && !shelf.in_use.contains(&group) {
                    shelf.here.push(group);
                }
            } else if !ds.is_coming(node, group) {
                continue;
            }
            shelf.occupied += bytes;
        }
        shelf
    }

    /// Groups that others are just getting from the node.
    fn served_by(&self, ds: &Dataset, node: NodeId) -> RunSet {
        let serving = self.nodes.get(node).map_or(&[][..], |n| &n.serving);
        let flights = serving.iter().filter_map(|&no| self.flights.get(no)).filter(|f| f.dataset == ds.id);
        let shard = |e: u32| ds.layout.shard_of(ds.extents[e as usize].pieces.start);
        flights.map(|f| ds.group_of(shard(f.extent))).collect()
    }

    /// Another node has all of it, visible, and will keep it for now.
    fn copy_elsewhere(&self, ds: &Dataset, now: Time, node: NodeId, group: Group) -> bool {
        let shards = ds.group_shards(group);
        ds.members().filter(|(n, _)| *n != node).any(|(other, replica)| {
            replica.sealed.contains_range(shards.clone())
                && self.copies_on(ds, now, other).contains_range(shards.clone())
        })
    }
}

impl Dataset {
    pub(super) fn group_bytes(&self, group: Group) -> u64 {
        self.layout.range_bytes(self.group_pieces(group))
    }

    pub(super) fn on(&self, node: NodeId, test: impl FnOnce(&Replica) -> bool) -> bool {
        self.replica(node).is_some_and(test)
    }

    /// All of it is visible on the node, and stays.
    pub(super) fn is_here(&self, node: NodeId, group: Group) -> bool {
        let shards = self.group_shards(group);
        self.on(node, |r| r.sealed.contains_range(shards) && !self.is_going(node, group))
    }

    /// The node is to have it.
    pub(super) fn is_coming(&self, node: NodeId, group: Group) -> bool {
        let shard = self.group_shards(group).start;
        self.on(node, |r| r.wanted != Wanted::Nothing && r.wanted.wants(shard)) && !self.is_here(node, group)
    }

    /// The node was told to drop it.
    pub(super) fn is_going(&self, node: NodeId, group: Group) -> bool {
        let shards = self.group_shards(group);
        self.on(node, |r| r.dropping.count_range(shards) > 0)
    }
}
