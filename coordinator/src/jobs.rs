//! Jobs of batch schedulers: what each wants where, what it waited for, and where its bytes came from.
//!
//! Goals: a job that repeats itself changes nothing; one that ended stays ended; every byte moved is counted for
//! exactly one job as moved for it, and for the others that wanted it as shared. Non-goals: stages and nodes (the
//! driver's), which hook asked (the command line's).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use millstream_coordinator_core::event::{Placement, Source};
use millstream_types::{DatasetId, NodeId, Time};

use crate::limits::JOBS_ENDED_MAX;
use crate::store::{Change, JobRecord};

/// A version on a node.
pub(crate) type Place = (DatasetId, NodeId);

/// One want of a job, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    pub(crate) dataset: DatasetId,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) placement: Placement,
}

/// A job that has not ended.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    /// Order of asking: the first is the one that bytes are moved for.
    sequence: u64,
    pub(crate) wants: Vec<Want>,
    /// Places that are not ready yet.
    missing: BTreeSet<Place>,
    /// Bytes that were there when the place was asked for.
    found: BTreeMap<Place, u64>,
    /// When its nodes were allocated; `None` while pending.
    allocated: Option<Time>,
    /// Nodes where it has ended.
    done: BTreeSet<NodeId>,
    /// What the totals have of it: bytes found and milliseconds waited. Where nodes ask one by one it is ready several
    /// times.
    told: Option<(u64, u64)>,
}

impl Open {
    fn places(&self) -> BTreeSet<Place> {
        places(&self.wants)
    }
}

fn places(wants: &[Want]) -> BTreeSet<Place> {
    wants.iter().flat_map(|w| w.nodes.iter().map(|&n| (w.dataset, n))).collect()
}

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) record: JobRecord,
    pub(crate) open: Option<Open>,
}

impl Job {
    /// `pending`, `staging`, `ready` or `ended`.
    pub(crate) fn state(&self) -> &'static str {
        match &self.open {
            None => "ended",
            Some(open) if open.allocated.is_none() => "pending",
            Some(_) if self.record.waited_ms.is_none() => "staging",
            Some(_) => "ready",
        }
    }

    /// For how long it has been waiting.
    pub(crate) fn waiting_ms(&self, now: Time) -> u64 {
        self.open.as_ref().and_then(|o| o.allocated).map_or(0, |since| now.since(since) / 1_000)
    }
}

/// What all jobs together did since this process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) cache_bytes: u64,
    pub(crate) origin_bytes: u64,
    pub(crate) peer_bytes: u64,
    pub(crate) shared_bytes: u64,
    /// Jobs that became ready, and what they waited together.
    pub(crate) ready: u64,
    pub(crate) waited_ms: u64,
    pub(crate) ended: u64,
}

/// All jobs.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<String, Job>,
    /// Who wants a place, the first to ask first.
    wanted: HashMap<Place, BTreeMap<u64, String>>,
    touched: BTreeSet<DatasetId>,
    sequence: u64,
    pub(crate) totals: Totals,
}

impl Jobs {
    pub(crate) fn get(&self, job: &str) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// All, by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    pub(crate) fn open_count(&self) -> usize {
        self.jobs.values().filter(|j| j.open.is_some()).count()
    }

    /// Something of that version became ready on a node.
    pub(crate) fn touch(&mut self, dataset: DatasetId) {
        self.touched.insert(dataset);
    }

    /// Puts a job in the place of what is known of it. `found` says what is there already.
    pub(crate) fn open(&mut self, now: Time, record: JobRecord, wants: Vec<Want>, found: impl Fn(Place) -> u64) {
        let old = self.jobs.remove(&record.job);
        let again = old.as_ref().filter(|o| o.record.attempt == record.attempt).and_then(|o| o.open.clone());
        if let Some(open) = old.and_then(|o| o.open) {
            self.forget_places(&open);
        }
        let sequence = again.as_ref().map_or(self.sequence, |o| o.sequence);
        self.sequence = self.sequence.max(sequence + 1);
        let allocated = again.as_ref().and_then(|o| o.allocated).or((!record.pending).then_some(now));
        let done = again.as_ref().map(|o| o.done.clone()).unwrap_or_default();
        let told = again.as_ref().and_then(|o| o.told);
        let (missing, there) = (BTreeSet::new(), BTreeMap::new());
        let mut open = Open { sequence, wants, missing, found: there, allocated, done, told };
        let places = open.places();
        for &place in &places {
            let known = again.as_ref().and_then(|o| o.found.get(&place)).copied();
            open.found.insert(place, known.unwrap_or_else(|| found(place)));
            self.wanted.entry(place).or_default().insert(sequence, record.job.clone());
            self.touched.insert(place.0);
        }
        let mut record = record;
        record.cache_bytes = open.found.values().sum();
        let before = again.map(|o| o.places()).unwrap_or_default();
        if places != before {
            record.waited_ms = None;
        }
        if record.waited_ms.is_none() {
            open.missing = places;
        }
        self.jobs.insert(record.job.clone(), Job { record, open: Some(open) });
    }

    /// A job is done with a node; its wants that are not over by that. What was counted of the others stays.
    pub(crate) fn done_on(&mut self, job: &str, node: NodeId) -> Vec<Want> {
        let Some(open) = self.jobs.get_mut(job).and_then(|j| j.open.as_mut()) else {
            return Vec::new();
        };
        open.done.insert(node);
        let over = |w: &Want| w.nodes.iter().all(|n| open.done.contains(n));
        let (gone, left): (Vec<Want>, Vec<Want>) = open.wants.iter().cloned().partition(over);
        if left.is_empty() {
            return left;
        }
        open.wants = left.clone();
        let (kept, sequence) = (open.places(), open.sequence);
        open.missing.retain(|place| kept.contains(place));
        for place in places(&gone).difference(&kept) {
            self.forget_place(place, sequence);
        }
        left
    }

    /// Changes what is remembered of a job, and nothing else.
    pub(crate) fn describe(&mut self, record: JobRecord) {
        if let Some(job) = self.jobs.get_mut(&record.job) {
            job.record = record;
        }
    }

    /// Remembers a job that ended; a place for one that was never opened.
    pub(crate) fn end(&mut self, record: JobRecord) -> Vec<Change> {
        if let Some(open) = self.jobs.remove(&record.job).and_then(|old| old.open) {
            self.forget_places(&open);
            self.totals.ended += 1;
        }
        self.jobs.insert(record.job.clone(), Job { record, open: None });
        self.forget_oldest()
    }

    fn forget_oldest(&mut self) -> Vec<Change> {
        let ended = || self.jobs.values().filter(|j| j.open.is_none());
        let over = ended().count().saturating_sub(JOBS_ENDED_MAX);
        if over == 0 {
            return Vec::new();
        }
        let mut oldest: Vec<(Option<i64>, String)> =
            ended().map(|j| (j.record.ended_unix_s, j.record.job.clone())).collect();
        oldest.sort();
        oldest.truncate(over);
        oldest
            .into_iter()
            .map(|(_, job)| {
                self.jobs.remove(&job);
                Change::RemoveJob(job)
            })
            .collect()
    }

    fn forget_places(&mut self, open: &Open) {
        for place in open.places() {
            self.forget_place(&place, open.sequence);
        }
    }

    fn forget_place(&mut self, place: &Place, sequence: u64) {
        if let Some(jobs) = self.wanted.get_mut(place) {
            jobs.remove(&sequence);
            if jobs.is_empty() {
                self.wanted.remove(place);
            }
        }
    }

    /// Does another job want exactly this?
    pub(crate) fn wanted_by_another(&self, job: &str, want: &Want) -> bool {
        let Some(&node) = want.nodes.first() else {
            return false;
        };
        let others = self.wanted.get(&(want.dataset, node)).into_iter().flat_map(|jobs| jobs.values());
        others.filter(|other| *other != job).any(|other| {
            let open = self.jobs.get(other).and_then(|j| j.open.as_ref());
            open.is_some_and(|o| o.wants.contains(want))
        })
    }

    /// An allocated job that has the version there, in words.
    pub(crate) fn holder(&self, dataset: DatasetId, node: NodeId) -> Option<String> {
        let jobs = self.wanted.get(&(dataset, node))?.values().filter_map(|job| self.jobs.get(job));
        let done = |j: &Job| j.open.as_ref().is_none_or(|o| o.done.contains(&node));
        let job = jobs.into_iter().find(|j| !j.record.pending && !done(j))?;
        Some(format!("job {} of {}", job.record.job, job.record.user))
    }

    /// Bytes of a version arrived on a node.
    pub(crate) fn moved(&mut self, dataset: DatasetId, node: NodeId, bytes: u64, source: Source) {
        let Some(jobs) = self.wanted.get(&(dataset, node)) else {
            return;
        };
        for (place, job) in jobs.values().enumerate() {
            let Some(record) = self.jobs.get_mut(job).map(|j| &mut j.record) else {
                continue;
            };
            let (own, total) = match (place, source) {
                (0, Source::Origin) => (&mut record.origin_bytes, &mut self.totals.origin_bytes),
                (0, Source::Peer(_)) => (&mut record.peer_bytes, &mut self.totals.peer_bytes),
                _ => (&mut record.shared_bytes, &mut self.totals.shared_bytes),
            };
            *own += bytes;
            *total += bytes;
        }
    }

    /// Looks at jobs that wait for what was touched; those that became ready, as they are remembered.
    pub(crate) fn judge(&mut self, now: Time, ready: impl Fn(Place) -> bool) -> Vec<JobRecord> {
        if self.touched.is_empty() {
            return Vec::new();
        }
        let touched = std::mem::take(&mut self.touched);
        let mut done = Vec::new();
        for Job { record, open } in self.jobs.values_mut() {
            let Some(open) = open.as_mut() else { continue };
            // One that is not ready is enough to know that the job is not.
            while let Some(&place) = open.missing.first() {
                if !touched.contains(&place.0) || !ready(place) {
                    break;
                }
                open.missing.pop_first();
            }
            let Some(allocated) = open.allocated else { continue };
            if open.missing.is_empty() && record.waited_ms.is_none() {
                let waited_ms = now.since(allocated) / 1_000;
                record.waited_ms = Some(waited_ms);
                let (cache_before, waited_before) = open.told.unwrap_or_default();
                self.totals.ready += u64::from(open.told.is_none());
                self.totals.waited_ms += waited_ms.saturating_sub(waited_before);
                self.totals.cache_bytes += record.cache_bytes.saturating_sub(cache_before);
                open.told = Some((record.cache_bytes, waited_ms));
                done.push(record.clone());
            }
        }
        done
    }

    /// A version left the catalog: nobody has or waits for it any more.
    pub(crate) fn dataset_removed(&mut self, dataset: DatasetId) {
        self.wanted.retain(|(d, _), _| *d != dataset);
        for open in self.jobs.values_mut().filter_map(|j| j.open.as_mut()) {
            open.wants.retain(|w| w.dataset != dataset);
            open.missing.retain(|(d, _)| *d != dataset);
            open.found.retain(|(d, _), _| *d != dataset);
        }
    }

    /// A job of an earlier life of this process.
    pub(crate) fn restore(&mut self, record: JobRecord, wants: Vec<Want>) {
        if record.ended_unix_s.is_some() {
            self.jobs.insert(record.job.clone(), Job { record, open: None });
            return;
        }
        let (job, cache_bytes, waited_ms) = (record.job.clone(), record.cache_bytes, record.waited_ms);
        self.open(Time::ZERO, record, wants, |_| 0);
        let Some(Job { record, open: Some(open) }) = self.jobs.get_mut(&job) else { return };
        // What was counted before stays, also when its hook asks again; at which place it was found is not known.
        if let Some(found) = open.found.values_mut().next() {
            *found = cache_bytes;
        }
        (record.cache_bytes, record.waited_ms) = (cache_bytes, waited_ms);
        if let Some(waited_ms) = waited_ms {
            open.missing.clear();
            open.told = Some((cache_bytes, waited_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: DatasetId = DatasetId(1);
    const N: [NodeId; 3] = [NodeId(0), NodeId(1), NodeId(2)];

    fn record(job: &str, pending: bool) -> JobRecord {
        JobRecord { job: job.into(), user: "ada".into(), pending, ..JobRecord::default() }
    }

    fn want(nodes: &[NodeId]) -> Vec<Want> {
        vec![Want { dataset: D, nodes: nodes.to_vec(), placement: Placement::Replicate }]
    }

    #[test]
    fn bytes_are_moved_for_the_first_and_shared_with_the_rest() {
        let mut jobs = Jobs::default();
        jobs.open(Time(0), record("z", false), want(&N), |_| 5);
        jobs.open(Time(0), record("a", false), want(&N[..2]), |_| 0);
        jobs.moved(D, N[0], 10, Source::Origin);
        jobs.moved(D, N[1], 20, Source::Peer(N[0]));
        jobs.moved(D, N[2], 40, Source::Peer(N[0]));
        jobs.moved(DatasetId(9), N[0], 1, Source::Origin);
        let of = |job: &str| {
            let r = &jobs.get(job).unwrap().record;
            (r.cache_bytes, r.origin_bytes, r.peer_bytes, r.shared_bytes)
        };
        assert_eq!((of("z"), of("a")), ((15, 10, 60, 0), (0, 0, 0, 30)));
        jobs.end(record("z", false));
        jobs.moved(D, N[0], 7, Source::Origin);
        assert_eq!(jobs.get("a").unwrap().record.origin_bytes, 7);
    }

    #[test]
    fn a_pending_job_does_not_wait_until_it_is_allocated() {
        let mut jobs = Jobs::default();
        jobs.open(Time(0), record("j", true), want(&N), |_| 0);
        assert_eq!(jobs.get("j").unwrap().state(), "pending");
        assert!(jobs.judge(Time(5_000_000), |_| true).is_empty());
        assert!(jobs.holder(D, N[0]).is_none());
        jobs.open(Time(9_000_000), record("j", false), want(&N[..1]), |_| 0);
        assert_eq!(jobs.get("j").unwrap().state(), "staging");
        assert!(jobs.holder(D, N[0]).is_some() && jobs.holder(D, N[1]).is_none());
        let ready = jobs.judge(Time(9_250_000), |_| true);
        assert_eq!(ready[0].waited_ms, Some(250));
        assert_eq!(jobs.get("j").unwrap().state(), "ready");
        // Asking again changes nothing.
        let again = jobs.get("j").unwrap().record.clone();
        jobs.open(Time(11_000_000), again.clone(), want(&N[..1]), |_| 99);
        assert_eq!(jobs.get("j").unwrap().record, again);
    }

    #[test]
    fn one_place_that_is_not_ready_keeps_the_job_waiting() {
        let mut jobs = Jobs::default();
        jobs.open(Time(0), record("j", false), want(&N), |_| 0);
        assert!(jobs.judge(Time(1), |(_, n)| n != N[1]).is_empty());
        jobs.touch(D);
        assert_eq!(jobs.judge(Time(2), |_| true).len(), 1);
    }

    #[test]
    fn a_want_is_shared_only_when_it_is_the_same() {
        let mut jobs = Jobs::default();
        jobs.open(Time(0), record("a", false), want(&N), |_| 0);
        jobs.open(Time(0), record("b", false), want(&N[..2]), |_| 0);
        let (all, two) = (want(&N).remove(0), want(&N[..2]).remove(0));
        assert!(jobs.wanted_by_another("b", &all) && jobs.wanted_by_another("a", &two));
        assert!(!jobs.wanted_by_another("a", &all));
        jobs.end(record("a", false));
        assert!(!jobs.wanted_by_another("b", &all));
    }

    #[test]
    fn a_want_of_several_nodes_is_over_with_the_last_of_them() {
        let mut jobs = Jobs::default();
        jobs.open(Time(0), record("a", false), want(&N[..2]), |_| 0);
        assert_eq!(jobs.done_on("a", N[0]).len(), 1);
        assert!(jobs.holder(D, N[0]).is_none() && jobs.holder(D, N[1]).is_some());
        assert!(jobs.done_on("a", N[1]).is_empty());
    }

    #[test]
    fn nodes_that_ask_one_by_one_are_one_job_that_waited_once() {
        let mut jobs = Jobs::default();
        let each = |nodes: &[NodeId]| nodes.iter().flat_map(|&n| want(&[n])).collect::<Vec<_>>();
        jobs.open(Time(0), record("j", false), each(&N[..1]), |_| 3);
        assert_eq!(jobs.judge(Time(2_000_000), |_| true)[0].waited_ms, Some(2_000));
        let first = jobs.get("j").unwrap().record.clone();
        jobs.open(Time(3_000_000), first, each(&N[..2]), |_| 4);
        assert_eq!(jobs.judge(Time(5_000_000), |_| true)[0].waited_ms, Some(5_000));
        let totals = jobs.totals;
        assert_eq!((totals.ready, totals.waited_ms, totals.cache_bytes), (1, 5_000, 7));
        // That one of them is done changes nothing of what was counted, however long the job ran.
        assert_eq!(jobs.done_on("j", N[0]), want(&N[1..2]));
        jobs.touch(D);
        assert!(jobs.judge(Time(90_000_000), |_| true).is_empty());
        let record = &jobs.get("j").unwrap().record;
        assert_eq!((record.waited_ms, record.cache_bytes, jobs.totals), (Some(5_000), 7, totals));
        jobs.moved(D, N[0], 10, Source::Origin);
        assert_eq!(jobs.get("j").unwrap().record.origin_bytes, 0, "it wants nothing there any more");
    }

    #[test]
    fn what_was_found_outlives_a_restart() {
        let mut jobs = Jobs::default();
        let known = JobRecord { cache_bytes: 9, waited_ms: Some(40), ..record("j", false) };
        jobs.restore(known.clone(), want(&N));
        jobs.open(Time(1), jobs.get("j").unwrap().record.clone(), want(&N), |_| 0);
        assert_eq!(jobs.get("j").unwrap().record, known);
        jobs.touch(D);
        assert!(jobs.judge(Time(2), |_| true).is_empty());
    }

    #[test]
    fn ended_jobs_are_forgotten_oldest_first() {
        let mut jobs = Jobs::default();
        for n in 0..JOBS_ENDED_MAX as i64 {
            assert!(jobs.end(JobRecord { ended_unix_s: Some(n), ..record(&format!("j{n}"), false) }).is_empty());
        }
        let forgotten = jobs.end(JobRecord { ended_unix_s: Some(1 << 40), ..record("last", false) });
        assert!(matches!(&forgotten[..], [Change::RemoveJob(job)] if job == "j0"));
        assert!(jobs.get("j0").is_none() && jobs.get("last").is_some());
    }
}
