"""What may go wrong, and that it ends with an error that names it: never with a hang or with wrong bytes."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DEADLINE, Cluster, binary, clean_environment, number_shards, python, said, until

import millstream
from millstream.stream import ShardStream


def test_a_wrong_socket_path_fails_at_once() -> None:
    # Were it waited for, the lane's own time limit would end this test.
    with pytest.raises(millstream.AgentUnavailableError, match="/nowhere/agent.sock") as caught:
        millstream.Client("/nowhere/agent.sock", timeout=1e6).dataset("d")
    assert isinstance(caught.value, ConnectionError) and caught.value.socket == "/nowhere/agent.sock"


def test_a_socket_that_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(millstream.AgentUnavailableError):
        millstream.Client(tmp_path / "file").hello()


class FakeAgent:
    """Speaks the protocol as other versions might."""

    def __init__(self, answers: dict[str, object]) -> None:
        directory = tempfile.mkdtemp(prefix="ms-")
        self.path = os.path.join(directory, "s")
        self.seen: list[dict[str, object]] = []
        seen = self.seen

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    request = json.loads(line)
                    seen.append(request)
                    answer = answers.get(request["op"], {"ok": False, "code": 2, "error": f"not a request: {request}"})
                    if answer == "silence":
                        continue
                    self.wfile.write((json.dumps(answer) if isinstance(answer, dict) else str(answer)).encode() + b"\n")

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(self.path, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


OLD_HELLO = {"ok": True, "version": "0.1.0", "protocol": 1, "node": "n", "io": "blocking"}


def test_an_old_agent_serves_what_it_can() -> None:
    status = {
        "ok": True, "node": "n", "datasets": [
            {"dataset": "d@v", "digest": "ab", "state": "ready", "shards_ready": 1, "shards_total": 1,
             "bytes_ready": 1, "bytes_total": 1, "reason": None}]}  # fmt: skip
    agent = FakeAgent({"hello": OLD_HELLO, "status": status, "path": {"ok": True, "dataset": "d@v", "path": "/x/d@v/k"}})
    client = millstream.Client(agent.path)
    ds = client.dataset("d", version="v")
    assert ds.path("k") == Path("/x/d@v/k") and ds.status().ready
    with pytest.raises(millstream.MillstreamError, match=r"version 0\.1\.0 and does not offer 'stage'.*upgrade"):
        ds.stage()


def test_a_newer_agent_may_say_more() -> None:
    hello = {**OLD_HELLO, "version": "0.9.0", "features": ["shards", "telepathy"], "mood": "fine"}
    page = {"ok": True, "dataset": "d@v", "digest": "ab", "shards_total": 1, "bytes_total": 3, "root": None, "new": 1,
            "shards": [{"key": "k", "bytes": 3, "etag": None, "checksum": None, "colour": "red"}]}  # fmt: skip
    agent = FakeAgent({"hello": hello, "shards": page})
    assert [s.key for s in millstream.Client(agent.path).dataset("d")] == ["k"]


def test_another_protocol_is_refused_by_name() -> None:
    agent = FakeAgent({"hello": {**OLD_HELLO, "protocol": 2, "version": "2.0.0"}})
    with pytest.raises(millstream.AgentUnavailableError, match="version 2.0.0 and speaks protocol 2"):
        millstream.Client(agent.path).dataset("d")


@pytest.mark.parametrize("answer", ["what?", "[]", "silence"])
def test_a_stranger_on_the_socket_is_no_hang(answer: str) -> None:
    agent = FakeAgent({"hello": answer})
    with pytest.raises(millstream.AgentUnavailableError):
        millstream.Client(agent.path, timeout=0.5).hello()


def test_an_agent_that_accepts_nobody_is_no_hang(tmp_path: Path) -> None:
    path = tempfile.mkdtemp(prefix="ms-") + "/s"
    with socket.socket(socket.AF_UNIX) as stopped, socket.socket(socket.AF_UNIX) as first:
        stopped.bind(path)
        stopped.listen(0)
        first.connect(path)  # its queue is full now
        with pytest.raises(millstream.AgentUnavailableError, match="does not accept"):
            millstream.Client(path, timeout=0.3).hello()


def test_an_agent_that_falls_silent_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    from millstream import _wire

    monkeypatch.setattr(_wire, "GRACE", 0.2)
    agent = FakeAgent({"hello": OLD_HELLO, "status": "silence"})
    with pytest.raises(millstream.NotReadyError, match="no answer within"):
        millstream.Client(agent.path, timeout=0.3).status()


def test_an_old_client_and_a_new_agent(cluster: Cluster, numbers: millstream.Dataset) -> None:
    """The requests of the protocol's first version, byte for byte."""
    with socket.socket(socket.AF_UNIX) as old:
        old.connect(cluster.socket())
        lines = old.makefile("rwb")
        for request, wanted in [
            (b'{"op":"hello"}', b'"protocol":1'),
            (b'{"op":"path","dataset":"numbers@v1","key":null}', b'"path":'),
            (b'{"op":"wait","dataset":"numbers@v1","timeout_ms":1000}', b'"ok":true'),
            (b'{"op":"lease","dataset":"numbers@v1"}', b'"ok":true'),
            (b'{"op":"nonsense"}', b'"code":2'),
        ]:
            lines.write(request + b"\n")
            lines.flush()
            assert wanted in lines.readline(), request


def test_an_agent_that_restarts_is_waited_for(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(1)
    ds = cluster.add("d", number_shards(3, 5))
    ds.stage().wait(timeout=DEADLINE)
    root = ds.wait(timeout=DEADLINE)
    agent = cluster.agents[0]
    agent.kill()
    # What is here is read without an agent; who never met it is not kept waiting.
    assert ds.path("train-000.tar").exists()
    with pytest.raises(millstream.AgentUnavailableError):
        cluster.client(timeout=DEADLINE).dataset("d")
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.extend([ds.wait(timeout=DEADLINE), ds.status().node]))
    asking.start()
    agent.start()
    asking.join()
    assert found == [root, "node1"]


def test_an_agent_that_restarts_during_a_read_loses_no_sample(own_cluster: Callable[..., Cluster]) -> None:
    """Shards come on demand; the agent dies in the middle of an epoch and comes back."""
    cluster = own_cluster(1)
    ds = cluster.add("d", number_shards(8, 5))
    data: ShardStream[str] = ShardStream(
        ds, transform=lambda sample: sample["txt"].decode(), samples=5, shuffle=True, rank=0, world_size=1, lanes=2
    )
    order = data.order()
    expected = [f"{shard}:{index}" for shard, index in map(order.at, range(len(order)))]
    reading = iter(data)
    seen = [next(reading) for _ in range(7)]
    cluster.agents[0].kill()
    going_on = threading.Thread(target=lambda: seen.extend(reading))
    going_on.start()
    cluster.agents[0].start()
    going_on.join()
    assert seen == expected


def test_a_coordinator_that_is_away_is_named(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(1)
    ds = cluster.add("d", number_shards(1, 1))
    ds.stage().wait(timeout=DEADLINE)
    cluster.coordinator.kill()
    client = cluster.client(timeout=0.5)
    until("the agent has noticed", lambda: not client.status()["coordinator"])
    # What is here does not need it.
    local = client.dataset("d@v1")
    assert local.wait(timeout=5) == ds.root and len(list(local)) == 1
    assert client.dataset("d").ref == "d@v1"
    with pytest.raises(millstream.AgentUnavailableError, match="coordinator"):
        client.dataset("unknown")
    with pytest.raises(millstream.AgentUnavailableError, match="coordinator"):
        local.stage("all")


def test_bytes_that_do_not_match_are_never_shown(cluster: Cluster) -> None:
    files = number_shards(2, 20)
    url = cluster.put("rotten", files)
    fault = cluster.control(
        "POST", "/faults", {"key": "data/rotten/train-001.tar", "request": "get", "kind": {"type": "corrupt", "at": 700}}
    )
    try:
        ds = cluster.client().add("rotten", url, version="v1")
        ds.stage()
        with pytest.raises(millstream.IntegrityError) as caught:
            ds.wait(timeout=DEADLINE)
        error = caught.value
        assert isinstance(error, OSError) and error.code == 5
        assert error.shard == "train-001.tar" and error.expected and error.actual and error.expected != error.actual
        with pytest.raises(millstream.IntegrityError) as caught:
            ds.path("train-001.tar", timeout=DEADLINE)
        assert caught.value.shard == "train-001.tar" and caught.value.expected != caught.value.actual
        visible = cluster.directory / "node1/datasets/rotten@v1/train-001.tar"
        assert not visible.exists()
    finally:
        cluster.control("DELETE", f"/faults/{fault['id']}")


def test_rot_on_disk_is_found_and_named(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(1)
    ds = cluster.add("d", number_shards(2, 20))
    ds.stage().wait(timeout=DEADLINE)
    path = ds.path("train-001.tar")
    good = path.read_bytes()
    os.chmod(path, 0o644)
    with path.open("r+b") as file:
        file.seek(700)
        file.write(b"\xff")
    with pytest.raises(millstream.IntegrityError) as caught:
        ds.verify(timeout=DEADLINE)
    assert caught.value.shard == "train-001.tar" and caught.value.expected != caught.value.actual
    # Repair has begun: waited for, the right bytes are back.
    until("it is repaired", lambda: ds.path("train-001.tar", timeout=DEADLINE).read_bytes() == good)


def test_eviction_leaves_what_is_mapped(cluster: Cluster) -> None:
    ds = cluster.add("mapped", number_shards(1, 50))
    ds.stage("all").wait(timeout=DEADLINE)
    with open(ds.path(0), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    before = bytes(mapped)
    assert ds.evict() > 0
    assert bytes(mapped) == before
    assert ds.status().state == "absent"
    with pytest.raises(millstream.NotReadyError):
        ds.path(0, timeout=0)


def test_pressure_takes_files_away_and_no_bytes(own_cluster: Callable[..., Cluster]) -> None:
    """A window that holds a third of the data moves over it while every shard stays mapped."""
    cluster = own_cluster(1, "--capacity", "1MiB")
    files = {f"{i:02d}.bin": os.urandom(128 << 10) for i in range(24)}
    ds = cluster.add("moving", files)
    ds.stage(placement="window").wait(timeout=DEADLINE)

    def mapped(path: Path) -> list[tuple[str, mmap.mmap]]:
        with path.open("rb") as file:
            return [(path.name, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))]

    data: ShardStream[tuple[str, mmap.mmap]] = ShardStream(
        ds, decode=mapped, samples=1, rank=0, world_size=1, lanes=1, timeout=DEADLINE
    )
    held = list(data)
    there = {path.name for path in (cluster.directory / "node1/datasets/moving@v1").iterdir()}
    assert len(there) <= 8, "the window did not move"
    assert {name: bytes(content) for name, content in held} == files


def test_a_dataset_that_does_not_fit_is_refused(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(1, "--capacity", "1MiB")
    ds = cluster.add("big", {"a.bin": os.urandom(3 << 20)})
    with pytest.raises(millstream.NoSpaceError, match="node1") as caught:
        ds.stage()
        ds.wait(timeout=DEADLINE)
    assert isinstance(caught.value, OSError) and caught.value.code == 7


@pytest.mark.parametrize("staged", [True, False])
def test_readers_that_do_not_fit_beside_each_other_take_turns(own_cluster: Callable[..., Cluster], staged: bool) -> None:
    """Each reads three shards at a time, and there is room for four: neither holds what the other one lacks."""
    files = {name: content + bytes((250 << 10) - len(content)) for name, content in number_shards(12, 4).items()}
    cluster = own_cluster(1, "--capacity", "1MiB")
    ds = cluster.add("turns", files)
    if staged:
        ds.stage(placement="window").wait(timeout=DEADLINE)

    def read(first: int) -> list[str]:
        keys = [f"train-{shard:03d}.tar" for shard in range(first, 12, 2)]
        return list(ShardStream(ds, shards=keys, samples=4, lanes=3, transform=lambda s: s["txt"].decode(), timeout=DEADLINE))

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(read, (0, 1)))
    for first in (0, 1):
        assert sorted(found[first]) == sorted(f"{s}:{i}" for s in range(first, 12, 2) for i in range(4))


def test_a_reader_that_waits_for_its_turn_says_so(own_cluster: Callable[..., Cluster]) -> None:
    """The first one has three shards open and does not go on: there is room for four."""
    files = {name: content + bytes((250 << 10) - len(content)) for name, content in number_shards(12, 4).items()}
    ds = own_cluster(1, "--capacity", "1MiB").add("turns", files)
    ds.stage(placement="window").wait(timeout=DEADLINE)

    def reader(first: int, timeout: float) -> Iterator[Any]:
        keys = [f"train-{shard:03d}.tar" for shard in range(first, 12, 2)]
        return iter(ShardStream(ds, shards=keys, samples=4, lanes=3, rank=0, world_size=1, timeout=timeout))

    first = reader(0, DEADLINE)
    for _ in range(3):
        next(first)
    with pytest.raises(millstream.NotReadyError, match="waits for its turn: those before it have 750 KiB open, of 1.00 MiB"):
        next(reader(1, 3))


def names(ds: millstream.Dataset, lanes: int, seed: int = 0) -> list[str]:
    """What an epoch reads."""
    data: ShardStream[str] = ShardStream(
        ds, decode=lambda path: [path.name], samples=1, shuffle=True, seed=seed, rank=0, world_size=1, lanes=lanes,
        timeout=DEADLINE,
    )  # fmt: skip
    return sorted(data)


def test_what_nobody_reads_any_more_makes_room_for_others(own_cluster: Callable[..., Cluster]) -> None:
    """The disk is full of one version when the next one is read there, and of that when the first one is read again."""
    cluster = own_cluster(1, "--capacity", "1MiB")
    files = {f"{i:02d}.bin": os.urandom(128 << 10) for i in range(24)}
    versions = [cluster.add(name, files) for name in ("first", "second")]
    for ds in versions:
        ds.stage(placement="window").wait(timeout=DEADLINE)
    for ds in (*versions, versions[0]):
        assert names(ds, lanes=2) == sorted(files)


@pytest.mark.parametrize("lanes", [2, 4])
def test_readers_of_two_versions_share_the_nodes(own_cluster: Callable[..., Cluster], lanes: int) -> None:
    """Three nodes, and on each a reader of either; with four lanes they take turns."""
    cluster = own_cluster(3, "--capacity", "1MiB")
    cluster.add("whole", {"a.bin": os.urandom(300 << 10)}).stage("all").wait(timeout=DEADLINE)
    files = {f"{i:02d}.bin": os.urandom(128 << 10) for i in range(24)}
    for name in ("left", "right"):
        cluster.add(name, files).stage("all", placement="window").wait(timeout=DEADLINE)

    def epochs(node: int, name: str) -> list[list[str]]:
        ds = cluster.client(node).dataset(name)
        return [names(ds, lanes, seed=node + epoch) for epoch in range(2)]

    readers = [(node, name) for node in range(3) for name in ("left", "right")]
    with ThreadPoolExecutor(len(readers)) as pool:
        for found in pool.map(lambda reader: epochs(*reader), readers):
            assert found == [sorted(files)] * 2


def test_a_reader_beside_what_is_staged_is_refused_what_does_not_fit(own_cluster: Callable[..., Cluster]) -> None:
    cluster = own_cluster(1, "--capacity", "1MiB")
    cluster.add("whole", {"a.bin": os.urandom(700 << 10)}).stage("all").wait(timeout=DEADLINE)
    ds = cluster.add("window", {f"{i}.bin": os.urandom(128 << 10) for i in range(6)})
    ds.stage(placement="window").wait(timeout=DEADLINE)
    assert len(names(ds, lanes=2)) == 6
    with pytest.raises(millstream.NoSpaceError, match="384 KiB more are needed, and 324 KiB are free") as caught:
        names(ds, lanes=3)
    assert "node1" in str(caught.value)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_ctrl_c_ends_a_wait(cluster: Cluster, where: str) -> None:
    cluster.add(f"never-staged-{where}", number_shards(1, 1))
    code = """
import millstream, os, sys, threading
ds = millstream.Client().dataset("never-staged-" + sys.argv[1])
said = threading.Event()
def wait():
    ds.wait(timeout=600, progress=lambda p: (said.is_set() or print("waiting", flush=True), said.set()))
try:
    if sys.argv[1] == "main":
        wait()
    else:
        t = threading.Thread(target=wait, daemon=True)
        t.start()
        t.join()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    os._exit(7)
"""
    process = python(code, where, MILLSTREAM_SOCKET=cluster.socket())
    assert said(process) == "waiting"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert (out, process.returncode) == ("interrupted\n", 7), err


def test_fork_after_use(cluster: Cluster, numbers: millstream.Dataset) -> None:
    """Parent and children ask at the same time, over sockets of their own."""
    code = """
import os, sys, millstream
ds = millstream.Client().dataset("numbers")
pin = ds.pin()
assert ds.status().ready
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        ok = all(ds.status().ready and ds.path(i).exists() for i in range(12)) and not pin.held
        os._exit(0 if ok else 1)
    children.append(pid)
assert all(ds.status().ready for _ in range(20))
assert pin.held
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(codes)
"""
    process = python(code, MILLSTREAM_SOCKET=cluster.socket())
    out, err = process.communicate(timeout=DEADLINE)
    assert out.strip() == "[0, 0, 0, 0]", err


def test_threads_do_not_mix_up_answers(numbers: millstream.Dataset) -> None:
    wrong: list[str] = []

    def ask(i: int) -> None:
        for _ in range(50):
            reply = numbers._wire.call("x", {"op": "path", "dataset": "numbers@v1", "key": f"train-{i:03d}.tar"})
            if not reply["path"].endswith(f"train-{i:03d}.tar"):
                wrong.append(reply["path"])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB. Needs root."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def on_disk(cluster: Cluster, disk: Path) -> None:
    """Moves the data of its one agent to another file system."""
    agent = cluster.agents[0]
    agent.stop()
    agent.arguments[agent.arguments.index("--data-dir") + 1] = str(disk)
    agent.start()
    until("the agent has a session", lambda: bool(cluster.client().status()["coordinator"]))


def ends(ds: millstream.Dataset, how: str) -> None:
    """Asks for what a broken disk does not take, as trainers do."""
    if how == "staged":
        ds.stage()
        ds.wait(timeout=DEADLINE)
    elif how == "fetched":
        ds.path("train-000.tar", timeout=DEADLINE)
    else:
        ds.stage(placement="window").wait(timeout=DEADLINE)
        list(ShardStream(ds, samples=5, rank=0, world_size=1, timeout=DEADLINE))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("how", ["staged", "fetched", "read in a window"])
def test_a_disk_that_fills_up_is_named(own_cluster: Callable[..., Cluster], small_disk: Path, how: str) -> None:
    """Full while the agent runs: an error with disk and node, no wait until the deadline; what is there stays readable;
    with room, asking again is enough."""
    cluster = own_cluster(1, "--capacity", "1GiB")
    on_disk(cluster, small_disk)
    there = cluster.add("there", number_shards(2, 5))
    there.stage().wait(timeout=DEADLINE)
    root = there.wait(timeout=DEADLINE)
    ds = cluster.add("more", number_shards(2, 5))
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(millstream.NoSpaceError) as caught:
        ends(ds, how)
    assert all(word in str(caught.value) for word in ("node1", str(small_disk), "more@v1", "No space left")), caught.value
    assert not list((small_disk / "datasets").glob("more@v1/*.tar"))
    assert there.wait(timeout=DEADLINE) == root and there.path(1).read_bytes()
    fill.unlink()
    ends(ds, how)
    assert ds.path("train-000.tar", timeout=0).read_bytes() == number_shards(2, 5)["train-000.tar"]


@pytest.fixture
def breakable_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB in a file. Needs root."""
    image, where = tmp_path / "image", tmp_path / "ext4"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("how", ["staged", "fetched", "read in a window"])
def test_a_disk_that_turns_read_only_is_named(own_cluster: Callable[..., Cluster], breakable_disk: Path, how: str) -> None:
    """As the kernel does after an error of the disk, under a running agent: what is there stays readable."""
    cluster = own_cluster(1, "--capacity", "1MiB")
    on_disk(cluster, breakable_disk)
    there = cluster.add("there", number_shards(2, 5))
    there.stage().wait(timeout=DEADLINE)
    root = there.wait(timeout=DEADLINE)
    ds = cluster.add("more", number_shards(2, 5))
    subprocess.run(["mount", "-o", "remount,abort", str(breakable_disk)], check=True)
    with pytest.raises(millstream.MillstreamError) as caught:
        ends(ds, how)
    assert not isinstance(caught.value, millstream.NotReadyError)
    assert all(word in str(caught.value) for word in ("node1", str(breakable_disk), "Read-only")), caught.value
    assert there.wait(timeout=DEADLINE) == root and there.path(1).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_disk_starts_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_BINARY", binary())
    (small_disk / "own").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for where in ("own", "new"):
        with pytest.raises(millstream.MillstreamError, match=f"{where}.*Read-only file system"):
            millstream.Client(local=small_disk / where).hello()


def test_shared_memory_stays_clean(cluster: Cluster, numbers: millstream.Dataset) -> None:
    before = set(os.listdir("/dev/shm"))
    process = python(
        'import millstream, sys; ds = millstream.Client().dataset("numbers"); p = ds.pin(); ds.wait(timeout=60);'
        ' print("up", flush=True); sys.stdin.read()',
        MILLSTREAM_SOCKET=cluster.socket(),
    )
    assert said(process) == "up"
    process.kill()
    process.communicate()
    assert {n for n in set(os.listdir("/dev/shm")) - before if "millstream" in n or n.startswith("ms")} == set()


def test_environment_is_used(cluster: Cluster, numbers: millstream.Dataset) -> None:
    code = 'import millstream; print(millstream.Client().dataset("numbers").wait(timeout=60))'
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(MILLSTREAM_SOCKET=cluster.socket()),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert out.stdout.strip() == str(numbers.root), out.stderr
