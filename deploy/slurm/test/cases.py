"""What jobs must see. Each case begins with an empty queue, idle nodes and a healthy origin, and has its own data."""

import hashlib
import statistics

from rig import NODES, Failed, until

READ = 'srun sh -c \'cat "$MILLSTREAM_ROOT"/*.bin | sha256sum | cut -d" " -f1\''


def check(condition, words):
    if not condition:
        raise Failed(words)


def digest(rig, name):
    """Of the files on the first node, in order; every job must read the same on every node."""
    root = rig.dir / "data" / NODES[0] / "datasets" / f"{name}@v1"
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(root.glob("*.bin")))).hexdigest()


def read_everywhere(rig, job, name, nodes=3):
    """The job read the dataset on all of its nodes."""
    output = rig.completed(job)
    check(output.count(digest(rig, name)) == nodes, f"job {job} did not read {name} on {nodes} nodes:\n{output}")
    return output


def comment_runs_with_data_in_place(rig):
    size = rig.dataset("c1")
    job = rig.sbatch(READ, "-N3", "--comment=first try millstream:c1@v1")
    output = read_everywhere(rig, job, "c1")
    check("millstream: c1@v1 ready on 3 nodes" in output, f"no line in the output:\n{output}")
    check(output.count("millstream:") == 1, f"the line comes once:\n{output}")
    check(rig.sent("c1") == size, f"S3 sent {rig.sent('c1')} bytes of {size}")
    ended = rig.ended(job)
    bytes_of = ended["bytes"]
    check(bytes_of["origin"] == size and bytes_of["peer"] == 2 * size, f"accounting: {ended}")
    check("ready on 3 nodes" in rig.show(job), "the job's description has no accounting")


def ready_data_costs_little(rig):
    rig.dataset("c2")
    rig.cli("stage", "c2@v1", "--nodes", "all", "--wait", "--timeout", "60s")
    for _ in range(5):
        rig.completed(rig.sbatch("true", "-N3", "--comment=millstream:c2@v1"))
    runs = [us / 1000 for _, _, code, us in rig.hook_runs("prolog")[-15:] if code == 0]
    check(len(runs) == 15, "a Prolog failed")
    return f"Prolog with ready data: median {statistics.median(runs):.0f} ms, worst {max(runs):.0f} ms of {len(runs)}"


def pending_data_arrives_before_the_start(rig):
    size = rig.dataset("c3")
    blocker = rig.sbatch("sleep 600", "-N3", "--exclusive")
    until("the blocker runs", lambda: "RUNNING" in rig.state(blocker))
    job = rig.sbatch(READ, "-N3", "--exclusive", "--comment=millstream:c3@v1")

    def everywhere():
        found = [d for d in rig.status()["datasets"] if d["name"] == "c3"]
        return sum(n["state"] == "ready" for n in found[0]["nodes"]) == 3
    until("the data of the pending job is everywhere", everywhere)
    check("PENDING" in rig.state(job), f"it is not pending: {rig.state(job)}")
    check(rig.job(job)["state"] == "pending", f"the coordinator says {rig.job(job)}")
    rig.slurm("scancel", blocker)
    read_everywhere(rig, job, "c3")
    ended = rig.ended(job)
    check(ended["waited_s"] == 0, f"it waited after its allocation: {ended}")
    check(rig.sent("c3") == size, f"S3 sent {rig.sent('c3')} bytes of {size}")
    return f"waited {ended['waited_s']} s after the allocation"


def jobs_share_one_transfer(rig):
    size = rig.dataset("c4", shards=4, megabytes=2)
    rig.control("POST", "/rate", {"bytes_per_s": 4 << 20})
    jobs = [rig.sbatch(READ, "-N3", "-n3", "--comment=millstream:c4@v1") for _ in range(2)]
    for job in jobs:
        read_everywhere(rig, job, "c4")
    check(rig.sent("c4") == size, f"S3 sent {rig.sent('c4')} bytes of {size} to two jobs")
    accounts = [rig.ended(job)["bytes"] for job in jobs]
    check(sum(a["origin"] for a in accounts) == size, f"each origin byte belongs to one job: {accounts}")
    return f"{accounts}"


def unknown_dataset_is_refused_at_submit(rig):
    rig.dataset("c5")
    done = rig.sbatch("true", "--comment=millstream:ghost@v1", check=False)
    check(done.returncode != 0 and "there is no dataset ghost@v1" in done.stderr, f"{done}")
    for bad in ["millstream:../etc@v1", "millstream:a;b@v1", "millstream:$(reboot)"]:
        done = rig.sbatch("true", f"--comment={bad}", check=False)
        check(done.returncode != 0 and "is not NAME" in done.stderr, f"{bad}: {done}")


ALL = [
    comment_runs_with_data_in_place,
    ready_data_costs_little,
    pending_data_arrives_before_the_start,
    jobs_share_one_transfer,
    unknown_dataset_is_refused_at_submit,
]
