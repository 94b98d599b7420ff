#!/usr/bin/env python3
"""A cold epoch on nodes that hold a part of the data (`placement=window`): what leaves the origin, how long trainers wait.

Agents, coordinator and S3 server as processes of their own, each in a network namespace with a shaped link to one
bridge. On every node a trainer reads tar shards through `millstream.stream.ShardStream`, without workers that would hide
a wait, and computes for as long as its rate says. Nothing is staged ahead; the epoch begins with empty disks.

    shared     one job: the nodes are its ranks and share the samples out; each shard is read by one node
    mixed      the same, with lanes that every rank meets: each shard is read by every node, a quarter of it each
    different  a job on each node: all read everything, each in an order of its own

A trainer has started when it has its first batch; waiting is the time within `next()` from then on, reading and
decoding included. The quota is the agent's `--capacity`; the disk is a tmpfs. Rates: links at --link-mbit, the origin at
--origin-factor times that; all trainers together read --load times what the origin or one link can carry. More cannot be
carried at the beginning, when no node has anything.

    sudo benches/macro/window.py --python target/test-python/full/bin/python --repeats 3
"""

import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import rig  # noqa: E402

DATASET = "bench@v1"
SAMPLE_BYTES = 64 << 10
BATCH = 32
MODES = ("shared", "mixed", "different")

TRAINER = """
import json, sys, time, millstream
from millstream.stream import ShardStream

given = json.loads(sys.argv[1])
ds = millstream.Client(given["socket"]).dataset("bench@v1")
data = ShardStream(
    ds, samples=given["samples"], shuffle=True, seed=given["seed"], rank=given["rank"], world_size=given["world"],
    lanes=given["lanes"], timeout=300,
)
reading = iter(data)
print("ready", flush=True)
sys.stdin.readline()
asked = time.monotonic()
step = given["step_s"]
taken, waits, started, due = 0, [], None, 0.0
while True:
    before = time.monotonic()
    sample = next(reading, None)
    after = time.monotonic()
    if started is not None:
        waits.append(after - before)
    elif taken + 1 == given["batch"]:
        started = after
    if sample is None:
        break
    assert sample["bin"].startswith(sample["__key__"].encode() + b" "), sample["__key__"]
    taken += 1
    if started is None:
        continue
    due = max(due, after) + step  # what was waited for is not caught up with
    time.sleep(max(0.0, due - time.monotonic()))
print(json.dumps({
    "samples": taken, "first_batch_s": started - asked, "seconds": after - started, "waited_s": sum(waits),
    "longest_wait_s": max(waits), "waits_over_10_ms": sum(w > 0.01 for w in waits),
}))
"""


def write_shards(directory, shards, samples):
    """Tar shards whose samples say who they are."""
    directory.mkdir(parents=True)
    noise = os.urandom(SAMPLE_BYTES)
    for shard in range(shards):
        with tarfile.open(directory / f"train-{shard:04d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in range(samples):
                name = f"{shard:04d}-{sample:04d}"
                content = f"{name} ".encode() + noise[len(name) + 1 :]
                entry = tarfile.TarInfo(f"{name}.bin")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return sum(path.stat().st_size for path in directory.iterdir())


class Cluster:
    """Networks and the origin; coordinator and agents are new for each epoch."""

    def __init__(self, program, options):
        self.program, self.options = program, options
        self.closing = []
        self.scratch = self.keep(rig.Scratch(tmpfs_bytes=(options.size_mib + 256) << 20))
        self.samples = (options.size_mib << 20) // options.shards // SAMPLE_BYTES
        self.total = write_shards(self.scratch.path / "origin" / "bench", options.shards, self.samples)
        self.network = self.keep(rig.Network())
        self.origin = self.network.add("origin", int(options.link_mbit * options.origin_factor))
        self.control = self.network.add("control")
        self.members = [self.network.add(f"n{i + 1}", options.link_mbit) for i in range(options.nodes)]
        self.environment = rig.s3_environment(f"http://{self.origin.address}:9000")
        self.s3 = self.keep(
            rig.Daemon(
                self.origin, program, "s3-server", self.scratch.path / "s3", "--listen", f"{self.origin.address}:9000",
                "--control", f"{self.origin.address}:9001", "--bucket", "data", "--from", self.scratch.path / "origin",
                environment=self.environment,
            )
        )  # fmt: skip
        self.url = f"http://{self.control.address}:7070"

    def keep(self, thing):
        self.closing.append(thing)
        return thing

    def close(self):
        while self.closing:
            self.closing.pop().close()

    def cli(self, *arguments, timeout=120):
        command = [self.program, *arguments, "--coordinator", self.url, "--json"]
        return json.loads(self.control.run(*command, timeout=timeout, env=self.environment))

    def start(self, number):
        """A coordinator and agents with nothing on their disks; their sockets."""
        home = self.scratch.path / f"run{number}"
        coordinator = self.keep(
            rig.Daemon(
                self.control, self.program, "coordinator", home / "coordinator",
                "--grpc", f"{self.control.address}:7070", "--http", f"{self.control.address}:7071",
                "--state-dir", home / "state", environment=self.environment,
            )
        )  # fmt: skip
        capacity = int(self.total * self.options.cache)
        sockets, daemons = [], [coordinator]
        for host in self.members:
            disk = self.keep(rig.Scratch(tmpfs_bytes=capacity + (64 << 20)))
            sockets.append(str(disk.path / "s"))
            daemons.append(
                self.keep(
                    rig.Daemon(
                        host, self.program, "agent", home / host.name, "--node", host.name, "--coordinator", self.url,
                        "--data-dir", disk.path / "data", "--listen", f"{host.address}:7072", "--http", "off",
                        "--buffers", "64MiB", "--socket", sockets[-1], "--capacity", capacity,
                        environment=self.environment,
                    )
                )
            )  # fmt: skip
        up = lambda: sum(n["state"] == "up" for n in self.cli("status")["nodes"]) == self.options.nodes  # noqa: E731
        rig.wait_for("all agents at the coordinator", up)
        self.cli("dataset", "add", "bench", "s3://data/bench/", "--version", "v1")
        self.cli("stage", DATASET, "--nodes", "all", "--placement", "window", "--wait", "--timeout", "60s")
        return sockets, daemons

    def epoch(self, number, mode):
        kept = len(self.closing)
        try:
            return self.measured(*self.start(number), mode)
        finally:
            while len(self.closing) > kept:
                self.closing.pop().close()

    def trainer(self, node, socket, mode):
        o = self.options
        together = mode != "different"
        link = o.link_mbit * 1e6 / 8
        rate = o.load * min(1.0, o.origin_factor) * link / o.nodes
        given = {
            "socket": socket, "samples": self.samples, "seed": 1 if together else 1 + node,
            "rank": node if together else 0, "world": o.nodes if together else 1,
            "lanes": {"shared": o.nodes * 2, "mixed": o.nodes + 1, "different": 4}[mode], "step_s": SAMPLE_BYTES / rate,
            "batch": BATCH,
        }  # fmt: skip
        environment = {k: v for k, v in self.environment.items() if k != "PYTHONPATH"}
        return self.members[node].spawn(
            o.python, "-c", TRAINER, json.dumps(given), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    def measured(self, sockets, daemons, mode):
        wire, origin = self.network.sent_bytes(self.origin), rig.origin_bytes(self.s3, self.origin)
        cpu = [d.cpu_seconds() for d in daemons]
        trainers = [self.trainer(node, socket, mode) for node, socket in enumerate(sockets)]
        try:
            for trainer in trainers:
                if trainer.stdout.readline() != "ready\n":
                    raise rig.RigError("a trainer did not start")
            began = time.monotonic()
            for trainer in trainers:
                trainer.stdin.write("go\n")
                trainer.stdin.flush()
            reports = []
            for trainer in trainers:
                line = trainer.stdout.readline()
                if not line:
                    tails = "\n".join(f"--- {d.log}\n{d.tail()}" for d in daemons)
                    raise rig.RigError(f"a trainer ended early\n{tails}")
                reports.append(json.loads(line))
            seconds = time.monotonic() - began
        finally:
            for trainer in trainers:
                rig.stop(trainer)
        expected = self.samples * self.options.shards // (1 if mode == "different" else self.options.nodes)
        if any(report["samples"] != expected for report in reports):
            raise rig.RigError(f"{[r['samples'] for r in reports]} samples, and {expected} were expected of each")
        waiting = [r["waited_s"] / r["seconds"] for r in reports]
        return {
            "mode": mode,
            "seconds": round(seconds, 2),
            "origin_ratio": round((rig.origin_bytes(self.s3, self.origin) - origin) / self.total, 4),
            "origin_wire_ratio": round((self.network.sent_bytes(self.origin) - wire) / self.total, 4),
            "waiting_part": round(sum(waiting) / len(waiting), 4),
            "waiting_part_worst": round(max(waiting), 4),
            "longest_wait_s": round(max(r["longest_wait_s"] for r in reports), 3),
            "waits_over_10_ms": sum(r["waits_over_10_ms"] for r in reports),
            "first_batch_s": round(max(r["first_batch_s"] for r in reports), 3),
            "cpu_s": round(sum(d.cpu_seconds() - before for d, before in zip(daemons, cpu)), 1),
        }


def main():
    parser = rig.arguments(__doc__, "window", repeats=3)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--link-mbit", type=int, default=400)
    parser.add_argument("--origin-factor", type=float, default=1.0, help="origin rate as a multiple of a link's rate")
    parser.add_argument("--load", type=float, default=0.8, help="trainers' rate, as a part of what links can carry")
    parser.add_argument("--cache", type=float, default=0.3, help="a node's quota, as a part of the data")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--python", default=sys.executable, help="a Python that has the package millstream")
    options = parser.parse_args()
    rig.private_mounts()
    rig.need("mount")
    program = rig.binary(options.binary)
    options.python = str(pathlib.Path(options.python).absolute())
    cluster = Cluster(program, options)
    runs = []
    try:
        for number in range(options.repeats):
            for mode in options.modes.split(","):
                runs.append(cluster.epoch(f"{number}{mode}", mode))
                print(f"  {runs[-1]}", file=sys.stderr, flush=True)
    finally:
        cluster.close()
    medians = {}
    for mode in options.modes.split(","):
        of_mode = [run for run in runs if run["mode"] == mode]
        medians[mode] = {k: rig.median([r[k] for r in of_mode]) for k in ("origin_ratio", "waiting_part", "waiting_part_worst")}
    settings = {k: getattr(options, k) for k in ("nodes", "link_mbit", "origin_factor", "load", "cache", "shards", "repeats")}
    rig.write_result(options.out, {"bench": "window", **settings, "bytes": cluster.total, "medians": medians, "runs": runs})


if __name__ == "__main__":
    rig.run_bench(main)
