//! Which addresses are on the network of a port: whoever has another one may be behind a router, or not there at all.

use std::ptr;

use crate::device::{Gid, GidEntry, GidKind};

/// InfiniBand's subnet, and IPv6's link.
const PREFIX_BITS: u32 = 64;
/// Before an IPv4 address in a GID.
const MAPPED_BITS: u32 = 96;

/// How many leading bits of a port's address name its network; `None` when nobody says.
pub(crate) fn network_bits(entry: &GidEntry) -> Option<u32> {
    let link_local = entry.gid.0[0] == 0xfe && entry.gid.0[1] & 0xc0 == 0x80;
    if entry.kind == GidKind::InfiniBand || link_local {
        return Some(PREFIX_BITS);
    }
    addresses().into_iter().find_map(|(gid, bits)| (gid == entry.gid).then_some(bits))
}

/// The addresses of this machine's interfaces, with their networks' bits.
fn addresses() -> Vec<(Gid, u32)> {
    let mut list = ptr::null_mut();
    // SAFETY: a place for one pointer.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next: *const libc::ifaddrs = list;
    // SAFETY: null, or an entry of the list, which lives until it is freed below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: both are null or addresses of their family, as long as the list.
        let pair = unsafe { (bytes(entry.ifa_addr), bytes(entry.ifa_netmask)) };
        if let (Some((address, before)), Some((mask, _))) = pair {
            found.push((Gid(address), before + (u128::from_be_bytes(mask) << before).leading_ones()));
        }
    }
    // SAFETY: got above, freed once.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// An address as it is in a GID, and how many bits precede it there.
///
/// # Safety
/// Null, or an address of its family.
unsafe fn bytes(socket: *const libc::sockaddr) -> Option<([u8; 16], u32)> {
    // SAFETY: the caller's promise; every address begins with its family.
    match i32::from(unsafe { socket.as_ref() }?.sa_family) {
        libc::AF_INET => {
            // SAFETY: as the family says.
            let address = unsafe { socket.cast::<libc::sockaddr_in>().read_unaligned() };
            let v4 = std::net::Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some((v4.to_ipv6_mapped().octets(), MAPPED_BITS))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { socket.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some((address.sin6_addr.s6_addr, 0))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, kind: GidKind) -> GidEntry {
        let gid = Gid(text.parse::<std::net::Ipv6Addr>().expect("an address").octets());
        GidEntry { index: 0, gid, kind, interface: None }
    }

    #[test]
    fn an_interface_says_how_wide_its_network_is() {
        assert_eq!(network_bits(&entry("::ffff:127.0.0.1", GidKind::RoceV2)), Some(104));
        assert_eq!(network_bits(&entry("::ffff:192.0.2.77", GidKind::RoceV2)), None, "not of this machine");
        assert_eq!(network_bits(&entry("fe80::1", GidKind::RoceV1)), Some(64));
        assert_eq!(network_bits(&entry("fec0:1::1", GidKind::InfiniBand)), Some(64));
    }
}
