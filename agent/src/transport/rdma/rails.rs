//! This node's rails: opened at the start, dropped when they fail, tried again after a cooldown.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use millstream_agent_core::cooldown::{Cooldowns, Trial};
use millstream_agent_core::rails::{RailFaults, RailView, choose_rail, nearer_rail};
use millstream_agent_core::wire::QueuePair;
use millstream_rdma::{Gid, Link, Mapping, Rail, RailOptions, RailState, RdmaError};
use millstream_types::Time;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::buffers::Arena;
use crate::config::RdmaMode;
use crate::counters::RdmaDevice;
use crate::limits::RAIL_LOOK_PERIOD;

const SYSFS: &str = "/sys/class/infiniband";

struct Up {
    rail: Rail,
    numa_node: Option<u32>,
}

#[derive(Default)]
struct State {
    up: Vec<Up>,
    cooldowns: Cooldowns,
    /// With which peers which rails failed.
    faults: RailFaults,
    /// A device was seen, now or earlier: doing without is then a fallback.
    seen: bool,
    /// Why the last attempt failed.
    reason: Option<&'static str>,
}

/// See the module's documentation.
pub(super) struct Rails {
    mode: RdmaMode,
    options: RailOptions,
    memory: [Arc<Arena>; 2],
    started: Instant,
    state: Mutex<State>,
}

impl std::fmt::Debug for Rails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.locked().up.iter().map(|up| &up.rail)).finish()
    }
}

/// Devices that the kernel lists, whether or not the library can use them.
fn listed() -> Vec<String> {
    let names = std::fs::read_dir(SYSFS).map(|dir| dir.flatten().map(|d| d.file_name().to_string_lossy().into()));
    let mut names: Vec<String> = names.map(Iterator::collect).unwrap_or_default();
    names.sort();
    names
}

impl Rails {
    pub(super) fn new(mode: RdmaMode, options: RailOptions, memory: [Arc<Arena>; 2]) -> Rails {
        Rails { mode, options, memory, started: Instant::now(), state: Mutex::default() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed().as_micros() as u64)
    }

    /// Drops rails that failed, opens those that may be tried.
    pub(super) async fn look(&self) {
        let wanted = match &self.mode {
            RdmaMode::Off => return,
            RdmaMode::Auto => listed(),
            RdmaMode::Device(name) => vec![name.clone()],
        };
        let now = self.now();
        let mut tries = Vec::new();
        {
            let mut state = self.locked();
            state.seen |= !wanted.is_empty();
            let mut failed = Vec::new();
            state.up.retain(|up| match *up.rail.state().borrow() {
                RailState::Up => true,
                RailState::Failed(fault) => {
                    failed.push((up.rail.device().to_owned(), fault.reason()));
                    false
                }
            });
            for (device, reason) in failed {
                state.reason = Some(reason);
                state.cooldowns.failed(&device, reason, now, rand::random());
            }
            for device in wanted {
                let is_up = state.up.iter().any(|up| up.rail.device() == device);
                if !is_up && state.cooldowns.trial(&device, now) == Trial::Go {
                    tries.push(device);
                }
            }
        }
        for device in tries {
            self.open(device).await;
        }
    }

    async fn open(&self, device: String) {
        let (options, memory, name) = (self.options, self.memory.clone(), device.clone());
        let opened = tokio::task::spawn_blocking(move || open(&name, options, memory)).await;
        let mut state = self.locked();
        match opened {
            Ok(Ok((up, took))) => {
                let again = state.cooldowns.worked(&device);
                state.reason = None;
                let bytes: u64 = self.memory.iter().map(|m| m.bytes()).sum();
                tracing::info!(
                    device, gid = %up.rail.gid().gid, kind = up.rail.gid().kind.as_str(), keys = ?up.rail.keys(),
                    registered_bytes = bytes, populating_ms = took.0.as_millis() as u64,
                    registration_ms = took.1.as_millis() as u64, again, "RDMA is up"
                );
                state.up.push(up);
            }
            Ok(Err(error)) => {
                let reason = error.reason();
                if state.reason != Some(reason) {
                    tracing::warn!(device, reason, %error, "RDMA cannot be used; pieces travel over TCP");
                }
                // "No such device" says less than why it went.
                if !(reason == "no-device" && state.reason.is_some()) {
                    state.reason = Some(reason);
                }
                let now = self.now();
                state.cooldowns.failed(&device, reason, now, rand::random());
            }
            Err(error) => tracing::error!(device, %error, "opening an RDMA device panicked"),
        }
    }

    /// See [`super::Rdma::lack`].
    pub(super) fn lack(&self) -> Result<(), Option<&'static str>> {
        let state = self.locked();
        if state.up.iter().any(|up| *up.rail.state().borrow() == RailState::Up) {
            return Ok(());
        }
        let failed = state.up.iter().find_map(|up| match *up.rail.state().borrow() {
            RailState::Failed(fault) => Some(fault.reason()),
            RailState::Up => None,
        });
        let seen = state.seen || state.reason.is_some();
        Err(failed.or(state.reason).or(seen.then_some("no-device")))
    }

    /// How many can be used now.
    pub(super) fn up(&self) -> u64 {
        self.locked().up.iter().filter(|up| *up.rail.state().borrow() == RailState::Up).count() as u64
    }

    /// The rail on which to ask a peer.
    pub(super) fn choose(&self, peer: &str) -> Option<Rail> {
        let state = self.locked();
        choose_rail(&self.views(&state, Some(peer), None), peer).map(|at| state.up[at].rail.clone())
    }

    /// The rail on which to answer a peer that has sent its address.
    pub(super) fn choose_answering(&self, peer: &str, address: &QueuePair) -> Option<Rail> {
        let state = self.locked();
        choose_rail(&self.views(&state, None, Some(address)), peer).map(|at| state.up[at].rail.clone())
    }

    /// A peer that was asked on `device` has answered from `address`: a rail that is on that network, when the first
    /// one is not.
    pub(super) fn nearer(&self, peer: &str, device: &str, address: &QueuePair) -> Option<Rail> {
        let state = self.locked();
        let asked = state.up.iter().position(|up| up.rail.device() == device)?;
        nearer_rail(&self.views(&state, Some(peer), Some(address)), peer, asked).map(|at| state.up[at].rail.clone())
    }

    fn views(&self, state: &State, asked: Option<&str>, address: Option<&QueuePair>) -> Vec<RailView> {
        let now = self.now();
        let view = |up: &Up| RailView {
            device: up.rail.device().to_owned(),
            distance: distance(up.numa_node),
            up: *up.rail.state().borrow() == RailState::Up
                && address.is_none_or(|a| a.infiniband == (up.rail.port().link == Link::InfiniBand)),
            faults: asked.map_or(0, |peer| state.faults.count(peer, up.rail.device(), now)),
            same_network: address.is_none_or(|a| up.rail.is_on_network(Gid(a.gid))),
            shared_prefix: address.map_or(0, |a| Gid(a.gid).common_prefix(up.rail.gid().gid)),
        };
        state.up.iter().map(view).collect()
    }

    /// A queue pair to `peer` over `device` carried a piece.
    pub(super) fn worked(&self, peer: &str, device: &str) {
        self.locked().faults.worked(peer, device);
    }

    /// A queue pair to `peer` over `device` failed, or there was none: the next one tries another rail, if there is
    /// one.
    pub(super) fn failed(&self, peer: &str, device: &str) {
        let now = self.now();
        self.locked().faults.failed(peer, device, now);
    }

    /// The devices: those in use, with what went over them, and those that are left alone for now.
    pub(super) fn devices(&self) -> Vec<RdmaDevice> {
        let (rails, waiting) = {
            let state = self.locked();
            let rails: Vec<Rail> = state.up.iter().map(|up| up.rail.clone()).collect();
            let waiting = state.cooldowns.waiting().map(|(device, reason)| (device.to_owned(), reason));
            (rails, waiting.collect::<Vec<_>>())
        };
        let is_used = |device: &str| rails.iter().any(|rail| rail.device() == device);
        let waiting = waiting.iter().filter(|(device, _)| !is_used(device)).map(|(device, reason)| RdmaDevice {
            device: device.clone(),
            state: (*reason).to_owned(),
            ..RdmaDevice::default()
        });
        rails.iter().map(described).chain(waiting).collect()
    }

    /// For the status: the devices with all counters they have.
    pub(super) fn describe(&self) -> Vec<Value> {
        let rails: Vec<Rail> = self.locked().up.iter().map(|up| up.rail.clone()).collect();
        let one = |device: &RdmaDevice| {
            let mut value = json!(device);
            value["confirmed"] = json!(device.is_confirmed());
            let rail = rails.iter().find(|rail| rail.device() == device.device);
            let counters = rail.map(Rail::hardware_counters).unwrap_or_default();
            value["counters"] = Value::Object(counters.into_iter().map(|(name, n)| (name, n.into())).collect());
            value
        };
        self.devices().iter().map(one).collect()
    }
}

fn described(rail: &Rail) -> RdmaDevice {
    let (port, gid, traffic) = (rail.port(), rail.gid(), rail.traffic());
    let state = match *rail.state().borrow() {
        RailState::Up => "up",
        RailState::Failed(fault) => fault.reason(),
    };
    RdmaDevice {
        device: rail.device().to_owned(),
        port: u32::from(port.number),
        state: state.to_owned(),
        gid: gid.gid.to_string(),
        kind: gid.kind.as_str().to_owned(),
        mtu_bytes: port.mtu_bytes(),
        queue_pairs: rail.queues() as u64,
        received_bytes: traffic.received_bytes,
        sent_bytes: traffic.sent_bytes,
        wire_received_bytes: traffic.wire_received_bytes,
        wire_sent_bytes: traffic.wire_sent_bytes,
    }
}

/// How far a device on this memory node is from the nodes that this process may use, as the firmware tells the kernel:
/// 0 when it is one of them, or not known.
fn distance(numa_node: Option<u32>) -> u32 {
    let (Some(node), Ok(status)) = (numa_node, std::fs::read_to_string("/proc/self/status")) else { return 0 };
    let row = std::fs::read_to_string(format!("/sys/devices/system/node/node{node}/distance")).unwrap_or_default();
    distance_by(node, &status, &row)
}

/// `status` is `/proc/self/status`; `row` has the distances from `node` to each node.
fn distance_by(node: u32, status: &str, row: &str) -> u32 {
    let list = status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:")).unwrap_or_default();
    let range = |text: &str| {
        let (first, last) = text.trim().split_once('-').unwrap_or((text.trim(), text.trim()));
        Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
    };
    let allowed: Vec<_> = list.split(',').filter_map(range).collect();
    let is_allowed = |node: u32| allowed.iter().any(|range| range.contains(&node));
    if allowed.is_empty() || is_allowed(node) {
        return 0;
    }
    let known = (0..).zip(row.split_whitespace()).filter(|(other, _)| is_allowed(*other));
    // Not told: farther than any neighbour.
    known.filter_map(|(_, far)| far.parse().ok()).min().unwrap_or(u32::from(u8::MAX))
}

/// Also how long it took to bring the memory in, and to register it.
fn open(device: &str, options: RailOptions, memory: [Arc<Arena>; 2]) -> Result<(Up, (Duration, Duration)), RdmaError> {
    if !Path::new(SYSFS).join(device).exists() {
        return Err(RdmaError::NoDevice { wanted: Some(device.to_owned()) });
    }
    let rail = Rail::open(device, options)?;
    let start = Instant::now();
    memory.iter().for_each(|arena| arena.populate());
    let populated = Instant::now();
    for arena in memory {
        rail.register(arena as Arc<dyn Mapping>)?;
    }
    Ok((Up { numa_node: rail.describe().numa_node, rail }, (populated - start, populated.elapsed())))
}

/// Looks after the rails until the node is gone.
pub(super) async fn keep(node: Weak<Node>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(RAIL_LOOK_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(node) = node.upgrade() else { return };
        node.rails.look().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_all_nodes_that_may_be_used_are_near() {
        let status = |list: &str| format!("Name:\tx\nMems_allowed_list:\t{list}\n");
        assert_eq!(distance_by(1, &status("0-1"), "21 10"), 0);
        assert_eq!(distance_by(1, &status("0"), "21 10"), 21);
        assert_eq!(distance_by(3, &status("0,2"), "32 21 12 10"), 12);
        assert_eq!(distance_by(3, &status("0"), ""), 255);
        assert_eq!(distance_by(3, "", "10"), 0, "not known");
    }
}
