#!/usr/bin/env python3
"""Cold start of a whole cluster on shaped links: time of the last node against the lower bound T*.

N agents, a coordinator and an S3 server as processes of their own, each in a network namespace with a shaped link to
one bridge; a tmpfs per node, so that the network is what is measured. T* = max(D/S, D/min(B,W), N·D/(S+N·B)) with S
and B as iperf3 measures them on the same links in the same run. Origin egress is counted by the bridge.

    sudo benches/macro/cluster.py                     # 4@400, 8@200, 16@100 Mbit/s, origin at 1x and 4x the link
    sudo benches/macro/cluster.py --only 4@400 --factors 1 --repeats 3
"""

import hashlib
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import rig  # noqa: E402

ARRANGEMENTS = "4@400,8@200,16@100"
DATASET = "bench@v1"


class Cluster:
    """One arrangement: networks and servers stay, coordinator and agents are new for each run."""

    def __init__(self, program, nodes, rate_mbit, factor, shards, shard_bytes):
        self.program, self.nodes, self.shards, self.shard_bytes = program, nodes, shards, shard_bytes
        self.closing = []
        self.scratch = self.keep(rig.Scratch(tmpfs_bytes="64m"))
        self.network = self.keep(rig.Network())
        self.origin = self.network.add("origin", rate_mbit * factor)
        self.control = self.network.add("control")
        self.members = [self.network.add(f"n{i + 1}", rate_mbit) for i in range(nodes)]
        self.environment = rig.s3_environment(f"http://{self.origin.address}:9000")
        seeded = f"{shards}x{shard_bytes}"
        self.s3 = self.keep(rig.s3_server(self.origin, program, self.scratch.path / "s3", seeded, self.environment))
        self.coordinator = f"http://{self.control.address}:7070"

    def keep(self, thing):
        self.closing.append(thing)
        return thing

    def close(self):
        for thing in reversed(self.closing):
            thing.close()
        self.closing.clear()

    def cli(self, *arguments, timeout=60):
        command = [self.program, *arguments, "--coordinator", self.coordinator, "--json"]
        return json.loads(self.control.run(*command, timeout=timeout, env=self.environment))

    def rates(self, factor):
        """S and B, as bytes of payload per second, and W of a node's tmpfs."""
        link = self.network.goodput([(self.members[0], self.members[1])])
        targets = self.members[: min(factor, self.nodes)]
        origin = self.network.goodput([(self.origin, node) for node in targets])
        disk = rig.Scratch(tmpfs_bytes="512m")
        try:
            return origin, link, rig.write_rate(disk.path)
        finally:
            disk.close()

    def cold_start(self, number, check_bytes):
        """From nothing on any node to everything on all of them."""
        closing = []

        def keep(thing):
            closing.append(thing)
            return thing

        try:
            return self.measured(number, check_bytes, keep)
        finally:
            for thing in reversed(closing):
                thing.close()

    def measured(self, number, check_bytes, keep):
        total = self.shards * self.shard_bytes
        home = self.scratch.path / f"run{number}"
        coordinator = keep(
            rig.Daemon(
                self.control, self.program, "coordinator", home / "coordinator",
                "--grpc", f"{self.control.address}:7070", "--http", f"{self.control.address}:7071",
                "--state-dir", home / "state", environment=self.environment,
            )
        )  # fmt: skip
        disks = [keep(rig.Scratch(tmpfs_bytes=total * 2 + (64 << 20))) for _ in self.members]
        agents = []
        for host, disk in zip(self.members, disks):
            agents.append(
                keep(
                    rig.Daemon(
                        host, self.program, "agent", home / host.name, "--node", host.name,
                        "--coordinator", self.coordinator, "--data-dir", disk.path / "data",
                        "--listen", f"{host.address}:7072", "--http", "off", "--buffers", "128MiB",
                        environment=self.environment,
                    )
                )
            )  # fmt: skip
        up = lambda: sum(n["state"] == "up" for n in self.cli("status")["nodes"]) == self.nodes  # noqa: E731
        rig.wait_for("all agents at the coordinator", up)
        self.cli("dataset", "add", "bench", "s3://data/seeded/", "--version", "v1")

        wire, origin = self.network.sent_bytes(self.origin), rig.origin_bytes(self.s3, self.origin)
        daemons = [coordinator, *agents]
        cpu = [d.cpu_seconds() for d in daemons]
        began = time.monotonic()
        try:
            self.cli("stage", DATASET, "--nodes", "all", "--wait", "--timeout", "300s", timeout=330)
        except rig.RigError as error:
            raise RigFailed(f"{error}\n" + "\n".join(f"--- {d.log}\n{d.tail()}" for d in daemons)) from None
        seconds = time.monotonic() - began
        cpu = [d.cpu_seconds() - before for d, before in zip(daemons, cpu)]
        roots = [disk.path / "data" / "datasets" / DATASET for disk in disks]
        for root in roots:
            sizes = [f.stat().st_size for f in sorted(root.rglob("*")) if f.is_file()]
            if sizes != [self.shard_bytes] * self.shards:
                raise RigFailed(f"{root} has files of {sizes} bytes")
        if check_bytes:
            self.compare(roots)
        return {
            "seconds": round(seconds, 4),
            "origin_wire_ratio": round((self.network.sent_bytes(self.origin) - wire) / total, 4),
            "origin_ratio": round((rig.origin_bytes(self.s3, self.origin) - origin) / total, 4),
            "coordinator_cpu_s": round(cpu[0], 2),
            "agents_cpu_s_per_gib": round(sum(cpu[1:]) / (total * self.nodes / (1 << 30)), 3),
        }

    def compare(self, roots):
        """Every node has the same bytes; promise 1 is that they are the origin's."""
        sums = {tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(r.rglob("*")) if f.is_file()) for r in roots}
        if len(sums) != 1:
            raise RigFailed(f"the nodes' bytes differ: {sums}")


class RigFailed(rig.RigError):
    """What was measured did not do its work."""


def lower_bound(total, nodes, origin, link, disk):
    """T* and what sets it."""
    terms = {
        "origin": total / origin,
        "link": total / min(link, disk),
        "origin and links": nodes * total / (origin + nodes * link),
    }
    if disk < link:
        terms["disk"] = terms.pop("link")
    by = max(terms, key=terms.get)
    return terms[by], by


def arrangement(program, nodes, rate_mbit, factor, options):
    shard_bytes = (options.size_mib << 20) // options.shards
    total = shard_bytes * options.shards
    cluster = Cluster(program, nodes, rate_mbit, factor, options.shards, shard_bytes)
    try:
        origin, link, disk = cluster.rates(factor)
        bound, by = lower_bound(total, nodes, origin, link, disk)
        runs = []
        for number in range(options.repeats):
            result = cluster.cold_start(number, check_bytes=number == 0)
            result["ratio"] = round(result["seconds"] / bound, 4)
            runs.append(result)
            print(f"  {nodes}@{rate_mbit} origin x{factor} run {number + 1}: {result}", file=sys.stderr, flush=True)
    finally:
        cluster.close()
    return {
        "nodes": nodes,
        "link_mbit": rate_mbit,
        "origin_factor": factor,
        "bytes": total,
        "shards": options.shards,
        "origin_bytes_per_s": round(origin),
        "link_bytes_per_s": round(link),
        "disk_bytes_per_s": round(disk),
        "bound_s": round(bound, 4),
        "bound_by": by,
        "median_ratio": rig.median([r["ratio"] for r in runs]),
        "median_origin_wire_ratio": rig.median([r["origin_wire_ratio"] for r in runs]),
        "median_origin_ratio": rig.median([r["origin_ratio"] for r in runs]),
        "runs": runs,
    }


def main():
    parser = rig.arguments(__doc__, "cluster", repeats=5)
    parser.add_argument("--only", default=ARRANGEMENTS, help="NODES@MBIT, with commas between several")
    parser.add_argument("--factors", default="1,4", help="origin rate as a multiple of a link's rate")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args()
    rig.private_mounts()
    rig.need("iperf3", "ss", "mount")
    program = rig.binary(options.binary)
    results = []
    for text in options.only.split(","):
        nodes, rate = (int(part) for part in text.split("@"))
        for factor in (int(f) for f in options.factors.split(",")):
            results.append(arrangement(program, nodes, rate, factor, options))
    rig.write_result(options.out, {"bench": "cluster", "repeats": options.repeats, "results": results})


if __name__ == "__main__":
    rig.run_bench(main)
