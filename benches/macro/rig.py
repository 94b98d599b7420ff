"""Processes, network namespaces and measurements for the macro benchmarks. Standard library only.

Nothing here outlives the benchmark: every process dies with it (PR_SET_PDEATHSIG), network namespaces live as long as
the process that holds them, and mounts are made in a private mount namespace.
"""

import argparse
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

PR_SET_PDEATHSIG = 1
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
LIBC = ctypes.CDLL(None, use_errno=True)


class RigError(Exception):
    """The rig could not be set up, or what it runs failed."""


def need(*programs):
    """Fails early, with all names, when programs are missing."""
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        raise RigError(f"missing programs: {', '.join(missing)} (Debian: apt-get install iproute2 iperf3 util-linux)")


def private_mounts():
    """Starts this script again in a mount namespace of its own: its mounts vanish with it."""
    if os.environ.get("MILLSTREAM_RIG_PRIVATE") == "1":
        return
    if os.geteuid() != 0:
        raise RigError("network namespaces and mounts need root")
    need("unshare", "nsenter", "ip", "tc")
    os.environ["MILLSTREAM_RIG_PRIVATE"] = "1"
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(command, **options):
    """A child that dies with us, whatever happens to us."""
    return subprocess.Popen([str(c) for c in command], preexec_fn=die_with_parent, **options)


def run(command, timeout=60, **options):
    """Runs to the end; standard output as text. Fails loudly."""
    command = [str(c) for c in command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, preexec_fn=die_with_parent, check=False, **options
    )
    if done.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def stop(process, timeout=10):
    """SIGTERM, then SIGKILL, then reaped."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what, probe, timeout=30, process=None):
    """Polls until `probe` gives something; fails with the name of what never came."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if process is not None and process.poll() is not None:
            raise RigError(f"{what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise RigError(f"{what}: not within {timeout} s")
        time.sleep(0.02)


def cpu_seconds(process):
    """User and system time of a live process, all its threads."""
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def peak_rss_bytes(process):
    """The most memory that a live process ever had resident, shared pages of its program counted."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) * 1024


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def binary(path=None):
    """The program under test: always a release build, unless one is named."""
    found = pathlib.Path(path or os.environ.get("MILLSTREAM_BIN", REPOSITORY / "target" / "release" / "millstream"))
    if not found.is_file():
        raise RigError(f"{found} is missing: cargo build --release -p millstream")
    return found.resolve()


def write_result(path, document):
    """One JSON document in benches/results, and on standard output."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document), flush=True)


def arguments(description, bench, repeats=None):
    """A parser with what every bench takes; `repeats`: how many runs each figure is the median of."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="default: target/release/millstream, or $MILLSTREAM_BIN")
    parser.add_argument("--out", default=REPOSITORY / "benches" / "results" / f"{bench}.json")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    return parser


def disk(directory):
    """Where data on a real disk goes: the directory that was given, or one below the target directory."""
    parent = pathlib.Path(directory or REPOSITORY / "target" / "bench")
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def run_bench(main):
    """Runs it so that what it made is undone, whatever ends it; failures are said in a line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except RigError as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


class Host:
    """A network namespace, held by a process that only sleeps."""

    def __init__(self, name):
        self.name = name
        self.holder = spawn(["unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        path = f"/proc/{self.holder.pid}/ns/net"
        wait_for(f"namespace {name}", lambda: os.readlink(path) != own, process=self.holder)
        self.enter = ["nsenter", f"--net={path}"]
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command, timeout=60, **options):
        return run([*self.enter, *command], timeout=timeout, **options)

    def spawn(self, *command, **options):
        return spawn([*self.enter, *command], **options)

    def close(self):
        stop(self.holder)


class Network:
    """Hosts on one bridge, shaped at both ends of each link."""

    def __init__(self):
        self.bridge = Host("bridge")
        self.bridge.run("ip", "link", "add", "br0", "type", "bridge")
        self.bridge.run("ip", "link", "set", "br0", "up")
        self.hosts = []

    def add(self, name, rate_mbit=None):
        host = Host(name)
        number = len(self.hosts) + 1
        host.address = f"10.77.{number // 250}.{number % 250 + 1}"
        host.port = f"p{number}"
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", host.port, "netns", self.bridge.holder.pid)
        self.bridge.run("ip", "link", "set", host.port, "master", "br0", "up")
        host.run("ip", "addr", "add", f"{host.address}/16", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        if rate_mbit:
            # 5 ms of the rate, but no less than two of the largest packets that a veth carries at once.
            burst = max(128 * 1024, int(rate_mbit * 1e6 / 8 * 0.005))
            shape = ["root", "tbf", "rate", f"{rate_mbit}mbit", "burst", burst, "latency", "50ms"]
            host.run("tc", "qdisc", "add", "dev", "eth0", *shape)
            self.bridge.run("tc", "qdisc", "add", "dev", host.port, *shape)
        self.hosts.append(host)
        return host

    def sent_bytes(self, host):
        """What left the host, as the bridge saw it."""
        shown = json.loads(self.bridge.run("ip", "-s", "-j", "link", "show", "dev", host.port))
        return shown[0]["stats64"]["rx"]["bytes"]

    def goodput(self, pairs, seconds=4):
        """Bytes per second of TCP payload, all pairs (from, to) at once."""
        need("iperf3")
        servers, clients = [], []
        try:
            for n, (_, to) in enumerate(pairs):
                servers.append(to.spawn("iperf3", "-s", "-1", "-p", 5201 + n, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            for n, (_, to) in enumerate(pairs):
                listening = lambda: f":{5201 + n} " in to.run("ss", "-Hltn")  # noqa: E731, B023
                wait_for("iperf3", listening, process=servers[n])
            for n, (source, to) in enumerate(pairs):
                command = ["iperf3", "-J", "-O", "1", "-t", seconds, "-p", 5201 + n, "-c", to.address]
                clients.append(source.spawn(*command, stdout=subprocess.PIPE, text=True))
            total = 0.0
            for client in clients:
                report = json.loads(client.communicate(timeout=seconds + 30)[0])
                if "error" in report:
                    raise RigError(f"iperf3: {report['error']}")
                total += report["end"]["sum_received"]["bits_per_second"] / 8
            return total
        finally:
            for process in clients + servers:
                stop(process)

    def close(self):
        for host in [*self.hosts, self.bridge]:
            host.close()


def s3_environment(endpoint):
    """What makes S3 clients talk to the test server."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MILLSTREAM_", "AWS_"))},
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Nowhere:
    """The network that the benchmark itself is in."""

    address = "127.0.0.1"

    def run(self, *command, timeout=60, **options):
        return run(command, timeout=timeout, **options)

    def spawn(self, *command, **options):
        return spawn(command, **options)


class Daemon:
    """One `millstream` daemon: started, ready, stopped, its log kept when something fails."""

    def __init__(self, host, program, role, directory, *arguments, environment):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / f"{role}.log"
        ready = self.directory / f"{role}.ready"
        ready.unlink(missing_ok=True)
        with open(self.log, "a") as log:
            self.process = host.spawn(
                program, role, "--ready-file", ready, *arguments, env=environment, stdout=log, stderr=log
            )
        try:
            wait_for(role, ready.exists, process=self.process)
        except RigError as error:
            stop(self.process)
            raise RigError(f"{error}\n{self.tail()}") from None
        self.ready = json.loads(ready.read_text())

    def tail(self, lines=30):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def cpu_seconds(self):
        return cpu_seconds(self.process)

    def peak_rss_bytes(self):
        return peak_rss_bytes(self.process)

    def close(self):
        stop(self.process)


def s3_server(host, program, directory, seeded, environment, port=9000):
    """The project's S3 test server with seeded objects."""
    return Daemon(
        host, program, "s3-server", directory, "--listen", f"{host.address}:{port}", "--control", f"{host.address}:{port + 1}",
        "--seeded", seeded, environment=environment,
    )  # fmt: skip


def origin_bytes(server, host):
    """Bytes of bodies that the origin sent, by its own count."""
    if isinstance(host, Nowhere):
        with urllib.request.urlopen(f"{server.ready['control']}/stats", timeout=10) as reply:
            return json.load(reply)["bytes_sent"]
    fetch = f"import urllib.request as u; print(u.urlopen('{server.ready['control']}/stats', timeout=10).read().decode())"
    return json.loads(host.run(sys.executable, "-c", fetch))["bytes_sent"]


class Scratch:
    """A directory that is removed at the end; on its own tmpfs when a size is given."""

    def __init__(self, tmpfs_bytes=None, parent=None):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix=f"millstream-bench-{os.getpid()}-", dir=parent))
        self.mounted = tmpfs_bytes is not None
        if self.mounted:
            run(["mount", "-t", "tmpfs", "-o", f"size={tmpfs_bytes}", "none", self.path])

    def close(self):
        if self.mounted:
            run(["umount", "--lazy", self.path])
        shutil.rmtree(self.path, ignore_errors=True)


def write_rate(directory, size=256 << 20):
    """Bytes per second that sequential writes reach there."""
    block = os.urandom(4 << 20)
    path = pathlib.Path(directory) / ".write-rate"
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return size / seconds
