//! What a shell or a simulator may choose. Defaults come from [`limits`].

use crate::limits;

/// Settings of a [`Core`](crate::Core).
#[derive(Clone, Debug, PartialEq)]
pub struct CoreConfig {
    /// Silence before a node is suspected, in microseconds.
    pub heartbeat_timeout_us: u64,
    /// From suspect to down, in microseconds.
    pub down_us: u64,
    /// How long origin reads of a version wait for inventories of nodes that joined.
    pub inventory_grace_us: u64,
    /// How long origin reads wait for known nodes after a restart.
    pub reconnect_grace_us: u64,
    /// The coordinator restarted with stages on record: nodes may hold what would else be read again.
    pub recovering: bool,
    /// Control budget that grows extents.
    pub assignments_per_s: u64,
    /// Extent length to use, whatever the data; `None`: computed.
    pub extent_bytes: Option<u64>,
    /// Rate of a node's link as far as known before it is measured.
    pub link_bytes_per_s: f64,
    /// Origin leases in flight at first (and the fewest without throttling).
    pub origin_leases: u32,
    /// Most origin leases in flight.
    pub origin_leases_max: u32,
    /// Shortest origin lease in microseconds.
    pub lease_min_us: u64,
    /// Number of the first assignment: differs between incarnations, so that late reports meet no new number.
    pub first_assignment: u64,
}

impl Default for CoreConfig {
    fn default() -> CoreConfig {
        CoreConfig {
            heartbeat_timeout_us: limits::HEARTBEAT_TIMEOUT_US,
            down_us: limits::DOWN_US,
            inventory_grace_us: limits::INVENTORY_GRACE_US,
            reconnect_grace_us: limits::RECONNECT_GRACE_US,
            recovering: false,
            assignments_per_s: limits::ASSIGNMENTS_PER_S,
            extent_bytes: None,
            link_bytes_per_s: 1.25e9,
            origin_leases: 4,
            origin_leases_max: 4096,
            lease_min_us: 10_000_000,
            first_assignment: 1,
        }
    }
}
