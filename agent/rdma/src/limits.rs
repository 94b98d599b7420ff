//! Every limit of the verbs wall, with its reason.

use std::time::Duration;

/// One RDMA write: 64 KiB reach about a quarter of a fast link's rate, 1 MiB saturates it; more would only delay
/// the others in the queue.
pub const SEGMENT_BYTES: u32 = 1 << 20;
/// Work requests posted on one queue pair at once: a window of 16 of the largest pieces, with keys being bound and
/// revoked beside them. Further ones wait in memory.
pub const SEND_DEPTH: usize = 128;
/// Slots lent to the peer of one queue pair at once, each with a memory window: more than hides a round trip.
pub const LEASES_MAX: usize = 16;
/// Receives posted for the immediate values of all lent slots of a queue: every piece of the largest size has four
/// segments, and a piece has at most this many in all.
pub const SEGMENTS_PER_LEASE_MAX: u32 = 8;
/// See [`SEGMENTS_PER_LEASE_MAX`].
pub const RECEIVE_DEPTH: usize = LEASES_MAX * SEGMENTS_PER_LEASE_MAX as usize;
/// Queue pairs of one rail: two for each node of a large cluster's neighbourhood; a NIC's cache of connections is
/// of this order.
pub const QUEUES_MAX: usize = 1024;
/// Queue pairs of one rail that may fail in a row, nothing having worked in between, before the rail is paused: one
/// dead peer costs one of them.
pub const RAIL_FAULTS_MAX: u32 = 8;
/// Completions taken from one queue before others get their turn.
pub const COMPLETIONS_PER_TURN: usize = 32;
/// The longest that the completion thread spins after the last completion before it sleeps on the event channel:
/// about the cost of the wake-up that it saves.
pub const SPIN_MAX: Duration = Duration::from_micros(50);
/// How often a sleeping rail looks whether its device is still there: not every driver says so.
pub const LIVENESS_PERIOD: Duration = Duration::from_millis(250);
/// Ports of one device that are looked at.
pub const PORTS_MAX: u8 = 16;
/// GIDs of one port that are looked at: VLANs and addresses of a large host.
pub const GIDS_MAX: u32 = 256;
/// Acknowledgement timeout of a reliable connection, as 4.096 µs · 2^n: 0.27 s.
pub const ACK_TIMEOUT: u8 = 16;
/// Retries after that timeout: a peer that is gone is noticed after about two seconds.
pub const RETRIES: u8 = 6;
/// The field has three bits, and soft-RoCE takes its largest value as "for ever": a path that leads nowhere would never
/// be noticed.
pub const RETRIES_MAX: u8 = 6;
/// The receiver posts receives before it lends a slot, so a receiver that is not ready is a fault; a few retries
/// cover reordering.
pub const RNR_RETRIES: u8 = 6;
/// Wait that a receiver that is not ready asks for: code 12 is 0.64 ms.
pub const RNR_TIMER: u8 = 12;
/// Router hops of RoCE v2 and global InfiniBand routes.
pub const HOP_LIMIT: u8 = 64;
