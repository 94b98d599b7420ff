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
    size = rig.dataset("c2")
    rig.cli("stage", "c2@v1", "--nodes", "all", "--wait", "--timeout", "60s")
    for _ in range(5):
        job = rig.sbatch("true", "-N3", "--comment=millstream:c2@v1")
        output = rig.completed(job)
    # What was there already is accounted for as that, in all places.
    check("S3 0 B, peers 0 B, cache 9.00 MiB" in output, f"the line in the output:\n{output}")
    check(rig.ended(job)["bytes"] == {"cache": 3 * size, "origin": 0, "peer": 0, "shared": 0}, f"{rig.job(job)}")
    counted = rig.metric('millstream_job_bytes_total{source="cache"}')
    check(counted >= 5 * 3 * size, f"the metric says {counted}")
    runs = [us / 1000 for _, _, code, us in rig.hook_runs("prolog")[-15:] if code == 0]
    check(len(runs) == 15, "a Prolog failed")
    return f"Prolog with ready data: median {statistics.median(runs):.0f} ms, worst {max(runs):.0f} ms of {len(runs)}"


def pending_data_arrives_before_the_start(rig):
    size = rig.dataset("c3")
    rig.settings(ahead="auto")
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


def stage_option_of_the_plugin(rig):
    rig.dataset("c21")
    rig.dataset("c22", seed=2)
    check("--stage=NAME" in rig.slurm("srun", "--help").stdout, "srun does not know --stage: was the plugin loaded?")
    read = READ.replace('"$MILLSTREAM_ROOT"', '$(dirname "$MILLSTREAM_ROOT")/{}@v1')
    script = "#SBATCH --stage=c21@v1\n" + read.format("c21") + "\n" + read.format("c22")
    job = rig.sbatch(script, "-N2", "--comment=millstream:c22@v1")
    output = rig.completed(job)
    check(all(output.count(digest(rig, n)) == 2 for n in ["c21", "c22"]), f"not both on both nodes:\n{output}")
    check("c21@v1" in output and "c22@v1" in output, output)
    done = rig.slurm("srun", "-N1", "--stage=c21", "sh", "-c", 'basename "$MILLSTREAM_ROOT"', **rig.as_user())
    check("c21@v1" in done.stdout, f"srun: {done}")
    inner = ["srun", "sh", "-c", 'basename "$MILLSTREAM_ROOT"']
    done = rig.slurm("salloc", "-N2", "--stage=c22", *inner, **rig.as_user())
    check(done.stdout.splitlines().count("c22@v1") == 2, f"salloc: {done}")
    for bad in ["../c21", "c21@v1,speed=9", "ghost@v1"]:
        done = rig.slurm("srun", "-N1", f"--stage={bad}", "true", check=False, **rig.as_user())
        check(done.returncode != 0 and "millstream" in done.stderr, f"{bad} was taken: {done}")


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
    for bad in ["millstream:c5@v1,speed=9", "millstream:c5@v1,priority=high", "Millstream:c5@v1", "millstream:ckpt/c5@7"]:
        done = rig.sbatch("true", f"--comment={bad}", check=False)
        check(done.returncode != 0 and "millstream:" in done.stderr, f"{bad}: {done}")


def unknown_dataset_of_a_running_queue_is_held(rig):
    rig.dataset("c6")
    blocker = rig.sbatch("sleep 600", "-N3", "--exclusive")
    until("the blocker runs", lambda: "RUNNING" in rig.state(blocker))
    job = rig.sbatch("true", "-N1", "--comment=millstream:c6@v1")
    until("the pending job's data was looked at", lambda: "staged-in" in rig.show(job))
    rig.cli("dataset", "rm", "c6@v1")
    rig.slurm("scancel", blocker)
    until("the job is held", lambda: "PENDING" in rig.state(job) and "held" in rig.state(job).lower())
    shown = rig.show(job)
    check("c6@v1" in shown and "the job is held" in shown, f"the user is not told:\n{shown}")
    check(set(rig.node_states()) == {"idle"}, f"nodes: {rig.node_states()}")


def gone_while_pending_is_said_at_the_job(rig):
    rig.dataset("c20")
    rig.settings(ahead="auto")
    rig.control("POST", "/rate", {"bytes_per_s": 64 << 10})
    blocker = rig.sbatch("sleep 600", "-N3", "--exclusive")
    until("the blocker runs", lambda: "RUNNING" in rig.state(blocker))
    job = rig.sbatch("true", "-N1", "--comment=millstream:c20@v1")
    until("its data is pulled", lambda: (j := rig.job(job)) and j["state"] == "pending")
    rig.cli("dataset", "rm", "c20@v1")
    until("the reason is at the job", lambda: "c20@v1" in rig.state(job) and "removed" in rig.state(job))
    check("PENDING" in rig.state(job), rig.state(job))


def stage_in_that_ended_early_is_not_believed(rig):
    """To Slurm the data is staged when stage-in has ended: readiness is looked at again on the nodes."""
    size = rig.dataset("c24", shards=2, megabytes=4)
    rig.settings(ahead="auto", budget="2s")
    rig.control("POST", "/rate", {"bytes_per_s": 256 << 10})
    job = rig.sbatch(READ, "-N3", "--comment=millstream:c24@v1")
    until("its data is pulled", lambda: (j := rig.job(job)) and j["state"] == "pending" and rig.sent("c24") > 0)
    rig.settings(ahead="auto")
    until("it has its nodes, and not its data", lambda: (j := rig.job(job)) and j["state"] == "staging")
    rig.control("POST", "/rate", {"bytes_per_s": None})
    read_everywhere(rig, job, "c24")
    # The stage that ended early had up to four pieces of 256 KiB half read.
    check(size <= rig.sent("c24") <= size + (1 << 20), f"S3 sent {rig.sent('c24')} bytes of {size}")


def settings_that_cannot_be_read_hurt_only_jobs_that_ask(rig):
    rig.dataset("c25")
    rig.toml.write_text("budget = 'soon'\n")
    check("fine" in rig.completed(rig.sbatch("echo fine", "-N3")), "a job that asks for nothing")
    job = rig.sbatch("true", "-N1", "--comment=millstream:c25@v1")
    until("the user is told", lambda: "budget" in rig.show(job) and "PENDING" in rig.state(job))
    check(set(rig.node_states()) <= {"idle", "completing"}, f"nodes: {rig.node_states()}")


def cancelled_while_staging(rig):
    rig.dataset("c7", shards=4, megabytes=4)
    rig.control("POST", "/rate", {"bytes_per_s": 1 << 20})
    job = rig.sbatch("true", "-N3", "--comment=millstream:c7@v1")
    until("it is staging", lambda: (j := rig.job(job)) and j["state"] == "staging" and rig.sent("c7") > 0)
    rig.slurm("scancel", job)
    rig.ended(job)
    running = [s for s in rig.status()["stages"] if s["dataset"] == "c7@v1" and s["state"] == "running"]
    check(not running, f"it still stages: {running}")
    until("Slurm has forgotten the job", lambda: not rig.state(job) or "CANCELLED" in rig.show(job))
    check(set(rig.node_states()) <= {"idle", "completing"}, f"nodes: {rig.node_states()}")
    rig.control("POST", "/rate", {"bytes_per_s": None})
    # What arrived is kept, and the next job needs only the rest.
    again = rig.sbatch(READ, "-N3", "--comment=millstream:c7@v1")
    read_everywhere(rig, again, "c7")


def cancelled_while_pending(rig):
    rig.dataset("c8")
    rig.settings(ahead="auto")
    rig.control("POST", "/rate", {"bytes_per_s": 64 << 10})
    blocker = rig.sbatch("sleep 600", "-N3", "--exclusive")
    until("the blocker runs", lambda: "RUNNING" in rig.state(blocker))
    job = rig.sbatch("true", "-N3", "--exclusive", "--comment=millstream:c8@v1")
    until("its data is pulled", lambda: (j := rig.job(job)) and j["state"] == "pending")
    rig.slurm("scancel", job)
    rig.ended(job)
    running = [s for s in rig.status()["stages"] if s["dataset"] == "c8@v1" and s["state"] == "running"]
    check(not running, f"it still stages: {running}")


def s3_down_requeues_and_drains_nothing(rig):
    size = rig.dataset("c9")
    rig.control("POST", "/faults", {"key": "*", "kind": {"type": "status", "status": 500}})
    job = rig.sbatch(READ, "-N3", "--comment=millstream:c9@v1,timeout=3s")
    until("it is back in the queue", lambda: "PENDING" in rig.state(job) and "requeued and tried" in rig.show(job))
    shown = rig.show(job)
    check("c9@v1" in shown and "time for staging is over" in shown, f"the user is not told:\n{shown}")
    check("last error" in shown and "origin" in shown, f"the user is not told that S3 is down:\n{shown}")
    check(set(rig.node_states()) <= {"idle", "completing"}, f"nodes: {rig.node_states()}")
    rig.control("DELETE", "/faults")
    rig.slurm("scontrol", "update", f"jobid={job}", "starttime=now")
    read_everywhere(rig, job, "c9")
    check(rig.sent("c9") == size, f"S3 sent {rig.sent('c9')} bytes of {size}")
    said = [line for line in shown.splitlines() if "AdminComment" in line]
    return said[0].strip() if said else ""


def s3_down_holds_where_that_is_configured(rig):
    rig.dataset("c23")
    rig.settings(on_timeout="hold")
    rig.control("POST", "/faults", {"key": "*", "kind": {"type": "status", "status": 500}})
    job = rig.sbatch(READ, "-N1", "--comment=millstream:c23@v1,timeout=1s")
    until("it is held", lambda: "PENDING" in rig.state(job) and "held" in rig.state(job).lower())
    check("the job is held" in rig.show(job), f"the user is not told:\n{rig.show(job)}")
    check(set(rig.node_states()) <= {"idle", "completing"}, f"nodes: {rig.node_states()}")
    rig.control("DELETE", "/faults")
    rig.slurm("scontrol", "release", job)
    rig.slurm("scontrol", "update", f"jobid={job}", "starttime=now")
    rig.completed(job)


def s3_down_tells_interactive_users_at_once(rig):
    rig.dataset("c10")
    rig.control("POST", "/faults", {"key": "*", "kind": {"type": "status", "status": 500}})
    done = rig.slurm("srun", "-N2", "--comment=millstream:c10@v1,timeout=2s", "true", check=False, **rig.as_user())
    check(done.returncode != 0 and "millstream: c10@v1" in done.stderr, f"srun says: {done.stderr}")
    until("nodes are idle", lambda: set(rig.node_states()) == {"idle"})


def budget_exceeded(rig):
    rig.dataset("c11", shards=2, megabytes=4)
    rig.control("POST", "/rate", {"bytes_per_s": 512 << 10})
    job = rig.sbatch(READ, "-N2", "--comment=millstream:c11@v1,timeout=2s")
    until("it is back in the queue", lambda: "PENDING" in rig.state(job) and "time for staging" in rig.show(job))
    check(set(rig.node_states()) <= {"idle", "completing"}, f"nodes: {rig.node_states()}")
    rig.control("POST", "/rate", {"bytes_per_s": None})
    rig.slurm("scontrol", "update", f"jobid={job}", "starttime=now")
    rig.completed(job)


def dead_agent_drains_its_node_only(rig):
    rig.dataset("c12")
    rig.agents["n2"].stop()
    try:
        job = rig.sbatch(READ, "-N2", "-w", "n[1-2]", "--comment=millstream:c12@v1")
        until("n2 is drained", lambda: rig.node_states()[1].startswith("drain"))
        others = rig.node_states()[::2]
        check(not any(s.startswith("drain") for s in others), f"nodes: {rig.node_states()}")
        until("it is back in the queue", lambda: "PENDING" in rig.state(job))
        check("n2" in rig.show(job) and "agent" in rig.show(job), f"the user is not told:\n{rig.show(job)}")
        reason = rig.slurm("sinfo", "-h", "-R", "-o", "%E").stdout
        check("millstream" in reason, f"the reason of the drain: {reason}")
        rig.slurm("scontrol", "update", f"jobid={job}", "reqnodelist=", "starttime=now")
        rig.completed(job)
    finally:
        rig.start_agent("n2")
    until("all agents are up", lambda: rig.up() == NODES)


def controller_restarts_midway(rig):
    rig.dataset("c13", shards=3, megabytes=2)
    rig.control("POST", "/rate", {"bytes_per_s": 1 << 20})
    job = rig.sbatch(READ, "-N3", "--comment=millstream:c13@v1")
    until("it is staging", lambda: (j := rig.job(job)) and j["state"] == "staging" and rig.sent("c13") > 0)
    rig.slurmctld.stop()
    rig.slurmctld.start()
    rig.control("POST", "/rate", {"bytes_per_s": None})
    read_everywhere(rig, job, "c13")


def coordinator_restarts_midway(rig):
    size = rig.dataset("c14", shards=3, megabytes=2)
    rig.control("POST", "/rate", {"bytes_per_s": 1 << 20})
    job = rig.sbatch(READ, "-N3", "--comment=millstream:c14@v1")
    until("it is staging", lambda: (j := rig.job(job)) and j["state"] == "staging" and rig.sent("c14") > 0)
    rig.coordinator.stop()
    rig.coordinator.start()
    rig.control("POST", "/rate", {"bytes_per_s": None})
    read_everywhere(rig, job, "c14")
    rig.ended(job)
    return f"S3 sent {rig.sent('c14') / size:.2f} of the dataset"


def array_of_twenty_reads_s3_once(rig):
    size = rig.dataset("c15")
    script = 'cat "$MILLSTREAM_ROOT"/*.bin | sha256sum | cut -d" " -f1'
    array = rig.sbatch(script, "-n1", "--array=1-20", "-o", f"{rig.dir}/out/%A_%a.out", "--comment=millstream:c15@v1")
    until("all tasks have ended", lambda: not rig.state(array))
    outputs = [p.read_text() for p in (rig.dir / "out").glob(f"{array}_*.out")]
    expected = {digest(rig, "c15")} if (rig.dir / "data/n1/datasets/c15@v1").exists() else set()
    right = [o for o in outputs if any(d in o for d in expected)]
    check(len(right) == 20, f"{len(right)} of 20 tasks read it: {outputs[:3]}")
    check(rig.sent("c15") == size, f"S3 sent {rig.sent('c15')} bytes of {size}")


def user_without_rights_to_the_socket(rig):
    rig.dataset("c16")
    modes = {n: rig.socket(n).stat().st_mode & 0o777 for n in NODES}
    for node in NODES:
        rig.socket(node).chmod(0o600)
    wait = f"MILLSTREAM_COORDINATOR={rig.coordinator_url} {rig.binary} wait c16@v1 --timeout 60s && echo told by the coordinator"
    try:
        output = rig.completed(rig.sbatch(f"{READ}\n{wait}", "-N1", "--comment=millstream:c16@v1"))
    finally:
        for node, mode in modes.items():
            rig.socket(node).chmod(mode)
    check("cannot use the agent's socket" in output and "group" in output, f"the user is not told:\n{output}")
    check("told by the coordinator" in output, f"wait has no other way:\n{output}")
    check(digest(rig, "c16") in output, f"the files cannot be read:\n{output}")


def wait_and_stage_inside_a_script(rig):
    rig.dataset("c17")
    script = (
        f"export MILLSTREAM_COORDINATOR={rig.coordinator_url}\n"
        f"{rig.binary} stage c17@v1 --nodes job --wait --timeout 60s && "
        f"srun {rig.binary} wait c17@v1 --timeout 60s && echo all ready on $SLURM_JOB_NODELIST"
    )
    output = rig.completed(rig.sbatch(script, "-N2"))
    check("all ready on n[1-2]" in output, output)
    stages = [s for s in rig.status()["stages"] if s["dataset"] == "c17@v1"]
    check(stages[0]["nodes"] == ["n1", "n2"], f"{stages}")


def the_last_checkpoint_of_the_same_name(rig):
    for step in [5, 12]:
        key = f"ckpt{step}/000.bin"
        rig.control("POST", "/objects", {"bucket": "data", "key": key, "seed": step, "len": 100_000})
        rig.cli("dataset", "add", "ckpt-train", f"s3://data/ckpt{step}/", "--version", f"s{step}", "--kind",
                "checkpoint", "--run", "train", "--step", step)
    output = rig.completed(rig.sbatch('basename "$MILLSTREAM_ROOT"', "-N1", "-J", "train", "--comment=millstream:ckpt/%x@latest"))
    check("ckpt-train@s12\n" in output, output)
    for request, version in [("ckpt/train@latest", "s12"), ("ckpt/train@5", "s5")]:
        output = rig.completed(rig.sbatch('basename "$MILLSTREAM_ROOT"', "-N1", f"--comment=millstream:{request}"))
        check(f"ckpt-train@{version}\n" in output, output)
    # Inside of a script the verbs know the same words.
    millstream = f"MILLSTREAM_COORDINATOR={rig.coordinator_url} MILLSTREAM_SOCKET={rig.socket('n1')} {rig.binary}"
    script = "\n".join(f"{millstream} {words}" for words in [
        "stage ckpt/%x@latest --nodes job --wait", "wait ckpt/train@latest", "path ckpt/%x@latest", "path ckpt/train@7",
    ])
    output = rig.completed(rig.sbatch(script + "; true", "-N1", "-w", "n1", "-J", "train"))
    check("/ckpt-train@s12\n" in output and "no such checkpoint" in output, output)
    # The first run of a name has none, and begins all the same.
    output = rig.completed(rig.sbatch("echo began", "-N1", "-J", "fresh", "--comment=millstream:ckpt/%x@latest"))
    check("began" in output, output)


def without_controller_hooks_each_node_stages(rig):
    size = rig.dataset("c18")
    conf = rig.conf.read_text()
    rig.conf.write_text("".join(line + "\n" for line in conf.splitlines() if "logSlurmctld=" not in line))
    try:
        rig.slurm("scontrol", "reconfigure")
        job = rig.sbatch(READ, "-N3", "--comment=millstream:c18@v1")
        read_everywhere(rig, job, "c18")
        check(not rig.hook_runs("prolog-slurmctld", job), "PrologSlurmctld ran")
        check(rig.sent("c18") == size, f"S3 sent {rig.sent('c18')} bytes of {size}")
        rig.ended(job)
        # A problem of the data drains nothing here either.
        rig.dataset("c19")
        rig.control("POST", "/faults", {"key": "*", "kind": {"type": "status", "status": 500}})
        job = rig.sbatch(READ, "-N3", "--comment=millstream:c19@v1,timeout=2s")
        until("it is back in the queue", lambda: "PENDING" in rig.state(job) and "requeued and tried" in rig.show(job))
        until("nodes are idle", lambda: set(rig.node_states()) == {"idle"})
        rig.slurm("scancel", job)
        # Only a node without agent is the node's fault.
        rig.control("DELETE", "/faults")
        rig.agents["n2"].stop()
        job = rig.sbatch("true", "-w", "n2", "--comment=millstream:c18@v1")
        until("n2 is drained", lambda: rig.node_states()[1].startswith("drain"))
        codes = [code for _, node, code, _ in rig.hook_runs("prolog", job) if node == "n2"]
        check(codes and codes[0] != 0, f"the Prolog of n2 ended with {codes}")
    finally:
        if rig.agents["n2"].process.poll() is not None:
            rig.start_agent("n2")
        rig.conf.write_text(conf)
        rig.slurm("scontrol", "reconfigure")


ALL = [
    comment_runs_with_data_in_place,
    ready_data_costs_little,
    pending_data_arrives_before_the_start,
    stage_option_of_the_plugin,
    jobs_share_one_transfer,
    unknown_dataset_is_refused_at_submit,
    unknown_dataset_of_a_running_queue_is_held,
    gone_while_pending_is_said_at_the_job,
    stage_in_that_ended_early_is_not_believed,
    settings_that_cannot_be_read_hurt_only_jobs_that_ask,
    cancelled_while_staging,
    cancelled_while_pending,
    s3_down_requeues_and_drains_nothing,
    s3_down_holds_where_that_is_configured,
    s3_down_tells_interactive_users_at_once,
    budget_exceeded,
    dead_agent_drains_its_node_only,
    controller_restarts_midway,
    coordinator_restarts_midway,
    array_of_twenty_reads_s3_once,
    user_without_rights_to_the_socket,
    wait_and_stage_inside_a_script,
    the_last_checkpoint_of_the_same_name,
    without_controller_hooks_each_node_stages,
]
