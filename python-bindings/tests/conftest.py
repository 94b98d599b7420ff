"""A real cluster for the tests: the project's S3 server, a coordinator and agents, all processes of the dev binary."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millstream

# Long enough for a loaded machine; a wait that ends in time costs nothing.
DEADLINE = 120.0


def binary() -> str:
    """The program under test."""
    found = os.environ.get("MILLSTREAM_BINARY") or shutil.which("millstream")
    assert found, "name the millstream program in MILLSTREAM_BINARY"
    return found


def clean_environment(**more: str) -> dict[str, str]:
    """Without settings of the machine that the tests run on."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MILLSTREAM_", "AWS_"))}
    return {**kept, **more}


def until(what: str, probe: Callable[[], bool]) -> None:
    """Polls a condition."""
    deadline = time.monotonic() + DEADLINE
    while not probe():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {what}"
        time.sleep(0.02)


class Daemon:
    """One process of the cluster."""

    def __init__(self, directory: Path, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.name, self.arguments, self.environment = name, arguments, environment
        self.ready_file = directory / f"{name}.ready"
        self.log = directory / f"{name}.log"
        self.ready: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [binary(), *self.arguments, "--ready-file", str(self.ready_file), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        until(f"{self.name} is up: {self.log.read_text()[-2000:]}", self._is_up)
        self.ready = json.loads(self.ready_file.read_text())

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text()[-2000:]}"
        return self.ready_file.exists()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


class Cluster:
    """An origin with data, a coordinator, and agents."""

    def __init__(self, directory: Path, agents: int, *agent_flags: str) -> None:
        self.directory = directory
        self.origin = directory / "origin"
        self.origin.mkdir(parents=True, exist_ok=True)
        self.s3 = Daemon(
            directory, "s3-server", ["s3-server", "--bucket", "data", "--from", str(self.origin)], clean_environment()
        )
        self.environment = clean_environment(
            AWS_ENDPOINT_URL=self.s3.ready["endpoint"],
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_REGION="us-east-1",
            AWS_ALLOW_HTTP="true",
        )
        self.coordinator = Daemon(
            directory,
            "coordinator",
            ["coordinator", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--state-dir", str(directory / "state")],
            self.environment,
        )
        self.url = f"http://{self.coordinator.ready['grpc']}"
        # Sockets have short paths; test directories do not.
        self.sockets = Path(tempfile.mkdtemp(prefix="ms-"))
        self.agents = [self._agent(i, agent_flags) for i in range(1, agents + 1)]
        for i in range(agents):
            client = self.client(i)
            until(f"agent {i} has a session", lambda c=client: bool(c.status()["coordinator"]))  # type: ignore[misc]

    def _agent(self, i: int, flags: tuple[str, ...]) -> Daemon:
        arguments = [
            "agent", "--node", f"node{i}", "--coordinator", self.url, "--data-dir", str(self.directory / f"node{i}"),
            "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--buffers", "64MiB",
            "--socket", str(self.sockets / f"{i}.sock"), *flags,
        ]  # fmt: skip
        return Daemon(self.directory, f"node{i}", arguments, self.environment)

    def socket(self, i: int = 0) -> str:
        return str(self.sockets / f"{i + 1}.sock")

    def client(self, i: int = 0, **arguments: Any) -> millstream.Client:
        return millstream.Client(self.socket(i), **arguments)

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Puts files at the origin and returns their URL. The S3 server reads its directory when it starts, so they
        go in through S3."""
        for key, content in files.items():
            request = urllib.request.Request(
                f"{self.s3.ready['endpoint']}/data/{name}/{urllib.request.quote(key)}", data=content, method="PUT"
            )
            with urllib.request.urlopen(request, timeout=30) as reply:
                assert reply.status == 200
        return f"s3://data/{name}/"

    def add(self, name: str, files: dict[str, bytes], version: str = "v1", i: int = 0) -> millstream.Dataset:
        """Puts and registers a dataset."""
        return self.client(i).add(name, self.put(name, files), version=version)

    def control(self, method: str, path: str, body: Any = None) -> Any:
        """The S3 server's control port: faults, statistics."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.s3.ready['control']}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def asked(self, name: str) -> set[str]:
        """Shards of a dataset that the origin was asked for."""
        start = f"data/{name}/"
        return {key.removeprefix(start) for key in self.control("GET", "/stats")["keys"] if key.startswith(start)}

    @contextlib.contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """Meanwhile the origin accepts reads of a dataset and sends nothing."""
        fault = {"key": f"data/{name}/*", "request": "get", "kind": {"type": "stall", "bytes": 0}}
        found = self.control("POST", "/faults", fault)
        try:
            yield
        finally:
            self.control("DELETE", f"/faults/{found['id']}")

    def stop(self) -> None:
        for daemon in [*self.agents, self.coordinator, self.s3]:
            daemon.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)


def make_tar(samples: dict[str, dict[str, bytes]]) -> bytes:
    """A WebDataset-style shard."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, fields in samples.items():
            for field, content in fields.items():
                entry = tarfile.TarInfo(f"{key}.{field}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def number_shards(shards: int, samples: int) -> dict[str, bytes]:
    """Shards whose samples say who they are: shard `s`, sample `i` has the text `s:i`."""
    return {
        f"train-{s:03d}.tar": make_tar(
            {f"{s:03d}-{i:04d}": {"txt": f"{s}:{i}".encode(), "bin": bytes([s, i % 256]) * 8} for i in range(samples)}
        )
        for s in range(shards)
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With `NO_SKIPS` a test that could not run is a failure: for the lane, which installs everything."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("NO_SKIPS") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped, and NO_SKIPS is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two agents that all tests share: tests use names of their own and leave the daemons running."""
    found = Cluster(tmp_path_factory.mktemp("cluster"), 2)
    yield found
    found.stop()


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Clusters for tests that kill parts of them."""
    made: list[Cluster] = []

    def make(agents: int = 1, *flags: str) -> Cluster:
        made.append(Cluster(tmp_path / f"cluster{len(made)}", agents, *flags))
        return made[-1]

    yield make
    for found in made:
        found.stop()


@pytest.fixture(scope="session")
def numbers(cluster: Cluster) -> millstream.Dataset:
    """12 shards of 10 samples, staged on both nodes."""
    dataset = cluster.add("numbers", number_shards(12, 10))
    dataset.stage("all").wait(timeout=DEADLINE)
    return dataset


def python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Another Python process with the package, the first of a session, that takes Ctrl-C even where these tests run in
    the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(MILLSTREAM_BINARY=binary(), **environment),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """The next line of such a process. One that ends instead, or stays silent, fails the test with what it wrote as
    errors."""
    assert process.stdout is not None
    killer = threading.Timer(DEADLINE, process.kill)
    killer.start()
    line = process.stdout.readline()
    killer.cancel()
    if not line.endswith("\n"):
        _, errors = process.communicate(timeout=DEADLINE)
        pytest.fail(f"it said {line!r} and ended with {process.returncode}:\n{errors}")
    return line.rstrip("\n")
