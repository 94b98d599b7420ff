"""Client, datasets, paths, waits: against real daemons."""

from __future__ import annotations

import copy
import io
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEADLINE, Cluster, number_shards, python, said, until

import millstream
from millstream import Progress


def test_three_lines(cluster: Cluster, numbers: millstream.Dataset) -> None:
    ds = cluster.client().dataset("numbers", version="v1")
    root = ds.wait(timeout=DEADLINE)
    assert (root / "train-000.tar").read_bytes() == (cluster.directory / "node1/datasets/numbers@v1/train-000.tar").read_bytes()
    assert root.name == "numbers@v1" and ds.root == root
    assert len(ds) == 12 and len(list(ds)) == 12
    assert ds.status().ready and ds.status().shards_ready == 12


def test_a_name_alone_is_the_latest_version(cluster: Cluster) -> None:
    files = number_shards(1, 1)
    cluster.add("latest", files, "a")
    cluster.add("latest", {**files, "more.bin": b"x"}, "b")
    client = cluster.client()
    assert client.dataset("latest").ref == "latest@b"
    assert client.dataset("latest@a").ref == "latest@a"
    assert client.dataset("latest", version="a").digest != client.dataset("latest").digest
    assert {"latest@a", "latest@b"} <= set(client.datasets())


def test_shards_are_a_sequence(numbers: millstream.Dataset) -> None:
    assert numbers[0].key == "train-000.tar" and numbers[-1].key == "train-011.tar"
    assert numbers["train-003.tar"].index == 3
    assert [s.key for s in numbers[2:4]] == ["train-002.tar", "train-003.tar"]
    assert "train-005.tar" in numbers and "nope" not in numbers and numbers[0] in numbers
    assert numbers[3].nbytes == os.stat(numbers[3]).st_size
    assert sum(s.nbytes for s in numbers) == numbers.nbytes
    with pytest.raises(millstream.NotFoundError, match="nope"):
        numbers["nope"]


def test_files_are_read_only_and_open_anywhere(numbers: millstream.Dataset) -> None:
    path = numbers.path("train-001.tar")
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    with open(numbers[1], "rb") as by_path, numbers[1].open() as by_shard:
        assert by_path.read() == by_shard.read()
    assert numbers.path(1) == path and numbers[1].ready


def test_pages_of_shards(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from millstream import _dataset

    files = {f"d/{i:02d}.bin": bytes([i]) for i in range(23)}
    ds = cluster.add("pages", files)
    monkeypatch.setattr(_dataset, "PAGE", 5)
    assert [s.key for s in ds] == sorted(files)
    # From the manifest on the node as from the coordinator.
    ds.stage().wait(timeout=DEADLINE)
    again = cluster.client().dataset("pages")
    assert [s.key for s in again] == sorted(files) and again.digest == ds.digest
    assert again.path("d/07.bin").read_bytes() == b"\x07"


def test_what_does_not_exist_is_named(cluster: Cluster, numbers: millstream.Dataset) -> None:
    client = cluster.client()
    with pytest.raises(millstream.NotFoundError, match="no-such") as caught:
        client.dataset("no-such")
    assert isinstance(caught.value, FileNotFoundError) and caught.value.code == 3
    with pytest.raises(millstream.NotFoundError):
        client.dataset("numbers", version="v9")
    with pytest.raises(millstream.NotFoundError, match="nope"):
        numbers.path("nope")
    with pytest.raises(millstream.UsageError):
        client.dataset("numbers@v1", version="v1")
    with pytest.raises(millstream.MillstreamError):
        client.dataset("bad name!")


def test_not_ready_names_what_is_missing(cluster: Cluster) -> None:
    ds = cluster.add("absent", number_shards(2, 1))
    with pytest.raises(millstream.NotReadyError) as caught:
        ds.wait(timeout=0.2)
    assert isinstance(caught.value, TimeoutError) and "absent@v1" in str(caught.value)
    assert caught.value.slow_nodes == ["node1"]
    assert ds.status().state == "absent"
    with pytest.raises(millstream.NotReadyError):
        ds.path("train-000.tar", timeout=0)
    with pytest.raises(millstream.NotReadyError):
        _ = ds.root


def test_stage_wait_and_progress(cluster: Cluster) -> None:
    ds = cluster.add("staged", number_shards(4, 50))
    seen: list[Progress] = []
    transfer = ds.stage("all")
    assert sorted(transfer.nodes) == ["node1", "node2"]
    last = transfer.wait(timeout=DEADLINE, progress=seen.append)
    assert last.state == "ready" and last.nodes_ready == 2 and seen[-1].fraction == 1.0
    seen.clear()
    root = ds.wait(timeout=DEADLINE, progress=seen.append)
    assert seen[-1].state == "ready" and str(seen[-1]).startswith("staged@v1: ready")
    assert transfer.status().state == "ready"
    here = cluster.client(1).dataset("staged").wait(timeout=DEADLINE)
    assert here != root and sorted(p.name for p in here.iterdir()) == sorted(p.name for p in root.iterdir())


def test_waiting_for_some_shards(numbers: millstream.Dataset) -> None:
    root = numbers.wait(["train-001.tar", 2], timeout=DEADLINE)
    assert (root / "train-002.tar").exists()


def test_the_bar_is_quiet_off_a_terminal(capfd: pytest.CaptureFixture[str], numbers: millstream.Dataset) -> None:
    numbers.wait(timeout=DEADLINE, progress=True)
    assert capfd.readouterr() == ("", "")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from millstream._progress import Bar, ProgressMaker

    terminal = Terminal()
    bar = Bar(terminal)
    bar(ProgressMaker("d@v").make({"state": "ready", "bytes_ready": 4, "bytes_total": 4}))
    bar.close()
    assert "100%" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_things_survive_pickling(numbers: millstream.Dataset, cluster: Cluster) -> None:
    client = pickle.loads(pickle.dumps(cluster.client()))
    assert client.dataset("numbers") == numbers
    again = pickle.loads(pickle.dumps(numbers))
    assert again == numbers and again[3].key == "train-003.tar" and again.path(3) == numbers.path(3)
    shard = copy.copy(numbers[3])
    assert shard == numbers[3]
    error = millstream.IntegrityError("x", shard="k", expected="1", actual="2", source="origin")
    back = pickle.loads(pickle.dumps(error))
    assert (back.shard, back.expected, back.actual, back.source, str(back)) == ("k", "1", "2", "origin", "x")


def test_pins_hold_and_end_with_the_process(cluster: Cluster) -> None:
    ds = cluster.add("pinned", number_shards(1, 1))
    ds.stage("all").wait(timeout=DEADLINE)
    with ds.pin() as root:
        assert root.is_dir()
        with pytest.raises(millstream.ConflictError):
            ds.evict()
    # A process that is killed lets go.
    code = """
import sys, millstream
ds = millstream.Client().dataset("pinned")
pin = ds.pin()
print("held", flush=True)
sys.stdin.read()
"""
    holder = python(code, MILLSTREAM_SOCKET=cluster.socket())
    assert said(holder) == "held"
    with pytest.raises(millstream.ConflictError):
        ds.evict()
    holder.kill()
    holder.communicate()

    def evicted() -> bool:
        try:
            return ds.evict() > 0
        except millstream.ConflictError:
            return False

    until("the dead process's pin is gone", evicted)


def test_verify_reads_everything(numbers: millstream.Dataset) -> None:
    assert numbers.verify(timeout=DEADLINE) == numbers.nbytes


def test_open_by_url(cluster: Cluster, numbers: millstream.Dataset) -> None:
    with millstream.open("millstream://numbers@v1/train-002.tar", client=cluster.client()) as file:
        assert file.read() == numbers.path(2).read_bytes()
    for wrong in ("http://x/y", "millstream://numbers", "millstream:///k"):
        with pytest.raises(millstream.UsageError):
            millstream.open(wrong, client=cluster.client())


def test_checkpoints_are_found_by_run_and_step(cluster: Cluster) -> None:
    client = cluster.client()
    for step in (100, 200):
        url = cluster.put(f"run-a-{step}", {"model.bin": b"%d" % step})
        client.add(f"run-a-{step}", url, version="v1", run="a", step=step)
    latest = client.checkpoint("a")
    assert isinstance(latest, millstream.Checkpoint) and (latest.run, latest.step) == ("a", 200)
    latest.stage().wait(timeout=DEADLINE)
    assert latest.path("model.bin").read_bytes() == b"200"
    assert client.checkpoint("a", step=100).step == 100
    with pytest.raises(millstream.NotFoundError, match="step 300"):
        client.checkpoint("a", step=300)
    with pytest.raises(millstream.NotFoundError):
        client.checkpoint("no-run")


def test_reprs_say_what_it_is(cluster: Cluster, numbers: millstream.Dataset) -> None:
    assert cluster.socket() in repr(cluster.client())
    assert repr(numbers).startswith("<millstream.Dataset numbers@v1, 12 shards, ")
    assert "'train-000.tar' of numbers@v1" in repr(numbers[0])
    assert str(numbers.status()).startswith("numbers@v1 on node1: ready, 12/12 shards")
    assert "released" in repr(_released(numbers))


def _released(ds: millstream.Dataset) -> millstream.Pin:
    pin = ds.pin()
    assert pin.held
    pin.release()
    return pin


def test_import_opens_and_starts_nothing() -> None:
    process = python(
        """
import os, threading
before = set(os.listdir("/proc/self/fd"))
import millstream
client = millstream.Client("/nowhere/agent.sock")
assert threading.active_count() == 1
assert set(os.listdir("/proc/self/fd")) == before
assert "torch" not in __import__("sys").modules and "fsspec" not in __import__("sys").modules
print(len(os.listdir("/proc/self/task")))
"""
    )
    out, err = process.communicate(timeout=60)
    assert (out.strip(), err) == ("1", "")


def test_import_is_light() -> None:
    """Modules that take long are imported when they are used."""
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import millstream
heavy = {"asyncio", "dataclasses", "importlib.metadata", "inspect", "json", "pathlib", "re", "socket", "subprocess", "typing"}
print(sorted(heavy & set(sys.modules)))
assert "Progress" in dir(millstream) and millstream.Progress.__name__ == "Progress" and "torch" in dir(millstream)
"""
    # Without `site`: what other packages load at every start is not ours.
    package = str(Path(millstream.__file__).parent.parent)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, package], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_package_is_typed() -> None:
    where = Path(millstream.__file__).parent
    assert (where / "py.typed").exists() and (where / "_millstream.pyi").exists()
