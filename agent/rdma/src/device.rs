//! What RDMA devices there are, with their ports and addresses.

use std::ffi::c_int;
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;

use rdma_sys::{ibv_context, ibv_device, ibv_device_attr, ibv_gid, ibv_port_attr, ibv_port_state};

use crate::error::RdmaError;
use crate::library::{Library, library};
use crate::limits::{GIDS_MAX, PORTS_MAX};

/// A port's address, 128 bits. Prints like an IPv6 address, which it is on RoCE v2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// How many leading bits two addresses share: more mean more likely the same fabric.
    pub fn common_prefix(self, other: Gid) -> u32 {
        (u128::from_be_bytes(self.0) ^ u128::from_be_bytes(other.0)).leading_zeros()
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What carries the packets of a GID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GidKind {
    /// InfiniBand.
    InfiniBand,
    /// RoCE v1: Ethernet frames, one broadcast domain.
    RoceV1,
    /// RoCE v2: UDP, routable.
    RoceV2,
}

impl GidKind {
    /// `ib`, `roce-v1`, `roce-v2`.
    pub fn as_str(self) -> &'static str {
        match self {
            GidKind::InfiniBand => "ib",
            GidKind::RoceV1 => "roce-v1",
            GidKind::RoceV2 => "roce-v2",
        }
    }
}

/// One entry of a port's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Its place in the table.
    pub index: u8,
    /// The address.
    pub gid: Gid,
    /// What carries it.
    pub kind: GidKind,
    /// The network interface, on Ethernet.
    pub interface: Option<String>,
}

/// What a port is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE.
    Ethernet,
    /// Something that this version does not know, by its number.
    Other(u8),
}

/// A port's logical state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Usable.
    Active,
    /// No cable, or the interface is down.
    Down,
    /// Coming up: a subnet manager may be missing.
    Initializing,
    /// Something else, by its number.
    Other(u32),
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// From 1.
    pub number: u8,
    /// Its state.
    pub state: PortState,
    /// What it is connected to.
    pub link: Link,
    /// Bytes of one packet's payload, as the code of `ibv_mtu` (5 is 4096).
    pub mtu_code: u32,
    /// InfiniBand's local identifier.
    pub lid: u16,
    /// Its addresses; empty entries are left out.
    pub gids: Vec<GidEntry>,
}

impl Port {
    /// The address that peers should use: routable before local, IPv4-mapped before others, RoCE v2 before v1.
    pub fn best_gid(&self) -> Option<&GidEntry> {
        let rank = |entry: &&GidEntry| {
            let link_local = entry.gid.0[0] == 0xfe && entry.gid.0[1] & 0xc0 == 0x80;
            let mapped = entry.gid.0[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            match entry.kind {
                GidKind::InfiniBand => (0, entry.index),
                GidKind::RoceV2 if mapped => (0, entry.index),
                GidKind::RoceV2 if !link_local => (1, entry.index),
                GidKind::RoceV2 => (2, entry.index),
                GidKind::RoceV1 => (3, entry.index),
            }
        };
        self.gids.iter().min_by_key(rank)
    }

    /// Payload bytes of a packet.
    pub fn mtu_bytes(&self) -> u32 {
        // 1 is 256, 5 is 4096; what is not known counts as the smallest.
        if (1..=5).contains(&self.mtu_code) { 128 << self.mtu_code } else { 256 }
    }
}

/// A device as it was seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `mlx5_0`, `rxe0`, …
    pub name: String,
    /// The memory node that it is attached to.
    pub numa_node: Option<u32>,
    /// Keys can be memory windows of type 2, bound to one queue pair; otherwise they are small registrations.
    pub windows: bool,
    /// Reliable connections: not all devices that the kernel lists have them (EFA has none).
    pub queue_pairs: u32,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// Lists all devices, opening each for a moment. Devices that cannot be opened are left out and logged.
///
/// # Errors
/// [`RdmaError::Library`], or [`RdmaError::NoDevice`] when there is none.
pub fn discover() -> Result<Vec<Device>, RdmaError> {
    let list = List::get()?;
    let mut devices = Vec::new();
    for &device in list.devices() {
        match Open::new(list.library, device) {
            Ok(open) => devices.push(open.describe()),
            Err(error) => tracing::debug!(%error, "an RDMA device cannot be looked at"),
        }
    }
    if devices.is_empty() {
        return Err(RdmaError::NoDevice { wanted: None });
    }
    Ok(devices)
}

/// The library's list of devices.
pub(crate) struct List {
    library: &'static Library,
    list: *mut *mut ibv_device,
    len: usize,
}

impl List {
    pub(crate) fn get() -> Result<List, RdmaError> {
        let library = library()?;
        let mut len: c_int = 0;
        // SAFETY: `len` is a place for one c_int.
        let list = unsafe { (library.get_device_list)(&raw mut len) };
        if list.is_null() {
            return Err(RdmaError::NoDevice { wanted: None });
        }
        Ok(List { library, list, len: usize::try_from(len).unwrap_or(0) })
    }

    fn devices(&self) -> &[*mut ibv_device] {
        // SAFETY: the library returned an array of `len` pointers, which live until the list is freed.
        unsafe { std::slice::from_raw_parts(self.list, self.len) }
    }

    /// Opens the device of that name.
    pub(crate) fn open(&self, name: &str) -> Result<Open, RdmaError> {
        let no_device = || RdmaError::NoDevice { wanted: Some(name.to_owned()) };
        let found = self.devices().iter().find(|d| device_name(**d) == name);
        Open::new(self.library, *found.ok_or_else(no_device)?)
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // SAFETY: got from `get_device_list`, freed once; open devices hold what they need of it.
        unsafe { (self.library.free_device_list)(self.list) }
    }
}

fn fixed_text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|c| *c as u8).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn device_name(device: *mut ibv_device) -> String {
    // SAFETY: an entry of a live list; its name is a fixed array.
    fixed_text(unsafe { &(*device).name })
}

/// An open device. Closed when dropped.
pub(crate) struct Open {
    pub(crate) library: &'static Library,
    pub(crate) context: *mut ibv_context,
    pub(crate) name: String,
    /// `uverbs0`: its entry in sysfs vanishes when the device is removed.
    pub(crate) node: String,
}

// SAFETY: libibverbs allows its objects to be used from any thread.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

impl Open {
    fn new(library: &'static Library, device: *mut ibv_device) -> Result<Open, RdmaError> {
        let name = device_name(device);
        // SAFETY: as for the name.
        let node = fixed_text(unsafe { &(*device).dev_name });
        // SAFETY: an entry of a live list.
        let context = unsafe { (library.open_device)(device) };
        if context.is_null() {
            return Err(RdmaError::Open { device: name, source: io::Error::last_os_error() });
        }
        Ok(Open { library, context, name, node })
    }

    /// Is it still there? Not every driver reports a removal.
    pub(crate) fn is_present(&self) -> bool {
        fs::symlink_metadata(format!("/sys/class/infiniband_verbs/{}", self.node)).is_ok()
    }

    fn attributes(&self) -> Option<ibv_device_attr> {
        let mut attributes = MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the context is open and the struct is large enough.
        let rc = unsafe { (self.library.query_device)(self.context, attributes.as_mut_ptr()) };
        // SAFETY: plain numbers, for which zeros are values; filled on success.
        (rc == 0).then(|| unsafe { attributes.assume_init() })
    }

    pub(crate) fn describe(&self) -> Device {
        let attributes = self.attributes();
        let ports = attributes.as_ref().map_or(1, |a| a.phys_port_cnt).min(PORTS_MAX);
        let windows = rdma_sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
            | rdma_sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0;
        let node = read(&format!("/sys/class/infiniband/{}/device/numa_node", self.name));
        Device {
            name: self.name.clone(),
            numa_node: node.and_then(|n| n.parse().ok()),
            windows: attributes.as_ref().is_some_and(|a| a.device_cap_flags & windows != 0 && a.max_mw > 0),
            queue_pairs: attributes.as_ref().map_or(0, |a| u32::try_from(a.max_qp).unwrap_or(0)),
            ports: (1..=ports).filter_map(|number| self.port(number)).collect(),
        }
    }

    /// The port now.
    pub(crate) fn port(&self, number: u8) -> Option<Port> {
        let mut attributes = MaybeUninit::<ibv_port_attr>::zeroed();
        // SAFETY: the context is open; the library fills at most the struct.
        let rc = unsafe { (self.library.query_port)(self.context, number, attributes.as_mut_ptr()) };
        if rc != 0 {
            return None;
        }
        // SAFETY: plain numbers, for which zeros are values; filled on success.
        let attributes = unsafe { attributes.assume_init() };
        let link = match attributes.link_layer {
            // 0: from drivers that know nothing else.
            0 | 1 => Link::InfiniBand,
            2 => Link::Ethernet,
            other => Link::Other(other),
        };
        let state = match attributes.state {
            ibv_port_state::IBV_PORT_ACTIVE => PortState::Active,
            ibv_port_state::IBV_PORT_DOWN => PortState::Down,
            ibv_port_state::IBV_PORT_INIT | ibv_port_state::IBV_PORT_ARMED => PortState::Initializing,
            other => PortState::Other(other),
        };
        let entries = u32::try_from(attributes.gid_tbl_len).unwrap_or(0).min(GIDS_MAX).min(256);
        Some(Port {
            number,
            state,
            link,
            mtu_code: attributes.active_mtu,
            lid: attributes.lid,
            gids: (0..entries).filter_map(|index| self.gid(number, link, index as u8)).collect(),
        })
    }

    /// One address, unless its place is empty.
    pub(crate) fn gid(&self, port: u8, link: Link, index: u8) -> Option<GidEntry> {
        let attribute = |what: &str| read(&format!("/sys/class/infiniband/{}/ports/{port}/{what}/{index}", self.name));
        // An empty place has no type, and asking the kernel for each of 1,024 would take long.
        let kind = match (link, attribute("gid_attrs/types")?.as_str()) {
            (Link::InfiniBand, _) => GidKind::InfiniBand,
            (_, "RoCE v2") => GidKind::RoceV2,
            _ => GidKind::RoceV1,
        };
        let mut gid = MaybeUninit::<ibv_gid>::zeroed();
        // SAFETY: the context is open, and `gid` is 16 bytes.
        let rc = unsafe { (self.library.query_gid)(self.context, port, c_int::from(index), gid.as_mut_ptr()) };
        if rc != 0 {
            return None;
        }
        // SAFETY: filled; any bytes are a GID.
        let gid = Gid(unsafe { gid.assume_init().raw });
        (gid != Gid::default()).then(|| GidEntry { index, gid, kind, interface: attribute("gid_attrs/ndevs") })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; whoever made something with it keeps it alive.
        let rc = unsafe { (self.library.close_device)(self.context) };
        if rc != 0 {
            tracing::debug!(device = self.name, rc, "closing an RDMA device failed");
        }
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u8, gid: [u8; 16], kind: GidKind) -> GidEntry {
        GidEntry { index, gid: Gid(gid), kind, interface: None }
    }

    #[test]
    fn routable_addresses_come_first() {
        let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 9, 0, 1];
        let port = Port {
            number: 1,
            state: PortState::Active,
            link: Link::Ethernet,
            mtu_code: 5,
            lid: 0,
            gids: vec![
                entry(0, local, GidKind::RoceV1),
                entry(1, local, GidKind::RoceV2),
                entry(2, mapped, GidKind::RoceV1),
                entry(3, mapped, GidKind::RoceV2),
            ],
        };
        assert_eq!(port.best_gid().map(|g| g.index), Some(3));
        assert_eq!(port.mtu_bytes(), 4096);
        assert_eq!(Port { mtu_code: 77, ..port }.mtu_bytes(), 256);
    }

    #[test]
    fn prefixes_are_compared() {
        let mut other = [9; 16];
        assert_eq!(Gid([9; 16]).common_prefix(Gid(other)), 128);
        other[15] = 8;
        assert_eq!(Gid([9; 16]).common_prefix(Gid(other)), 127);
    }

    /// On machines without RDMA, too, the answer is a value.
    #[test]
    fn absence_is_an_error_not_a_crash() {
        match discover() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(error) => assert!(["library-missing", "no-device"].contains(&error.reason()), "{error}"),
        }
    }
}
