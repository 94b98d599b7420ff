"""A real cluster for the page's tests: an S3 server with faults, a coordinator, agents. Everything on loopback."""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request

DEADLINE_S = 90
POLL_S = 0.05
ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(
    os.environ.get("MILLSTREAM_BINARY")
    or pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "millstream"
)


def until(what, probe, deadline_s=DEADLINE_S):
    """Polls; the truthy answer. Fails with what was waited for."""
    end = time.monotonic() + deadline_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(POLL_S)


def free_port():
    """A port outside of the range that the kernel takes source ports from: a restarted daemon gets it again."""
    start = 10_000 + os.getpid() % 10_000
    for port in range(start, 32_000):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            if port not in free_port.taken:
                free_port.taken.add(port)
                return port
    raise AssertionError("no free port")


free_port.taken = set()


def without_io_uring():
    """Runs in the child before exec: io_uring_setup answers EPERM, as in a container with the usual seccomp profile."""
    load_number, equal, allow, refuse = 0x20, 0x15, 0x7FFF0000, 0x00050000 | 1
    io_uring_setup = 425
    program = [(load_number, 0, 0, 0), (equal, 0, 1, io_uring_setup), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, mode_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(seccomp, mode_filter, ctypes.c_char_p(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def clean_environment(extra=()):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MILLSTREAM_", "AWS_"))}
    return {**kept, **dict(extra)}


class Daemon:
    def __init__(self, name, arguments, directory, environment=(), before=None):
        self.name, self.arguments, self.directory = name, arguments, directory
        self.environment, self.before = dict(environment), before
        self.process = None
        self.start()

    def start(self):
        ready = self.directory / f"{self.name}.ready"
        ready.unlink(missing_ok=True)
        with open(self.directory / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, *self.arguments, "--ready-file", ready, "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(self.environment),
                preexec_fn=self.before,
            )

        def is_ready():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log()}")
            return ready.exists()

        until(f"{self.name} is ready", is_ready)
        self.ready = json.loads(ready.read_text())

    def log(self):
        return (self.directory / f"{self.name}.log").read_text(errors="replace")[-4000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


def ask(connection, **request):
    """One request to an agent's socket; its answer."""
    connection.sendall(json.dumps(request).encode() + b"\n")
    lines = connection.makefile()
    while True:
        answer = json.loads(lines.readline())
        if "progress" not in answer:
            return answer


class Cluster:
    """`agents` maps a node's name to more arguments and environment of its agent."""

    def __init__(self, directory, agents, alarm_hold_ms=3_000):
        self.directory = directory
        self.daemons = []
        try:
            self._start(agents, alarm_hold_ms)
        except BaseException:
            self.stop()
            raise

    def _start(self, agents, alarm_hold_ms):
        self.s3 = self._daemon("s3", ["s3-server"])
        self.grpc, self.http = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        state = self.directory / "state"
        coordinator = [
            "coordinator", "--grpc", self.grpc, "--http", self.http, "--state-dir", state, "--id", "head",
            "--heartbeat-ms", "200", "--node-timeout-ms", "1500", "--alarm-hold-ms", str(alarm_hold_ms),
        ]  # fmt: skip
        self.aws = {
            "AWS_ENDPOINT_URL": self.s3.ready["endpoint"],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }
        self.coordinator = self._daemon("coordinator", coordinator, self.aws)
        self.agents = {}
        for name, options in agents.items():
            self.agents[name] = self.add_agent(name, **options)
        until("all agents are up", lambda: sum(n["state"] == "up" for n in self.status()["nodes"]) == len(agents))

    def _daemon(self, name, arguments, environment=(), before=None):
        daemon = Daemon(name, [str(a) for a in arguments], self.directory, environment, before)
        self.daemons.append(daemon)
        return daemon

    def add_agent(self, name, arguments=(), environment=(), before=None):
        own = {
            "--node": name, "--coordinator": f"http://{self.grpc}", "--data-dir": self.directory / name,
            "--listen": "127.0.0.1:0", "--http": "127.0.0.1:0", "--buffers": "32MiB", "--capacity": "4GiB",
            "--scrub-rate": "0", "--label": "rack=r1",
        }  # fmt: skip
        own.update(dict(arguments))
        flat = [part for pair in own.items() for part in pair]
        return self._daemon(name, ["agent", *flat], {**self.aws, **dict(environment)}, before)

    @property
    def url(self):
        return f"http://{self.http}/"

    def cli(self, *arguments, check=True):
        environment = clean_environment({"MILLSTREAM_COORDINATOR": f"http://{self.grpc}"})
        done = subprocess.run([BINARY, *arguments], env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
        if check and done.returncode:
            raise AssertionError(f"{arguments}: {done.returncode} {done.stderr}")
        return done

    def job(self, number, nodes, dataset):
        """A job whose hook waits for its data, as Slurm's controller runs it. The caller ends the process."""
        slurm = {
            "SLURM_JOB_ID": str(number), "SLURM_CLUSTER_NAME": "rig", "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_NAME": "train",
            "SLURM_JOB_USER": "ann", "SLURM_JOB_COMMENT": f"millstream:{dataset}",
        }  # fmt: skip
        environment = clean_environment({"MILLSTREAM_COORDINATOR": f"http://{self.grpc}", **slurm})
        nowhere = self.directory / "no-slurm"
        arguments = ["slurm", "prolog-slurmctld", "--slurm-bin", nowhere]
        with open(self.directory / "hook.log", "ab") as log:
            return subprocess.Popen([BINARY, *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def socket(self, node):
        """A connection to an agent's socket, as a trainer has it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE_S)
        connection.connect(str(self.directory / node / "agent.sock"))
        return connection

    def status(self):
        return json.loads(self.cli("status", "--json").stdout)

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}api/v1/{path}", timeout=10) as answer:
            return json.load(answer)

    def s3_control(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.s3.ready["control"] + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def put(self, prefix, count, length, first_seed=1, name="shard-{:04}.tar"):
        for i in range(count):
            body = {"bucket": "data", "key": f"{prefix}/{name.format(i)}", "seed": first_seed + i, "len": length}
            self.s3_control("POST", "/objects", body)

    def add(self, dataset, prefix):
        name, version = dataset.split("@")
        self.cli("dataset", "add", name, f"s3://data/{prefix}/", "--version", version)

    def rate(self, bytes_per_s):
        self.s3_control("POST", "/rate", {"bytes_per_s": bytes_per_s})

    def alarms(self):
        return {alarm["kind"] for alarm in self.get("alarms")}

    def stop(self):
        for daemon in reversed(self.daemons):
            daemon.stop()
