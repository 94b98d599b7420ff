"""PyTorch's data loaders over `ShardDataset`."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pytest
from conftest import DEADLINE, Cluster, clean_environment, number_shards, python, said, until

import millstream

import numpy.random  # noqa: F401  (else each forked worker imports it, and CPython 3.11 may trip over its locks)

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, IterableDataset  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

from millstream.torch import ShardDataset, merge_states  # noqa: E402


def text(sample: dict[str, Any]) -> str:
    return str(sample["txt"], "ascii")


def dataset(ds: millstream.Dataset, **arguments: Any) -> ShardDataset[str]:
    given: dict[str, Any] = {"transform": text, "shuffle": True, "seed": 17, "rank": 0, "world_size": 1, "batch_size": 4}
    return ShardDataset(ds, **{**given, **arguments})


def canonical(ds: millstream.Dataset) -> list[str]:
    order = dataset(ds).order(0)
    return [f"{shard}:{index}" for shard, index in map(order.at, range(len(order)))]


def test_it_is_an_iterable_dataset(numbers: millstream.Dataset) -> None:
    data = dataset(numbers)
    assert isinstance(data, IterableDataset) and len(data) == 120
    assert list(data) == canonical(numbers)
    assert len(DataLoader(data, batch_size=4)) == 30


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_the_order_does_not_depend_on_workers(numbers: millstream.Dataset, workers: int) -> None:
    loader = DataLoader(dataset(numbers), batch_size=4, num_workers=workers)
    assert [sample for batch in loader for sample in batch] == canonical(numbers)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_however_started(numbers: millstream.Dataset, method: str) -> None:
    numbers.status()  # in use before the fork
    loader = DataLoader(
        dataset(numbers), batch_size=4, num_workers=2, multiprocessing_context=method, timeout=DEADLINE
    )
    assert [sample for batch in loader for sample in batch] == canonical(numbers)


def test_ranks_and_workers_together(numbers: millstream.Dataset) -> None:
    ranks = [
        [s for b in DataLoader(dataset(numbers, rank=r, world_size=3), batch_size=4, num_workers=2) for s in b]
        for r in range(3)
    ]
    steps = zip(*ranks, strict=True)
    assert [sample for step in steps for sample in step] == canonical(numbers)


def test_persistent_workers_go_on_to_the_next_epoch(numbers: millstream.Dataset) -> None:
    loader = DataLoader(dataset(numbers), batch_size=4, num_workers=2, persistent_workers=True)
    first = [s for b in loader for s in b]
    second = [s for b in loader for s in b]
    order = dataset(numbers).order(1)
    assert first == canonical(numbers)
    assert second == [f"{s}:{i}" for s, i in map(order.at, range(len(order)))]


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loaders_resume_exactly(numbers: millstream.Dataset, workers: int) -> None:
    whole = canonical(numbers)
    for stop in (1, 7, 16, 29):
        loader = StatefulDataLoader(dataset(numbers), batch_size=4, num_workers=workers)
        running = iter(loader)
        seen = [s for _ in range(stop) for s in next(running)]
        state = loader.state_dict()
        del running
        again = StatefulDataLoader(dataset(numbers), batch_size=4, num_workers=workers)
        again.load_state_dict(state)
        assert seen + [s for b in again for s in b] == whole, stop


@pytest.mark.parametrize(("before", "after"), [((2, 2), (3, 1)), ((1, 3), (4, 0)), ((3, 0), (1, 2))])
def test_elastic_restart(numbers: millstream.Dataset, before: tuple[int, int], after: tuple[int, int]) -> None:
    """So many ranks and workers, then others: every sample once."""

    def loaders(world: int, workers: int, state: Any = None) -> list[Any]:
        made = []
        for rank in range(world):
            data = dataset(numbers, rank=rank, world_size=world)
            if state is not None:
                data.load_state_dict(state)
            made.append(StatefulDataLoader(data, batch_size=4, num_workers=workers))
        return made

    first = loaders(*before)
    running = [iter(loader) for loader in first]
    seen = [s for _ in range(5) for r in running for s in next(r)]
    states = [loader.state_dict() for loader in first]
    merged = merge_states(states)
    # In data-parallel training one rank's state says it all.
    assert {**merge_states(states[0]), "rank": 0} == {**merged, "rank": 0}
    del running
    rest = [s for loader in loaders(*after, state=merged) for b in loader for s in b]
    left = 120 - len(seen)
    assert len(rest) == left // after[0] * after[0] and len(set(seen + rest)) == len(seen) + len(rest)
    assert set(seen + rest) <= set(canonical(numbers))


def test_a_worker_alone_cannot_be_restriped(numbers: millstream.Dataset) -> None:
    loader = StatefulDataLoader(dataset(numbers), batch_size=4, num_workers=2)
    next(iter(loader))
    one = next(iter(__import__("millstream.stream").stream._worker_states(loader.state_dict())))
    data = dataset(numbers)
    data.load_state_dict({**one, "taken": 4})
    with pytest.raises(millstream.UsageError, match="merge_states"):
        list(data)


def die(sample: dict[str, Any]) -> str:
    if torch.utils.data.get_worker_info().id == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return text(sample)


def fail(sample: dict[str, Any]) -> str:
    if sample["txt"] == b"3:7":
        raise ZeroDivisionError("seven")
    return text(sample)


def test_a_killed_worker_is_an_error(numbers: millstream.Dataset) -> None:
    loader = DataLoader(dataset(numbers, transform=die), batch_size=4, num_workers=2, timeout=DEADLINE)
    with pytest.raises(RuntimeError, match="killed|exited"):
        list(loader)
    # Nothing is left behind that would disturb the next one.
    assert len([s for b in DataLoader(dataset(numbers), batch_size=4, num_workers=2) for s in b]) == 120


def test_a_decoder_that_fails_in_a_worker_is_named(numbers: millstream.Dataset) -> None:
    loader = DataLoader(dataset(numbers, transform=fail), batch_size=4, num_workers=2)
    with pytest.raises(millstream.DecodeError, match="sample 7 of 'train-003.tar'") as caught:
        list(loader)
    assert (caught.value.shard, caught.value.sample) == ("train-003.tar", 7)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_bad_bytes_are_an_error_with_fields(cluster: Cluster, method: str) -> None:
    """The origin alters a shard: the training process gets IntegrityError as the worker had it, and no sample of it."""
    name = f"torch-rotten-{method}"
    url = cluster.put(name, number_shards(2, 20))
    fault = {"key": f"data/{name}/train-001.tar", "request": "get", "kind": {"type": "corrupt", "at": 700}}
    found = cluster.control("POST", "/faults", fault)
    try:
        ds = cluster.client().add(name, url, version="v1")
        data = dataset(ds, samples=20, shuffle=False, lanes=1, timeout=DEADLINE)
        loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method, timeout=DEADLINE)
        seen: list[str] = []
        with pytest.raises(millstream.IntegrityError, match="DataLoader worker") as caught:
            for batch in loader:
                seen.extend(batch)
    finally:
        cluster.control("DELETE", f"/faults/{found['id']}")
    error = caught.value
    assert isinstance(error, OSError) and error.code == 5 and error.shard == "train-001.tar"
    assert error.expected and error.actual and error.expected != error.actual and error.source == "origin"
    assert error.node == "node1" and "fields of this error" not in str(error)
    assert all(sample.startswith("0:") for sample in seen)


def test_what_does_not_come_is_an_error_in_workers(cluster: Cluster) -> None:
    with cluster.stalled("torch-absent"):
        ds = cluster.add("torch-absent", number_shards(2, 2))
        loader = DataLoader(dataset(ds, samples=2, timeout=0.3), batch_size=1, num_workers=2)
        with pytest.raises(millstream.NotReadyError, match="train-00"):
            list(loader)


def test_ctrl_c_with_workers(cluster: Cluster, numbers: millstream.Dataset) -> None:
    """Interrupted while workers wait for a shard that never comes: main and workers end."""
    code = """
import millstream, os, signal, sys
from torch.utils.data import DataLoader
from millstream.torch import ShardDataset
ds = millstream.Client().dataset("torch-never")
def show(_worker):
    os.write(1, b"%d\\n" % os.getpid())  # print() writes word by word where PYTHONUNBUFFERED is set: lines would mix
loader = DataLoader(ShardDataset(ds, samples=1), num_workers=2, worker_init_fn=show)
try:
    next(iter(loader))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""
    shards = number_shards(2, 1)
    with cluster.stalled("torch-never"):
        cluster.add("torch-never", shards)
        process = python(code, MILLSTREAM_SOCKET=cluster.socket())
        workers = [int(said(process)) for _ in range(2)]
        until("each worker waits for its shard", lambda: cluster.asked("torch-never") == set(shards))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=DEADLINE)
        assert (out, process.returncode) == ("interrupted\n", 7), err
        until("the workers have ended", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def test_rank_comes_from_the_process_group(numbers: millstream.Dataset) -> None:
    """Two real ranks with gloo; spawned workers know their rank although they have no process group."""
    code = """
import json, os, sys, millstream, torch.distributed as dist
from torch.utils.data import DataLoader
from millstream.torch import ShardDataset
def text(sample):
    return str(sample["txt"], "ascii")
if __name__ == "__main__":
    rank, port = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
    ds = millstream.Client().dataset("numbers")
    data = ShardDataset(ds, transform=text, shuffle=True, seed=17, batch_size=4)
    loader = DataLoader(data, batch_size=4, num_workers=1, multiprocessing_context="spawn")
    print(json.dumps([s for b in loader for s in b]))
    dist.destroy_process_group()
"""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as where:
        script = os.path.join(where, "train.py")
        with open(script, "w") as file:
            file.write(code)
        socket = numbers._wire.socket()
        ranks = [
            subprocess.Popen(
                [sys.executable, script, str(r), os.path.join(where, "rendezvous")],
                stdout=subprocess.PIPE,
                text=True,
                env=clean_environment(MILLSTREAM_SOCKET=socket),
            )
            for r in range(2)
        ]
        outputs = [json.loads(p.communicate(timeout=DEADLINE)[0]) for p in ranks]
    assert [s for step in zip(*outputs, strict=True) for s in step] == canonical(numbers)
