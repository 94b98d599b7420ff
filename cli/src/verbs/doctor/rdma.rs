//! RDMA: what devices there are, and whether an agent could use them. Each is opened, and memory registered with it.

use std::fs;

use millstream_agent::transport::reasons::fix;
use serde_json::Value;

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
            let fix = fix(error.reason());
            return vec![Check::warn(NAME, format!("{}: {error}; TCP is used", listed.join(", ")), fix)];
        }
    };
    let unusable = listed.iter().filter(|name| found.iter().all(|d| d.name != **name)).map(|name| {
        Check::warn(NAME, format!("{name}: cannot be opened; TCP is used in its place"), fix("device-unusable"))
    });
    unusable.chain(found.iter().flat_map(device)).collect()
}

#[cfg(feature = "rdma")]
fn device(device: &millstream_agent::transport::rdma::Device) -> Vec<Check> {
    use millstream_agent::buffers::Arena;
    use millstream_agent::transport::rdma::{Rail, RailOptions};
    let name = &device.name;
    let failed = |reason: &str, text: String| Check::warn(NAME, format!("{name}: {text}; TCP is used"), fix(reason));
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

/// What a running agent says: why pieces went another way, and whether its devices confirm what it counts.
pub fn of_agent(status: &Value) -> Vec<Check> {
    let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut checks = Vec::new();
    for f in rows(&status["fallbacks"]).iter().filter(|f| f["from"] == "rdma") {
        let reason = text(&f["reason"]);
        let found = format!("{} pieces went over TCP since the agent began: {reason}", f["count"]);
        checks.push(Check::warn("rdma fallback", found, fix(&reason)));
    }
    for d in rows(&status["transport"]["rdma"]["devices"]) {
        let (name, state) = (text(&d["device"]), text(&d["state"]));
        let found = match d["confirmed"].as_bool() {
            _ if state != "up" => {
                checks.push(Check::warn("rdma device", format!("{name} is not used now: {state}"), fix(&state)));
                continue;
            }
            Some(_) => format!(
                "{name}: the agent received {} and sent {} bytes; the device counts {} and {}",
                d["received_bytes"], d["sent_bytes"], d["wire_received_bytes"], d["wire_sent_bytes"],
            ),
            None => format!("{name}: the device does not count bytes"),
        };
        checks.push(match d["confirmed"].as_bool() {
            Some(false) => Check::warn("rdma proof", found, "the bytes did not go over this device's wire; report it"),
            _ => Check::ok("rdma proof", found),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::doctor::Level;

    #[test]
    fn a_running_agent_is_asked() {
        let device = |state: &str, received: u64, wire: u64, confirmed: Value| {
            serde_json::json!({"device": "mlx5_0", "state": state, "received_bytes": received, "sent_bytes": 0,
                "wire_received_bytes": wire, "wire_sent_bytes": 0, "confirmed": confirmed})
        };
        let status = serde_json::json!({
            "fallbacks": [{"from": "rdma", "to": "tcp", "reason": "memlock", "count": 3},
                          {"from": "uring", "to": "blocking", "reason": "EPERM", "count": 1}],
            "transport": {"rdma": {"devices": [
                device("up", 5, 6, true.into()), device("up", 5, 4, false.into()), device("port-down", 0, 0, Value::Null),
            ]}},
        });
        let checks = of_agent(&status);
        let levels: Vec<(Level, &str)> = checks.iter().map(|c| (c.level, c.check)).collect();
        use Level::{Ok, Warn};
        assert_eq!(levels, [(Warn, "rdma fallback"), (Ok, "rdma proof"), (Warn, "rdma proof"), (Warn, "rdma device")]);
        assert!(checks[0].fix.as_ref().unwrap().contains("LimitMEMLOCK"), "{checks:?}");
        assert_eq!(of_agent(&Value::Null).len(), 0);
    }

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
