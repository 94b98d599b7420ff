"""The canonical order: the same for any number of readers, resumed exactly, shared equally."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import DEADLINE, Cluster, make_tar, number_shards

import millstream
from millstream._millstream import Order, Share
from millstream.stream import Announcer, ShardStream, count_samples, merge_states

TOTAL = 120


def text(sample: dict[str, Any]) -> str:
    return str(sample["txt"], "ascii")


def stream(ds: millstream.Dataset, **arguments: Any) -> ShardStream[str]:
    given: dict[str, Any] = {"transform": text, "shuffle": True, "seed": 17, "rank": 0, "world_size": 1}
    return ShardStream(ds, **{**given, **arguments})


def canonical(ds: millstream.Dataset, **arguments: Any) -> list[str]:
    found = stream(ds, **arguments)
    order = found.order()
    return [f"{shard}:{index}" for shard, index in map(order.at, range(len(order)))]


def test_one_reader_reads_the_order(numbers: millstream.Dataset) -> None:
    found = list(stream(numbers))
    assert found == canonical(numbers) and sorted(found) == sorted(f"{s}:{i}" for s in range(12) for i in range(10))
    assert list(stream(numbers, shuffle=False, lanes=1)) == [f"{s}:{i}" for s in range(12) for i in range(10)]
    assert canonical(numbers, seed=18) != canonical(numbers)


def test_epochs_differ_and_follow_each_other(numbers: millstream.Dataset) -> None:
    data = stream(numbers)
    first, second = list(data), list(data)
    assert first != second and sorted(first) == sorted(second)
    data.set_epoch(0)
    assert list(data) == first
    data.set_epoch(1)
    assert list(data) == second


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_ranks_side_by_side_are_the_order(numbers: millstream.Dataset, world: int) -> None:
    ranks = [list(stream(numbers, rank=r, world_size=world)) for r in range(world)]
    assert len({len(r) for r in ranks}) == 1 and len(ranks[0]) == TOTAL // world
    together = [sample for step in zip(*ranks, strict=True) for sample in step]
    assert together == canonical(numbers)[: TOTAL // world * world]


def test_a_remainder_is_dropped_or_repeated(numbers: millstream.Dataset) -> None:
    dropped = [list(stream(numbers, rank=r, world_size=7)) for r in range(7)]
    assert [len(r) for r in dropped] == [17] * 7 and len(stream(numbers, rank=3, world_size=7)) == 17
    repeated = [list(stream(numbers, rank=r, world_size=7, uneven="repeat")) for r in range(7)]
    assert [len(r) for r in repeated] == [18] * 7
    assert set().union(*repeated) == set(canonical(numbers))


def test_resume_is_exact_at_every_sample(numbers: millstream.Dataset) -> None:
    whole = canonical(numbers)
    for stop in (0, 1, 37, 119, 120):
        data = stream(numbers)
        running = iter(data)
        seen = [next(running) for _ in range(stop)]
        state = json.loads(json.dumps(data.state_dict()))
        resumed = stream(numbers)
        resumed.load_state_dict(state)
        assert seen + list(resumed) == whole


def test_elastic_restarts_lose_and_repeat_nothing(numbers: millstream.Dataset) -> None:
    """Stop anywhere, come back with another number of ranks, three times over."""
    rng = random.Random(5)
    for _ in range(20):
        state: dict[str, Any] | None = None
        seen: list[str] = []
        for world in rng.sample([1, 2, 3, 4, 6], 3):
            ranks = [stream(numbers, rank=r, world_size=world) for r in range(world)]
            if state is not None:
                for data in ranks:
                    data.load_state_dict(state)
            running = [iter(data) for data in ranks]
            steps = rng.randrange(0, 12)
            for _ in range(steps):
                seen += [sample for sample in (next(r, None) for r in running) if sample is not None]
            state = merge_states([data.state_dict() for data in ranks])
        final = stream(numbers)
        assert state is not None
        final.load_state_dict(state)
        seen += list(final)
        assert seen == canonical(numbers)


def test_ranks_that_stopped_at_different_samples(numbers: millstream.Dataset) -> None:
    ranks = [stream(numbers, rank=r, world_size=3) for r in range(3)]
    seen: list[str] = []
    for data, steps in zip(ranks, (5, 9, 2), strict=True):
        running = iter(data)
        seen += [next(running) for _ in range(steps)]
    rest = stream(numbers)
    rest.load_state_dict(merge_states([data.state_dict() for data in ranks]))
    assert sorted(seen + list(rest)) == sorted(canonical(numbers))


def test_positions_of_something_else_are_refused(numbers: millstream.Dataset) -> None:
    state = stream(numbers).state_dict()
    for other in ({"seed": 18}, {"shuffle": False}, {"lanes": 2}, {"shards": "train-00*.tar"}):
        with pytest.raises(millstream.UsageError, match="other samples"):
            stream(numbers, **other).load_state_dict(state)
    with pytest.raises(millstream.UsageError, match="version"):
        stream(numbers).load_state_dict({**state, "version": 99})
    with pytest.raises(millstream.UsageError, match="workers"):
        merge_states({**state, "workers": 2})
    with pytest.raises(millstream.UsageError):
        merge_states([{"nothing": 1}])


def test_state_costs_little(numbers: millstream.Dataset) -> None:
    import sys

    data = stream(numbers)
    running = iter(data)
    next(running)
    data.state_dict()  # the first one sums up what the stream is of
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    data.state_dict()
    sys.setprofile(None)
    assert calls < 12, "state_dict() does work that grows with something"
    assert len(json.dumps(data.state_dict())) < 400


def test_other_formats_and_patterns(cluster: Cluster) -> None:
    files = {f"part-{i}.txt": "\n".join(f"{i}.{j}" for j in range(5)).encode() for i in range(4)}
    files["readme.md"] = b"not samples"
    ds = cluster.add("lines", files)
    ds.stage().wait(timeout=DEADLINE)

    def lines(path: Path) -> Any:
        return (line for line in path.read_text().splitlines())  # no sequence: made a list

    data: ShardStream[str] = ShardStream(ds, decode=lines, shards="part-*.txt", rank=0, world_size=1)
    assert sorted(data) == sorted(f"{i}.{j}" for i in range(4) for j in range(5))
    named: ShardStream[str] = ShardStream(ds, decode=lines, shards=["part-2.txt"], rank=0, world_size=1)
    assert list(named) == [f"2.{j}" for j in range(5)]
    with pytest.raises(millstream.UsageError, match=r"decode="):
        list(ShardStream(ds, rank=0, world_size=1))
    with pytest.raises(millstream.UsageError):
        list(ShardStream(ds, decode=lines, shards="nothing*", rank=0, world_size=1))


def test_sample_counts_given_published_or_counted(cluster: Cluster, numbers: millstream.Dataset) -> None:
    counts = count_samples(numbers)
    assert counts == {f"train-{s:03d}.tar": 10 for s in range(12)}
    whole = canonical(numbers)
    for given in (10, counts, [10] * 12):
        assert list(stream(numbers, samples=given)) == whole
    ds = cluster.add("counted", {**number_shards(3, 4), "millstream-samples.json": json.dumps({f"train-{s:03d}.tar": 4 for s in range(3)}).encode()})
    ds.stage().wait(timeout=DEADLINE)
    assert len(list(stream(ds))) == 12
    with pytest.raises(millstream.DecodeError, match="10 samples, and 11 were announced") as caught:
        list(stream(numbers, samples=11))
    assert caught.value.shard is not None
    with pytest.raises(millstream.UsageError):
        list(stream(numbers, samples=[1, 2]))


def test_a_decoder_that_fails_is_named(numbers: millstream.Dataset) -> None:
    def broken(sample: dict[str, Any]) -> str:
        if sample["txt"] == b"3:7":
            raise ZeroDivisionError("seven")
        return text(sample)

    with pytest.raises(millstream.DecodeError, match=r"sample 7 of 'train-003.tar' of numbers@v1.*ZeroDivisionError: seven") as caught:
        list(stream(numbers, transform=broken))
    assert (caught.value.shard, caught.value.sample) == ("train-003.tar", 7)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(millstream.DecodeError, match="train-"):
        list(stream(numbers, decode=lambda path: 1 / 0, samples=10))


def test_a_shard_that_does_not_come_is_waited_for_and_named(cluster: Cluster) -> None:
    with cluster.stalled("elsewhere"):
        ds = cluster.add("elsewhere", number_shards(2, 2))
        with pytest.raises(millstream.NotReadyError, match="train-00"):
            list(stream(ds, samples=2, timeout=0.3))


@pytest.fixture
def announcements(numbers: millstream.Dataset, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What readers tell the agent."""
    said: list[dict[str, Any]] = []
    tell, answer = numbers._wire.tell, numbers._wire.answer

    def told(connection: Any, thing: str, request: Any) -> None:
        tell(connection, thing, request)
        said.append({"upcoming": [], **request})

    def answered(connection: Any, thing: str) -> Any:
        reply = answer(connection, thing)
        assert reply["announced"] == len(said[-1]["upcoming"])
        return reply

    monkeypatch.setattr(numbers._wire, "tell", told)
    monkeypatch.setattr(numbers._wire, "answer", answered)
    assert "reader" in numbers._wire.features()
    return said


def uses(data: ShardStream[str]) -> list[str]:
    """Shards in the order of their first use."""
    order = data.order()
    return list(dict.fromkeys(data.keys[order.at(p)[0]] for p in range(len(order))))


def test_the_agent_is_told_the_whole_epoch(
    numbers: millstream.Dataset, announcements: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.stream.ANNOUNCE_BYTES", 300)  # a few keys in a line
    data = stream(numbers, lanes=2)
    assert len(list(data)) == TOTAL
    first = [request["upcoming"] for request in announcements if request["upcoming"]]
    assert len(first) > 2 and sum(first, []) == uses(data)
    check_finished(announcements, uses(data), lanes=2)


def test_the_agent_is_told_as_much_as_wanted(numbers: millstream.Dataset, announcements: list[dict[str, Any]]) -> None:
    data = stream(numbers, lanes=2, prefetch=3)
    assert len(list(data)) == TOTAL
    assert announcements[0]["upcoming"] == uses(data)[:5]
    assert sum((request["upcoming"] for request in announcements), []) == uses(data)
    check_finished(announcements, uses(data), lanes=2)


@pytest.mark.parametrize("workers", [2, 3])
def test_each_reader_tells_of_its_share(
    numbers: millstream.Dataset, announcements: list[dict[str, Any]], workers: int
) -> None:
    for rank in range(workers):
        announcements.clear()
        data = stream(numbers, lanes=4, rank=rank, world_size=workers)
        opened = list(dict.fromkeys(sample.split(":")[0] for sample in data))
        told = sum((request["upcoming"] for request in announcements), [])
        assert [f"train-{int(shard):03d}.tar" for shard in opened] == told
        check_finished(announcements, told, lanes=4)


def test_more_shards_at_a_time_than_fit_are_refused(numbers: millstream.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_connection: Any, _thing: str, request: Any) -> Any:
        raise millstream.NoSpaceError(f"reading {request['open']} shards at a time does not fit")

    monkeypatch.setattr(numbers._wire, "tell", full)
    with pytest.raises(millstream.NoSpaceError, match="reading 2 shards at a time"):
        next(iter(stream(numbers, lanes=2)))


class Listener:
    """Stands in for a dataset and its connection: keeps what is announced."""

    ref = "d@v"

    def __init__(self) -> None:
        self._wire, self.is_open, self.owed = self, True, False
        self.said: list[dict[str, Any]] = []

    def features(self) -> set[str]:
        return {"reader"}

    def connection(self) -> Listener:
        self.is_open, self.owed = True, False
        return self

    def tell(self, _connection: Any, _thing: str, request: dict[str, Any]) -> None:
        assert not self.owed, "an answer was left on the line"
        self.owed = True
        self.said.append(request)

    def answer(self, _connection: Any, _thing: str) -> None:
        assert self.owed
        self.owed = False
        if not self.is_open:
            raise millstream.AgentUnavailableError("it was restarted", socket="s")


def test_what_an_agent_was_told_before_it_restarted_is_told_again() -> None:
    share = Share(Order([2] * 6, 1, None, 0), 0, [], 1, 0, 1, 0, 1, False)
    listener = Listener()
    announcer = Announcer(listener, share, [f"{i}" for i in range(6)], 1, None)  # type: ignore[arg-type]
    announcer.at(0)
    announcer.at(2)
    assert listener.owed, "what was read is said in passing"
    listener.is_open = False
    announcer.at(4)
    assert listener.said[-1]["upcoming"] == ["2", "3", "4", "5"], "by the next connection, without a step in between"


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_let_go_that_is_read_later(seed: int) -> None:
    """Any shape: what is read was announced, what is finished is not read any more, and everything gets finished."""
    rng = random.Random(seed)
    shards, lanes, world = rng.choice([1, 2, 5, 12, 40, 300]), rng.choice([1, 2, 3, 4, 8, 16]), rng.choice([1, 2, 3, 4, 6])
    workers, batch, prefetch = rng.choice([1, 2, 3]), rng.choice([1, 4, 8]), rng.choice([None, 4])
    counts = [rng.randint(1, 20) if seed % 2 else 10 for _ in range(shards)]
    order = Order(counts, lanes, rng.choice([None, 7]), seed)
    share = Share(order, 0, [], world, rng.randrange(world), workers, rng.randrange(workers), batch, False)
    read = [f"{shard}" for shard, _ in share.take(0, len(share))]
    last = {key: position for position, key in enumerate(read)}
    listener = Listener()
    announcer = Announcer(listener, share, [f"{i}" for i in range(shards)], lanes, prefetch)  # type: ignore[arg-type]
    finished: set[str] = set()
    for position, key in enumerate(read):
        if key in read[:position]:
            continue
        announcer.at(position)
        announced = {key for request in listener.said for key in request.get("upcoming", [])}
        finished = {key for request in listener.said for key in request["finished"]}
        assert prefetch is not None or key in announced
        assert not [k for k in finished if last.get(k, -1) >= position], "let go too early"
    assert len(set(last) - finished) <= lanes


def check_finished(said: list[dict[str, Any]], told: list[str], lanes: int) -> None:
    """Everything is finished once, after it was announced, in time; nothing that is in use."""
    finished = [key for request in said for key in request["finished"]]
    assert len(set(finished)) == len(finished) and set(finished) <= set(told)
    assert len(told) - len(finished) <= lanes  # those in use at the end: they go with the connection
    assert all(not set(request["finished"]) & set(request["upcoming"]) for request in said)


def test_streams_pickle(numbers: millstream.Dataset) -> None:
    data: ShardStream[str] = ShardStream(numbers, shuffle=True, seed=17, rank=0, world_size=1, transform=text)
    again = pickle.loads(pickle.dumps(data))
    assert list(again) == canonical(numbers)


def test_nonsense_is_refused(numbers: millstream.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"rank": 1}, {"rank": 2, "world_size": 2}, {"batch_size": 0}, {"lanes": 0}, {"uneven": "x"}):
        with pytest.raises(millstream.UsageError):
            ShardStream(numbers, **wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(millstream.UsageError, match="RANK"):
        list(ShardStream(numbers))


def test_tar_reads_what_tarfile_writes(tmp_path: Path) -> None:
    import io
    import tarfile

    from millstream.stream import tar

    long = "d" * 90 + "/" + "x" * 120
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{format}.tar"
        big = bytes(range(256)) * 1024
        names = {"a.txt": b"1", "a.seg.PNG": b"", "b/c.txt": b"22", "big.bin": big, "z.txt": b"end"}
        if format != tarfile.USTAR_FORMAT:
            names[f"{long}.txt"] = b"long"
        with tarfile.open(path, "w", format=format) as archive:
            directory = tarfile.TarInfo("b")
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
            for name, content in names.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        samples = tar(path)
        found = list(samples)
        assert found[0] == {"__key__": "a", "txt": b"1", "seg.png": b""}
        assert found[2] == {"__key__": "big", "bin": big} and samples[-1] == found[-1]
        if format != tarfile.USTAR_FORMAT:
            assert found[-1] == {"__key__": long, "txt": b"long"}
        with pytest.raises(IndexError):
            samples[len(samples)]
    with pytest.raises(FileNotFoundError):
        tar(tmp_path / "none.tar")
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"x" * 1024)
    with pytest.raises(ValueError, match="bad.tar.*tar header at byte 0"):
        tar(bad)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(make_tar({"a": {"bin": bytes(4000)}})[:2000])
    with pytest.raises(ValueError, match="ends within"):
        tar(cut)
