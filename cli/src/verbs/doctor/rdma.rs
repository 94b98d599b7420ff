//! RDMA: what devices there are, and whether an agent could use them. Each is opened, and memory registered with it.

use std::fs;

use super::Check;

const NAME: &str = "rdma";

/// What the kernel lists, whether or not it can be used.
fn listed() -> Vec<String> {
    let dir = fs::read_dir("/sys/class/infiniband");
    let mut names: Vec<String> = dir
        .map(|dir| dir.flatten().map(|d| d.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// One line per device.
pub fn checks() -> Vec<Check> {
    let listed = listed();
    if listed.is_empty() {
        return vec![Check::ok(
            NAME,
            "no device; pieces travel over TCP (a software device for tests: rdma link add rxe0 type rxe netdev IFACE)",
        )];
    }
    devices(&listed)
}

#[cfg(not(feature = "rdma"))]
fn devices(listed: &[String]) -> Vec<Check> {
    let fix = "install a binary with the cargo feature `rdma`";
    vec![Check::warn(NAME, format!("{}; this binary was built without RDMA, TCP is used", listed.join(", ")), fix)]
}

#[cfg(feature = "rdma")]
fn devices(listed: &[String]) -> Vec<Check> {
    use millstream_agent::transport::rdma::discover;
    let found = match discover() {
        Ok(found) => found,
        Err(error) => {
            let fix = fix_of(error.reason());
            return vec![Check::warn(NAME, format!("{}: {error}; TCP is used", listed.join(", ")), fix)];
        }
    };
    let unusable = listed.iter().filter(|name| found.iter().all(|d| d.name != **name)).map(|name| {
        Check::warn(NAME, format!("{name}: cannot be opened; TCP is used in its place"), fix_of("device-unusable"))
    });
    unusable.chain(found.iter().flat_map(device)).collect()
}

/// What to do about a reason code; `docs/rdma.md` has the same table.
#[cfg(feature = "rdma")]
fn fix_of(reason: &str) -> &'static str {
    match reason {
        "library-missing" => "apt install libibverbs1 ibverbs-providers (or rdma-core)",
        "no-device" | "device-unusable" => {
            "apt install ibverbs-providers; in a container pass /dev/infiniband through; look at dmesg"
        }
        "port-down" => "ip link set IFACE up; check the cable; on InfiniBand a subnet manager (opensm) must run",
        "no-gid" => "give the device's network interface an IP address",
        "memlock" => "set LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`",
        _ => "look at dmesg",
    }
}

#[cfg(feature = "rdma")]
fn device(device: &millstream_agent::transport::rdma::Device) -> Vec<Check> {
    use millstream_agent::buffers::Arena;
    use millstream_agent::transport::rdma::{Rail, RailOptions};
    let name = &device.name;
    let failed = |reason: &str, text: String| Check::warn(NAME, format!("{name}: {text}; TCP is used"), fix_of(reason));
    if device.queue_pairs == 0 || name.starts_with("efa") {
        let fix = "none in this version: EFA would need libfabric (docs/rdma.md)";
        return vec![Check::warn(NAME, format!("{name}: it has no reliable connections; TCP is used"), fix)];
    }
    let rail = match Rail::open(name, RailOptions::default()) {
        Ok(rail) => rail,
        Err(error) => return vec![failed(error.reason(), error.to_string())],
    };
    let arena = match Arena::new(super::machine::PROBE_ARENA_BYTES) {
        Ok(arena) => arena,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), "free some memory")],
    };
    if let Err(error) = rail.register(arena) {
        return vec![failed(error.reason(), error.to_string())];
    }
    let (port, gid) = (rail.port(), rail.gid());
    let mut checks = vec![Check::ok(
        NAME,
        format!(
            "{name} port {} works: {} {} on {}, {}-byte packets, keys by {:?}",
            port.number,
            gid.kind.as_str(),
            gid.gid,
            gid.interface.as_deref().unwrap_or("InfiniBand"),
            port.mtu_bytes(),
            rail.keys(),
        ),
    )];
    if port.mtu_bytes() < 4096 {
        checks.push(Check::warn(
            "rdma mtu",
            format!("{name}: packets of {} bytes", port.mtu_bytes()),
            "raise the MTU of the interface and its switches to 4200 or more (9000), for packets of 4096 bytes",
        ));
    }
    if port.link == millstream_agent::transport::rdma::Link::Ethernet && !name.starts_with("rxe") {
        checks.push(Check::ok(
            "rdma fabric",
            format!("{name}: RoCE needs PFC or ECN on NIC and switches; not visible from here (mlnx_qos -i IFACE)"),
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::doctor::Level;

    /// Whatever the machine has, the answer is lines, not a crash; without a device nothing is wrong.
    #[test]
    fn every_machine_gets_an_answer() {
        let checks = checks();
        assert!(!checks.is_empty());
        if listed().is_empty() {
            assert_eq!(checks[0].level, Level::Ok);
        }
    }
}
