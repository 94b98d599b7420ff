"""A Slurm cluster on this machine: munged, slurmctld and slurmd on loopback, an agent beside each slurmd, one
coordinator, one S3 server. Everything lives in one directory and ends with this process; nothing is written to /etc.
"""

import ctypes
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
DEADLINE_S = 120
NODES = ["n1", "n2", "n3"]
USER = "nobody"
HOOKS = {
    "PrologSlurmctld": "prolog-slurmctld",
    "EpilogSlurmctld": "epilog-slurmctld",
    "Prolog": "prolog",
    "Epilog": "epilog",
    "TaskProlog": "task-prolog",
}


class Failed(Exception):
    """A case did not go as it must."""


def until(what, probe, deadline_s=DEADLINE_S):
    """Polls; its first true answer."""
    end = time.monotonic() + deadline_s
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Failed(f"not within {deadline_s} s: {what}")
        time.sleep(0.05)


def free_ports(count):
    """Ports outside the range of source ports, so that a restarted daemon gets its own again."""
    found = []
    for port in range(12000 + os.getpid() % 8000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise Failed("no free ports")


def dies_with_parent():
    """The kernel ends the child when this process ends, however it does."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Daemon:
    """A process with a log, ended by its number."""

    def __init__(self, rig, name, command, env=None):
        self.name, self.command, self.env = name, [str(c) for c in command], env or os.environ.copy()
        self.log = rig.dir / "log" / f"{name}.log"
        self.process = None
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, preexec_fn=dies_with_parent
            )

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def tail(self, lines=25):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Rig:
    """All daemons. `close` ends them and removes everything."""

    def __init__(self, binary, plugin=None):
        self.plugin = plugin
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="millstream-slurm."))
        self.dir.chmod(0o755)
        # Jobs run as an ordinary user, who may not be able to enter the checkout.
        self.binary = self.dir / "millstream"
        shutil.copy2(binary, self.binary)
        if plugin:
            self.plugin = shutil.copy2(plugin, self.dir)
        for part in ["log", "state", "munge", "hooks", "out", "data", "ready"]:
            (self.dir / part).mkdir()
        (self.dir / "out").chmod(0o1777)
        self.daemons, self.agents = [], {}
        self.conf, self.toml = self.dir / "slurm.conf", self.dir / "slurm.toml"
        self.ports = dict(zip(["coordinator", "slurmctld", *NODES], free_ports(2 + len(NODES))))
        self.coordinator_url = f"http://127.0.0.1:{self.ports['coordinator']}"

    # -- Millstream

    def daemon(self, name, command, env=None):
        daemon = Daemon(self, name, command, env)
        self.daemons.append(daemon)
        return daemon

    def ready_file(self, name):
        path = self.dir / "ready" / f"{name}.json"
        return path, lambda: until(f"{name} is up", lambda: path.exists() and json.loads(path.read_text()))

    def start_millstream(self):
        path, ready = self.ready_file("s3")
        self.daemon("s3", [self.binary, "s3-server", "--ready-file", path])
        self.s3 = ready()
        aws = {
            "AWS_ENDPOINT_URL": self.s3["endpoint"], "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true",
        }
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith(("MILLSTREAM", "AWS_"))}, **aws}
        path, ready = self.ready_file("coordinator")
        self.coordinator = self.daemon("coordinator", [
            self.binary, "coordinator", "--grpc", f"127.0.0.1:{self.ports['coordinator']}", "--http", "127.0.0.1:0",
            "--state-dir", self.dir / "coordinator", "--ready-file", path,
        ], self.env)
        self.coordinator_http = ready()["http"]
        for node in NODES:
            self.start_agent(node)
        until("all agents are up", lambda: self.up() == NODES)
        self.catalog = self.daemon("catalog", [
            self.binary, "slurm", "catalog", "--watch", "--out", self.dir / "catalog", "--coordinator",
            self.coordinator_url,
        ], self.env)

    def start_agent(self, node):
        path, ready = self.ready_file(node)
        path.unlink(missing_ok=True)
        self.agents[node] = self.daemon(f"agent-{node}", [
            self.binary, "agent", "--node", node, "--coordinator", self.coordinator_url, "--data-dir",
            self.dir / "data" / node, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--buffers", "64MiB",
            "--capacity", "2GiB", "--scrub-rate", "0", "--ready-file", path,
        ], self.env)
        ready()

    def socket(self, node):
        return self.dir / "data" / node / "agent.sock"

    def cli(self, *arguments, check=True):
        done = subprocess.run(
            [self.binary, *map(str, arguments)], capture_output=True, text=True,
            env={**self.env, "MILLSTREAM_COORDINATOR": self.coordinator_url},
        )
        if check and done.returncode:
            raise Failed(f"millstream {arguments}: {done.returncode} {done.stderr}")
        return done

    def status(self):
        return json.loads(self.cli("status", "--json").stdout)

    def up(self):
        return [n["node"] for n in self.status()["nodes"] if n["state"] == "up"]

    def job(self, number):
        """What the coordinator knows of a job."""
        found = [j for j in self.status()["jobs"] if j["job"] == f"rig/{number}"]
        return found[0] if found else None

    def metric(self, series):
        """One of the coordinator's, now."""
        with urllib.request.urlopen(f"http://{self.coordinator_http}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(series)), 0.0)

    # -- S3

    def control(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.s3["control"] + path, data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def dataset(self, name, shards=3, megabytes=1, seed=1):
        """Registers pseudo-random objects; how many bytes."""
        for i in range(shards):
            self.control("POST", "/objects", {
                "bucket": "data", "key": f"{name}/{i:03}.bin", "seed": seed * 1000 + i, "len": megabytes << 20,
            })
        self.cli("dataset", "add", name, f"s3://data/{name}/", "--version", "v1")
        until("the catalog of job_submit.lua has it", lambda: (self.dir / "catalog" / f"{name}@v1").exists())
        return shards * megabytes << 20

    def sent(self, name):
        """Bytes that the origin sent of a dataset."""
        keys = self.control("GET", "/stats")["keys"]
        return sum(k["bytes"] for key, k in keys.items() if key.startswith(f"data/{name}/"))

    # -- Slurm

    def settings(self, **changed):
        """Writes slurm.toml: those of most cases, and what this one wants otherwise. Hooks read it each time."""
        settings = {"budget": "60s", "agent_grace": "2s", "ahead": "off", **changed}
        # At once: a hook that reads half of it would believe in defaults.
        following = self.toml.with_suffix(".next")
        following.write_text(
            f'coordinator = ["{self.coordinator_url}"]\nsocket = "{self.dir}/data/%n/agent.sock"\n'
            f'run_dir = "{self.dir}/run"\nslurm_conf = "{self.conf}"\n'
            + "".join(f'{key} = "{value}"\n' for key, value in settings.items())
        )
        following.replace(self.toml)

    def write_hooks(self):
        self.settings()
        for hook in HOOKS.values():
            path, shipped = self.dir / "hooks" / hook, self.dir / "hooks" / f"shipped-{hook}"
            shutil.copy2(DEPLOY / hook, shipped)
            # The wrapper says where things are on this machine; the hook itself is the one that is shipped.
            path.write_text(
                f"#!/bin/sh\nexport MILLSTREAM={self.binary} MILLSTREAM_SLURM_CONFIG={self.toml} SLURM_CONF={self.conf}\n"
                f"[ {hook} = task-prolog ] && exec {shipped}\n"
                f"began=$(/bin/date +%s%N)\n{shipped} 2>>{self.dir}/log/hook-{hook}.err\ncode=$?\n"
                f'echo "$SLURM_JOB_ID ${{SLURMD_NODENAME:--}} $code '
                f'$(( ($(/bin/date +%s%N) - began) / 1000 ))" >>{self.dir}/log/hook-{hook}.log\nexit $code\n'
            )
            path.chmod(0o755)
        for lua in ["job_submit.lua", "burst_buffer.lua"]:
            text = (DEPLOY / lua).read_text()
            program = f"MILLSTREAM_SLURM_CONFIG={self.toml} {self.binary}"
            text = text.replace("/run/millstream-catalog/", f"{self.dir}/catalog/").replace("/usr/bin/millstream", program)
            (self.dir / lua).write_text(text)

    def configure(self, extra=""):
        host = socket.gethostname().split(".")[0]
        hooks = "\n".join(f"{key}={self.dir}/hooks/{hook}" for key, hook in HOOKS.items())
        nodes = "\n".join(
            f"NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.ports[n]} CPUs=2 RealMemory=500" for n in NODES
        )
        self.conf.write_text(f"""ClusterName=rig
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={self.ports['slurmctld']}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={self.dir}/munge/sock
StateSaveLocation={self.dir}/state
SlurmdSpoolDir={self.dir}/spool.%n
SlurmctldPidFile={self.dir}/slurmctld.pid
SlurmdPidFile={self.dir}/slurmd.%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PlugStackConfig={self.dir}/plugstack.conf
PrologFlags=Alloc,DeferBatch
PrologEpilogTimeout=300
JobSubmitPlugins=lua
BurstBufferType=burst_buffer/lua
{hooks}
{extra}
{nodes}
PartitionName=all Nodes=n[1-{len(NODES)}] Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP
""")
        (self.dir / "burst_buffer.conf").write_text("")
        plugstack = f"optional {self.plugin}\n" if self.plugin else ""
        (self.dir / "plugstack.conf").write_text(plugstack)
        self.slurm_env = {**os.environ, "SLURM_CONF": str(self.conf)}

    def start_slurm(self):
        key = self.dir / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.daemon("munged", [
            "munged", "--foreground", f"--key-file={key}", f"--socket={self.dir}/munge/sock",
            f"--pid-file={self.dir}/munge/pid", f"--log-file={self.dir}/log/munge.log",
            f"--seed-file={self.dir}/munge/seed", "--num-threads=2",
        ])
        until("munged is up", (self.dir / "munge" / "sock").exists)
        self.slurmctld = self.daemon("slurmctld", ["slurmctld", "-D", "-f", self.conf], self.slurm_env)
        self.slurmd = {
            n: self.daemon(f"slurmd-{n}", ["slurmd", "-D", "-N", n, "-f", self.conf], self.slurm_env) for n in NODES
        }
        until("all nodes are idle", lambda: self.node_states() == ["idle"] * len(NODES))

    def slurm(self, *command, check=True, timeout=DEADLINE_S, **more):
        done = subprocess.run(
            [str(c) for c in command], capture_output=True, text=True, env=self.slurm_env, timeout=timeout, **more
        )
        if check and done.returncode:
            raise Failed(f"{command}: {done.returncode} {done.stdout} {done.stderr}")
        return done

    def as_user(self):
        user = pwd.getpwnam(USER)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": str(self.dir / "out")}

    def node_states(self):
        done = self.slurm("sinfo", "-h", "-N", "-o", "%T", check=False)
        return done.stdout.split()

    def sbatch(self, script, *options, check=True):
        """Submits as an ordinary user. The job's number, or what sbatch said."""
        command = ["sbatch", "--parsable", "-o", f"{self.dir}/out/%j.out", *options]
        done = self.slurm(*command, check=check, input=f"#!/bin/sh\n{script}\n", **self.as_user())
        return done.stdout.strip() if check else done

    def state(self, job):
        """State and reason."""
        done = self.slurm("squeue", "-h", "-j", job, "-o", "%T %r", check=False)
        return done.stdout.strip()

    def show(self, job):
        return self.slurm("scontrol", "show", "job", job, check=False).stdout

    def output(self, job):
        path = self.dir / "out" / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def completed(self, job):
        """Waits for a job's end; its output."""
        def over():
            shown = self.show(job)
            if any(f"JobState={s}" in shown for s in ["FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"]):
                raise Failed(f"job {job} did not complete:\n{shown}\n{self.output(job)}")
            return "JobState=COMPLETED" in shown
        until(f"job {job} completes ({self.state(job)})", over)
        return self.output(job)

    def ended(self, job):
        """Waits until the coordinator has let go of a job."""
        return until(f"job {job} is let go of", lambda: (j := self.job(job)) and j["state"] == "ended" and j)

    def hook_runs(self, hook, job=None):
        """What a hook did: (job, node, exit code, microseconds)."""
        path = self.dir / "log" / f"hook-{hook}.log"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        runs = [(r[0], r[1], int(r[2]), int(r[3])) for r in rows]
        return [r for r in runs if job is None or r[0] == str(job)]

    def quiet(self):
        """No jobs, all nodes idle, no faults: what each case begins with."""
        self.settings()
        self.control("DELETE", "/faults")
        self.control("POST", "/rate", {"bytes_per_s": None})
        for job in self.slurm("squeue", "-h", "-o", "%A", check=False).stdout.split():
            self.slurm("scancel", job, check=False)
        until("the queue is empty", lambda: not self.slurm("squeue", "-h", check=False).stdout.strip())
        for node in NODES:
            self.slurm("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        until("all nodes are idle", lambda: self.node_states() == ["idle"] * len(NODES))

    def close(self):
        for daemon in reversed(self.daemons):
            daemon.stop()
        shutil.rmtree(self.dir, ignore_errors=True)
