//! Everything that the driver owns, and how inputs and time change it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use millstream_coordinator_core::Core;
use millstream_coordinator_core::event::{Event, NodeInfo};
use millstream_proto::v1::coordinator_message::Body as Order;
use millstream_proto::v1::{self, CoordinatorMessage};
use millstream_types::{DatasetId, DatasetRef, Digest, NodeId, StageId, Time};
use tokio::sync::mpsc;

use super::watch::Watchers;
use super::{Input, WeakHandle};
use crate::datasets::Datasets;
use crate::failure::ExitCode;
use crate::jobs::Jobs;
use crate::nodes::{Hello, Nodes, Refusal, SessionId};
use crate::observe::Observed;
use crate::observe::events::{Kind, Severity, Telling};
use crate::register::Unusable;
use crate::store::{StageRecord, StoreHandle};

/// What the driver needs to know of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) id: String,
    pub(crate) heartbeat_ms: u32,
    pub(crate) node_timeout_us: u64,
    pub(crate) alarm_hold_us: u64,
}

/// Events of the shell itself, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ShellCounters {
    /// Messages of agents that could not be understood.
    pub(crate) refused_messages: u64,
    /// Sessions ended because the agent did not keep up.
    pub(crate) overflows: u64,
    /// Agents that were refused.
    pub(crate) refused_sessions: u64,
    /// Indexes beside data that were older than the data.
    pub(crate) stale_indexes: u64,
    /// Indexes that could not be read.
    pub(crate) damaged_indexes: u64,
}

/// A stage as the shell knows it; how far it is, the core knows.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) record: StageRecord,
    pub(crate) dataset: DatasetId,
    pub(crate) nodes: Vec<NodeId>,
    /// When the core was told of it: what is counted is counted from then.
    pub(crate) told_unix_s: i64,
}

/// All state of the coordinator.
pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) core: Core,
    pub(crate) nodes: Nodes,
    pub(crate) datasets: Datasets,
    pub(crate) removed: HashMap<Digest, DatasetRef>,
    pub(crate) stages: BTreeMap<StageId, Stage>,
    pub(crate) next_stage: u64,
    /// Jobs of batch schedulers.
    pub(crate) jobs: Jobs,
    /// Why nodes cannot take versions.
    pub(crate) refusals: BTreeMap<(DatasetId, NodeId), (ExitCode, String)>,
    pub(crate) store: StoreHandle,
    pub(crate) watchers: Watchers,
    pub(crate) observed: Observed,
    pub(crate) counters: ShellCounters,
    /// How tasks that it starts reach it.
    pub(super) handle: Option<WeakHandle>,
    /// Nodes with messages that wait for the end of the round.
    pub(super) unsent: BTreeSet<NodeId>,
    next_sweep: Time,
}

impl State {
    pub(crate) fn new(settings: Settings, core: Core, store: StoreHandle) -> State {
        State {
            settings,
            core,
            nodes: Nodes::default(),
            datasets: Datasets::default(),
            removed: HashMap::new(),
            stages: BTreeMap::new(),
            next_stage: 1,
            jobs: Jobs::default(),
            refusals: BTreeMap::new(),
            store,
            watchers: Watchers::default(),
            observed: Observed::default(),
            counters: ShellCounters::default(),
            handle: None,
            unsent: BTreeSet::new(),
            next_sweep: Time::ZERO,
        }
    }

    /// When [`on_time`](Self::on_time) has something to do.
    pub(super) fn due(&self) -> Option<Time> {
        let sweep = self.nodes.connected().next().map(|_| self.next_sweep);
        let look = Some(self.observed.due());
        [self.core.poll_timeout(), sweep, self.watchers.due(), look].into_iter().flatten().min()
    }

    pub(super) fn apply(&mut self, now: Time, input: Input) {
        match input {
            // What an older session still had on its way is of no interest.
            Input::Agent { node, session, .. } if !self.nodes.is_current(node, session) => {}
            Input::Agent { node, body, .. } => self.take_message(now, node, *body),
            Input::Closed { node, session } => {
                if self.nodes.close(node, session) {
                    self.lost(now, node, "its session ended");
                }
            }
            Input::Call(call) => call(self, now),
        }
    }

    /// What happens by the passing of time.
    pub(super) fn on_time(&mut self, now: Time) {
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now);
        }
        if self.next_sweep <= now {
            self.next_sweep = now + u64::from(self.settings.heartbeat_ms) * 1_000;
            self.give_up_silent(now);
        }
        self.watch(now);
        self.observe(now);
    }

    fn give_up_silent(&mut self, now: Time) {
        let timeout = self.settings.node_timeout_us;
        let silent: Vec<_> = self
            .nodes
            .connected()
            .filter(|n| now.since(n.last_seen) > timeout)
            .filter_map(|n| Some((n.id, n.session.as_ref()?.id)))
            .collect();
        for (node, session) in silent {
            self.nodes.close(node, session);
            self.lost(now, node, "it fell silent");
        }
    }

    pub(super) fn lost(&mut self, now: Time, node: NodeId, why: &str) {
        tracing::warn!(node = self.nodes.name(node), why, "lost a node's session");
        self.core.handle_event(now, Event::NodeLost { node });
        self.verify_lost(node);
    }

    /// An agent stops, and says so: its work goes to others at once.
    pub(super) fn leaving(&mut self, now: Time, node: NodeId) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.session = None;
            let text = format!("{} is leaving: its agent stops", known.name);
            self.tell(Telling::new(Kind::Note, Severity::Info, text));
        }
        self.core.handle_event(now, Event::NodeGone { node });
        self.verify_lost(node);
    }

    /// Opens a session: greets the agent and asks for what it holds.
    pub(crate) fn open_session(
        &mut self,
        now: Time,
        hello: Hello,
        out: mpsc::Sender<CoordinatorMessage>,
    ) -> Result<(NodeId, SessionId), Refusal> {
        // Fresh: heard of within the time in which a live agent reports twice.
        let fresh_us = u64::from(self.settings.heartbeat_ms) * 2_500;
        let info = NodeInfo {
            name: hello.node.clone(),
            rack: hello.labels.get("rack").cloned().unwrap_or_default(),
            capacity_bytes: hello.capacity_bytes,
            used_bytes: 0,
            boot_id: hello.boot_id,
        };
        let digests = hello.digests.clone();
        let opened = self.nodes.open(now, hello, out, fresh_us);
        let opened = opened.inspect_err(|refusal| {
            self.counters.refused_sessions += 1;
            self.tell(Telling::new(Kind::Refused, Severity::Warning, format!("refused an agent: {refusal}")));
        })?;
        let node = opened.node;
        tracing::info!(node = info.name, replaced = opened.replaced, "a node joined");
        let welcome = Order::Welcome(v1::Welcome {
            coordinator: self.settings.id.clone(),
            heartbeat_ms: self.settings.heartbeat_ms,
            version: env!("CARGO_PKG_VERSION").into(),
        });
        // The channel is new: there is room.
        if let Some(node) = self.nodes.get(node) {
            node.push(CoordinatorMessage { body: Some(welcome) });
        }
        self.core.handle_event(now, Event::NodeUp { node, info });
        self.drain();
        for digest in digests {
            self.ask_inventory(node, digest);
        }
        Ok((node, opened.session))
    }

    /// A node has something of that version: attach it, so that it can serve; or remove it, when the version was
    /// removed while the node was away.
    fn ask_inventory(&mut self, node: NodeId, digest: Digest) {
        if let Some(dataset) = self.datasets.by_digest(digest).map(|d| d.id) {
            self.attach(node, dataset, None);
            return;
        }
        let Some(name) = self.removed.get(&digest).map(ToString::to_string) else {
            return;
        };
        let dataset = self.datasets.spare_number().0;
        let attach = v1::Attach { dataset, digest: digest.0.to_vec(), name, ..Default::default() };
        self.send(node, Order::Attach(attach));
        let evict = true;
        self.send(node, Order::Detach(v1::Detach { dataset, evict }));
    }

    /// Remembers something for people: on the status page, in the log and in the audit log.
    pub(crate) fn tell(&mut self, telling: Telling) {
        let line = self.told(telling);
        self.store.audit_line(line);
    }

    /// The same; the caller puts the line into the audit log, together with the change that it tells of.
    pub(crate) fn told(&mut self, telling: Telling) -> String {
        let text = &telling.text;
        match telling.severity() {
            Severity::Error => tracing::error!("{text}"),
            Severity::Warning => tracing::warn!("{text}"),
            Severity::Info => tracing::info!("{text}"),
        }
        self.observed.events.tell(unix_ms(), telling)
    }

    /// An index beside the data was left aside.
    pub(crate) fn index_left_aside(&mut self, url: &str, why: &Unusable) {
        match why {
            Unusable::Stale(_) => self.counters.stale_indexes += 1,
            Unusable::Damaged(_) => self.counters.damaged_indexes += 1,
        }
        let text = format!("the index beside {url} is left aside: {why}");
        self.tell(Telling::new(Kind::Note, Severity::Warning, text));
    }

    pub(super) fn stop(&mut self) {
        self.watchers.stop();
        for node in self.nodes.iter_mut() {
            node.session = None;
        }
    }
}

/// Seconds since 1970, for people.
pub(crate) fn unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Milliseconds since 1970, for people.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
