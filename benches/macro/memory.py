#!/usr/bin/env python3
"""Resident memory of agents while they move data: the most that each ever had, against its buffers and 64 MiB.

Three agents on loopback fetch from the project's S3 server and from each other, first a few large shards, then many
small ones. The kernel keeps the peak (VmHWM); nothing is sampled.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import rig  # noqa: E402

ALLOWANCE = 64 << 20
ARRANGEMENTS = {"large_shards": (16, 64 << 20), "small_shards": (20_000, 16 << 10)}


def arrangement(program, work, nodes, buffers_mib, shards, shard_bytes):
    host, daemons = rig.Nowhere(), []
    try:
        plain = rig.s3_environment("")
        server = rig.Daemon(host, program, "s3-server", work / "s3", "--seeded", f"{shards}x{shard_bytes}", environment=plain)
        daemons.append(server)
        environment = rig.s3_environment(server.ready["endpoint"])
        coordinator = rig.Daemon(
            host, program, "coordinator", work, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
            "--state-dir", work / "state", environment=environment,
        )  # fmt: skip
        daemons.append(coordinator)
        url = f"http://{coordinator.ready['grpc']}"
        agents = []
        for n in range(nodes):
            home = work / f"n{n + 1}"
            agents.append(
                rig.Daemon(
                    host, program, "agent", home, "--node", home.name, "--coordinator", url, "--data-dir", home / "data",
                    "--listen", "127.0.0.1:0", "--http", "off", "--buffers", f"{buffers_mib}MiB", environment=environment,
                )
            )  # fmt: skip
        daemons += agents
        cli = lambda *a: json.loads(rig.run([program, *a, "--coordinator", url, "--json"], timeout=600, env=environment))  # noqa: E731
        up = lambda: len([n for n in cli("status")["nodes"] if n["state"] == "up"]) == nodes  # noqa: E731
        rig.wait_for("the agents at the coordinator", up)
        idle = [a.peak_rss_bytes() for a in agents]
        cli("dataset", "add", "bench", "s3://data/seeded/", "--version", "v1")
        cli("stage", "bench@v1", "--wait", "--timeout", "600s")
        peaks = [a.peak_rss_bytes() for a in agents]
        beyond = max(peaks) - (buffers_mib << 20)
        return {
            "shards": shards,
            "bytes": shards * shard_bytes,
            "idle_rss_bytes": max(idle),
            "peak_rss_bytes": peaks,
            "beyond_buffers_bytes": beyond,
            "within_allowance": beyond <= ALLOWANCE,
            "coordinator_peak_rss_bytes": coordinator.peak_rss_bytes(),
        }
    finally:
        for daemon in reversed(daemons):
            daemon.close()


def main():
    parser = rig.arguments(__doc__, "memory")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--buffers-mib", type=int, default=64)
    parser.add_argument("--dir", help="where the nodes keep their data; default: target/bench")
    options = parser.parse_args()
    program = rig.binary(options.binary)
    parent = rig.disk(options.dir)
    results = {}
    for name, (shards, shard_bytes) in ARRANGEMENTS.items():
        scratch = rig.Scratch(parent=parent)
        try:
            results[name] = arrangement(program, scratch.path, options.nodes, options.buffers_mib, shards, shard_bytes)
        finally:
            scratch.close()
        print(f"  {name}: {results[name]}", file=sys.stderr, flush=True)
    rig.write_result(
        options.out,
        {
            "bench": "memory",
            "nodes": options.nodes,
            "buffers_bytes": options.buffers_mib << 20,
            "allowance_bytes": ALLOWANCE,
            "arrangements": results,
        },
    )


if __name__ == "__main__":
    rig.run_bench(main)
