#!/usr/bin/env bash
# Goodput of the TCP carrier beside iperf3, between two network namespaces joined by an unshaped veth pair.
#
#   benches/macro/transport.sh [RUNS] [SECONDS]
#
# Runs alternate, so that both see the same machine. Prints one JSON object with medians and ratios, and writes it to
# benches/results/transport.json. Needs root, iproute2, iperf3, python3. BIN overrides the binary; CONNECTIONS
# and FROM (memory|file) are passed on. INFLIGHT_MIB: what is asked for before it arrives, by default as much as an agent
# asks of one peer (two pipelines of 8 MiB).
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-5} seconds=${2:-3}
connections=${CONNECTIONS:-2} inflight_mib=${INFLIGHT_MIB:-16} from=${FROM:-memory}
if [[ -z ${BIN:-} ]]; then
    cargo build --release -q -p millstream-benches --bin piece_transport
    BIN=${CARGO_TARGET_DIR:-target}/release/piece_transport
fi
command -v iperf3 >/dev/null || { echo "iperf3 is missing: apt-get install iperf3" >&2; exit 1; }

a=mspt-a-$$ b=mspt-b-$$ work=$(mktemp -d) pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT
ip netns add "$a"
ip netns add "$b"
ip -n "$a" link add v0 type veth peer name v0 netns "$b"
ip -n "$a" addr add 10.77.0.1/24 dev v0
ip -n "$b" addr add 10.77.0.2/24 dev v0
for ns in "$a" "$b"; do ip -n "$ns" link set lo up; ip -n "$ns" link set v0 up; done
in_ns() { local ns=$1; shift; nsenter --net="/run/netns/$ns" "$@"; }
ready() { # PORT in namespace a
    for _ in $(seq 200); do in_ns "$a" ss -Hltn "sport = :$1" | grep -q . && return; sleep 0.05; done
    echo "nothing listens on port $1" >&2
    exit 1
}

nsenter --net="/run/netns/$a" iperf3 -s -p 5201 >/dev/null 2>&1 & pids+=($!)
ready 5201
for ((run = 0; run < runs; run++)); do
    # -R: the server sends, as in our case.
    in_ns "$b" iperf3 -c 10.77.0.1 -p 5201 -R -t "$seconds" -J >"$work/iperf.$run.json"
    for piece in 4194304 524288; do
        # Not through the function: its process id would be a subshell's.
        nsenter --net="/run/netns/$a" "$BIN" server --listen 10.77.0.1:7072 --piece "$piece" --from "$from" >"$work/server.$piece.$run.json" & server=$!
        pids+=($server)
        ready 7072
        in_ns "$b" "$BIN" client --peer 10.77.0.1:7072 --piece "$piece" --seconds "$seconds" \
            --connections "$connections" --inflight $((inflight_mib * 1048576 / piece)) >"$work/client.$piece.$run.json"
        kill -TERM "$server"
        wait "$server"
    done
done

mkdir -p benches/results
python3 - "$work" "$runs" "$from" "$connections" "$inflight_mib" <<'PY' | tee benches/results/transport.json
import json, statistics, sys
work, runs, source, connections, inflight_mib = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
load = lambda name: [json.load(open(f"{work}/{name}.{run}.json")) for run in range(runs)]
median = lambda values: statistics.median(list(values))
iperf = load("iperf")
rate = median(r["end"]["sum_received"]["bits_per_second"] / 8 for r in iperf)
cpu = median(
    (r["end"]["cpu_utilization_percent"]["host_total"] + r["end"]["cpu_utilization_percent"]["remote_total"]) / 100
    * r["end"]["sum_received"]["seconds"] / (r["end"]["sum_received"]["bytes"] / 2**30) for r in iperf)
out = {"bench": "transport", "runs": runs, "from": source, "connections": int(connections), "inflight_mib": int(inflight_mib),
       "iperf3": {"goodput_bytes_per_s": rate, "cpu_s_per_gib": cpu}}
for piece in (4194304, 524288):
    client, server = load(f"client.{piece}"), load(f"server.{piece}")
    ours = median(r["goodput_bytes_per_s"] for r in client)
    out[f"piece_{piece}"] = {
        "goodput_bytes_per_s": ours, "ratio_to_iperf3": round(ours / rate, 3),
        "client_cpu_s_per_gib": median(r["cpu_s_per_gib"] for r in client),
        "server_cpu_s_per_gib": median(r["cpu_s_per_gib"] for r in server)}
print(json.dumps(out))
PY
