#!/usr/bin/env python3
"""The packages under a real systemd, in a container: that the units do what docs/operations.md says of them. Root.

    services.py BASE.tar DIRECTORY-OF-DEBS
"""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

DEADLINE_S = 120
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
AWS = "AWS_ENDPOINT_URL=http://127.0.0.1:9000\nAWS_ACCESS_KEY_ID=test\nAWS_SECRET_ACCESS_KEY=test\nAWS_REGION=us-east-1\nAWS_ALLOW_HTTP=true\n"
CAP_SYS_RESOURCE = 24
UNITS = ["millstream-coordinator", "millstream-agent", "millstream-slurm-catalog"]


class Failed(Exception):
    """Something is not as it must be."""


def check(condition, words):
    if not condition:
        raise Failed(words)


def until(what, probe):
    end = time.monotonic() + DEADLINE_S
    while not (answer := probe()):
        if time.monotonic() > end:
            raise Failed(f"not within {DEADLINE_S} s: {what}")
        time.sleep(0.1)
    return answer


class Machine:
    """Debian with systemd as its first process, in namespaces of its own, without a network."""

    def __init__(self, base, debs):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="millstream-machine."))
        self.container = None
        subprocess.run(["tar", "-xf", base, "-C", self.root], check=True)
        self.root.chmod(0o755)
        shutil.copytree(debs, self.root / "debs")

    def boot(self):
        # As on a machine of its own, io_uring may be asked for, and limits may be raised.
        command = ["systemd-nspawn", "--quiet", "-D", self.root, "--register=no", "--keep-unit", "--private-network",
                   "--system-call-filter=io_uring_setup io_uring_enter io_uring_register",
                   "--capability=CAP_SYS_RESOURCE", "--boot", "--console=pipe"]
        self.log = (self.root.parent / f"{self.root.name}.log").open("wb+")
        self.container = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        children = pathlib.Path(f"/proc/{self.container.pid}/task/{self.container.pid}/children")

        def first():
            if self.container.poll() is not None:
                self.log.seek(0)
                raise Failed(f"systemd-nspawn: {self.log.read().decode(errors='replace')}")
            return children.read_text().split()
        self.leader = until("the container has a first process", first)[0]
        # Not before there is a systemd to ask.
        until("systemd is up", lambda: self.sh("systemctl is-system-running --wait", check=False).stdout.strip() == "running")

    def sh(self, script, check=True, user=None, groups=None):
        """Runs a shell script inside, as root or as a user."""
        command = ["nsenter", "-t", self.leader, "-a", "--", "/usr/bin/env", "-i", PATH]
        if user:
            command += ["setpriv", f"--reuid={user}", "--regid=nogroup", f"--groups={groups or 'nogroup'}"]
        done = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise Failed(f"{script}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def show(self, unit, *names):
        text = self.sh(f"systemctl show {unit} -p {','.join(names)}").stdout
        found = dict(line.split("=", 1) for line in text.splitlines())
        return [found[name] for name in names]

    def close(self):
        if self.container and self.container.poll() is None:
            # The first is a request to shut down; it has been given its time.
            self.container.send_signal(signal.SIGTERM)
            try:
                self.container.wait(30)
            except subprocess.TimeoutExpired:
                self.container.kill()
                self.container.wait()
        shutil.rmtree(self.root, ignore_errors=True)
        pathlib.Path(self.log.name).unlink(missing_ok=True)


def installed(machine):
    """Installing starts what needs no settings, and only enables what does."""
    machine.sh("dpkg -i /debs/*.deb")
    until("the coordinator was started", lambda: machine.show("millstream-coordinator", "ActiveState") == ["active"])
    check(machine.sh("systemctl is-enabled millstream-agent").stdout.strip() == "enabled", "the agent is not enabled")
    check(machine.show("millstream-agent", "ActiveState") == ["inactive"], "the agent was started without settings")
    machine.sh("ip link set lo up 2>/dev/null || true")
    for role in ["agent", "coordinator"]:
        (machine.root / f"etc/default/millstream-{role}").write_text(AWS)
        (machine.root / f"etc/default/millstream-{role}").chmod(0o600)
    (machine.root / "etc/millstream/agent.toml").write_text('buffers = "64MiB"\ncapacity = "1GiB"\n')
    machine.sh("systemd-run --quiet --unit=s3 millstream s3-server --listen 127.0.0.1:9000 --seeded 3x1MiB")
    # Each returns when the daemon has said that it is up.
    machine.sh("systemctl restart millstream-coordinator && systemctl start millstream-agent")
    machine.sh("systemctl start millstream-slurm-catalog")


def confined(machine):
    """Their own user, no capabilities, a read-only system, memory that may be locked."""
    for unit in UNITS:
        pid = machine.show(unit, "MainPID")[0]
        status = dict(line.split(":\t", 1) for line in machine.sh(f"cat /proc/{pid}/status").stdout.splitlines() if ":\t" in line)
        owner = machine.sh("id -u millstream").stdout.strip()
        check(set(status["Uid"].split()) == {owner}, f"{unit} runs as {status['Uid']}")
        check(int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, f"{unit} has {status['CapEff']}, {status['CapBnd']}")
        check((status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), f"{unit}: {status['NoNewPrivs']}, {status['Seccomp']}")
        for place in ["/usr/x", "/etc/x", "/root/x"]:
            done = machine.sh(f"nsenter -t {pid} -m touch {place}", check=False)
            check(done.returncode != 0, f"{unit} may write {place}")
    pid, wanted = machine.show("millstream-agent", "MainPID", "LimitMEMLOCK")
    check(wanted == "infinity", f"LimitMEMLOCK={wanted}")
    # Containers and virtual machines that may not raise limits cannot show it.
    if may_raise_limits(machine):
        limits = machine.sh(f"cat /proc/{pid}/limits").stdout
        locked = [line.split() for line in limits.splitlines() if line.startswith("Max locked memory")][0]
        check(locked[3:5] == ["unlimited", "unlimited"], f"memlock: {locked}")
        return ""
    return "(this machine may not raise limits: memlock as set, not as in force)"


def may_raise_limits(machine):
    status = machine.sh("cat /proc/1/status").stdout
    bounding = [line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")][0]
    return bool(int(bounding, 16) >> CAP_SYS_RESOURCE & 1)


def serving(machine):
    """Data comes through; the group may use the socket, nobody else; everybody may read verified files."""
    machine.sh("millstream dataset add d s3://data/seeded/ --version v1")
    machine.sh("millstream stage d@v1 --wait --timeout 60s")
    status = json.loads(machine.sh("millstream status --json").stdout)
    node = status["nodes"][0]
    check(not node["fallbacks"], f"io_uring does not pass the unit's filter: {node}")
    machine.sh("useradd -M ada && useradd -M bob")
    mine = machine.sh("millstream wait d@v1 && cat $(millstream path d@v1)/* | wc -c", user="ada", groups="millstream")
    check(mine.stdout.strip() == str(3 << 20), f"a member of the group: {mine}")
    other = machine.sh("millstream path d@v1", check=False, user="bob")
    check(other.returncode == 9 and "the group that owns it" in other.stderr, f"somebody else: {other}")
    files = machine.sh("cat /var/lib/millstream/agent/datasets/d@v1/* | wc -c", user="bob")
    check(files.stdout.strip() == str(3 << 20), f"verified files: {files}")
    there = "test -e /run/millstream-catalog/d@v1"
    until("the catalog is there for Slurm", lambda: machine.sh(there, check=False, user="bob").returncode == 0)


def watched(machine):
    """One that hangs is killed and started again, and so is one that dies."""
    for unit in UNITS[:2]:
        folder = machine.root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir()
        # As shipped, only faster.
        (folder / "fast.conf").write_text("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    machine.sh(f"systemctl daemon-reload && systemctl restart {' '.join(UNITS[:2])}")
    for unit in UNITS[:2]:
        for how, why in [("STOP", "watchdog"), ("KILL", "signal")]:
            before = machine.show(unit, "MainPID", "NRestarts")
            machine.sh(f"kill -{how} {before[0]}")

            def again():
                pid, restarts, state = machine.show(unit, "MainPID", "NRestarts", "ActiveState")
                return int(restarts) > int(before[1]) and pid != before[0] and state == "active"
            until(f"{unit} is back after SIG{how}", again)
            said = machine.sh(f"journalctl -u {unit} --no-pager -o cat").stdout
            check(f"Failed with result '{why}'" in said, f"{unit} after SIG{how}: {said[-2000:]}")
    machine.sh("millstream wait d@v1 --timeout 60s")


def stopped_and_gone(machine):
    for unit in UNITS:
        machine.sh(f"systemctl stop {unit}")
        result, status = machine.show(unit, "Result", "ExecMainStatus")
        check((result, status) == ("success", "0"), f"{unit} stopped with {result}, {status}")
    machine.sh(f"systemctl start {' '.join(UNITS)}")
    machine.sh("dpkg -r millstream-agent millstream-coordinator millstream-spank millstream")
    for unit in UNITS:
        state, pid = machine.show(unit, "ActiveState", "MainPID")
        check((state, pid) == ("inactive", "0"), f"{unit} after its removal: {state}, {pid}")



def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = Machine(sys.argv[1], sys.argv[2])
    try:
        machine.boot()
        for step in [installed, confined, serving, watched, stopped_and_gone]:
            began = time.monotonic()
            remark = step(machine) or ""
            print(f"ok    systemd: {step.__name__}  {time.monotonic() - began:.1f} s  {remark}", flush=True)
    except Failed as error:
        print(f"FAIL  systemd: {error}")
        if machine.container and machine.container.poll() is None:
            print(machine.sh("journalctl --no-pager -n 60", check=False).stdout)
        sys.exit(1)
    finally:
        machine.close()


if __name__ == "__main__":
    main()
