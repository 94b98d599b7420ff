"""Samples of a dataset in one canonical order, shared out to any number of readers.

The order of an epoch depends on the dataset, the seed and the epoch, never on how many ranks or workers read it. Each
reader takes its share by arithmetic. A saved position says which prefix of the order is consumed (and which few samples
beyond it); any number of readers may go on from there, and none of them repeats or misses a sample.

`millstream.torch.ShardDataset` is this as a PyTorch dataset; `ShardStream` needs nothing but Millstream.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from millstream._dataset import Dataset
from millstream._errors import (
    AgentUnavailableError,
    DecodeError,
    MillstreamError,
    NoSpaceError,
    NotReadyError,
    UsageError,
)
from millstream._millstream import ORDER_VERSION, Connection, Order, Share, Tar

Sample = TypeVar("Sample")
State = dict[str, Any]
Decode = Callable[[Path], Iterable[Any]]

# A shard of this name says how many samples each other shard has: {"train-000.tar": 120, ...}.
SAMPLES_KEY = "millstream-samples.json"
STATE_VERSION = 1
# Places looked up at once: enough to make the call cheap, few enough to forget.
CHUNK = 256
# Shards that the agent is told ahead: all of an epoch, unless that is more than the coordinator looks at anyway.
AHEAD_MAX = 4096
# Bytes of keys in one announcement; a line to the agent has at most 64 KiB.
ANNOUNCE_BYTES = 32 << 10


class Place(NamedTuple):
    """One reader: worker `worker` of `workers` on rank `rank` of `world`, which hands out `batch` samples at a time."""

    world: int
    rank: int
    workers: int
    worker: int
    batch: int


def tar(path: str | os.PathLike[str]) -> Sequence[dict[str, Any]]:
    """The samples of a tar shard: `{"__key__": ..., "jpg": bytes, "cls": bytes}`, WebDataset-style. The headers are
    read now, samples when they are asked for."""
    return cast("Sequence[dict[str, Any]]", Tar(os.fspath(path)))


class ShardStream(Generic[Sample]):
    """The samples of a dataset, in the canonical order, for one reader after another.

    `decode`: from a shard's path to its samples; a sequence is read lazily, anything else is made a list. Tar shards
    need none. `transform`: applied to each sample. `shards`: a pattern (`"train-*.tar"`) or keys.

    `samples`: how many samples the shards have: a number, a mapping by key, or a list. Without it the dataset's own
    `millstream-samples.json` is used, else every shard is opened once to count (they must be on this node then).

    `shuffle`, `seed`: another order in every epoch, the same everywhere. `lanes`: consecutive samples come from this
    many shards; more of them mix better, and keep more shards in use at a time.

    `batch_size`: what the data loader collects from one worker before it goes to the next. With it, the batches of all
    workers and ranks, side by side, are the canonical order exactly.

    `rank`, `world_size`: this process's place, by default from `RANK` and `WORLD_SIZE`. Every rank gets the same number
    of samples; `uneven` says what becomes of a remainder: `"drop"` (fewer samples than ranks) or `"repeat"`.

    `timeout`: seconds that one shard is waited for. The agent is told which shards come next and which were read, so
    that with placement `window` they come before they are asked for, and go behind the reader; `prefetch`: how many
    ahead of those in use, by default all of the epoch (at most 4096). What was not announced, nobody keeps for this
    reader.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        decode: Decode | None = None,
        transform: Callable[[Any], Sample] | None = None,
        shards: str | Iterable[str] | None = None,
        samples: int | Mapping[str, int] | Sequence[int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        lanes: int | None = None,
        batch_size: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: Literal["drop", "repeat"] = "drop",
        timeout: float = 600.0,
        prefetch: int | None = None,
    ) -> None:
        super().__init__()
        if (rank is None) != (world_size is None):
            raise UsageError("rank and world_size belong together; give both or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} is not one of {world_size}")
        if batch_size < 1 or (prefetch is not None and prefetch < 1) or (lanes is not None and lanes < 1):
            raise UsageError(f"batch_size {batch_size}, prefetch {prefetch}, lanes {lanes}: must be at least 1")
        if uneven not in ("drop", "repeat"):
            raise UsageError(f'uneven={uneven!r} is neither "drop" nor "repeat"')
        self.dataset = dataset
        self.decode = decode
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self.batch_size = batch_size
        self.uneven = uneven
        self.timeout = timeout
        self.prefetch = prefetch
        self._pattern = shards if shards is None or isinstance(shards, str) else list(shards)
        self._samples = samples
        self._lanes = lanes
        self._given = None if rank is None or world_size is None else (rank, world_size)
        self._keys: list[str] | None = None
        self._counts: list[int] | None = None
        # Where the next iteration begins, and how far the current one is.
        self._epoch = 0
        self._base: tuple[int, list[int]] = (0, [])
        self._taken = 0
        self._at: Place | None = None
        self._finished = False
        self._resumed = False

    # ------------------------------------------------------------ what there is

    @property
    def keys(self) -> list[str]:
        """The shards that samples are taken from, in the order of their keys."""
        if self._keys is None:
            known = [shard.key for shard in self.dataset]
            if isinstance(self._pattern, list):
                keys = [self.dataset[key].key for key in self._pattern]
            else:
                pattern = self._pattern or ("*.tar" if self.decode is None else "*")
                keys = [k for k in known if fnmatch.fnmatchcase(k, pattern) and k != SAMPLES_KEY]
            if not keys:
                hint = "" if self.decode is not None else ", or decode=, which other shards than *.tar need"
                raise UsageError(f"{self.dataset.ref} has no shards {self._pattern or '*.tar'!r}; next: correct shards={hint}")
            self._keys = keys
        return self._keys

    @property
    def counts(self) -> list[int]:
        """Samples of each shard in `keys`."""
        if self._counts is None:
            keys, given = self.keys, self._samples
            if given is None and SAMPLES_KEY in self.dataset:
                given = json.loads(self.dataset.path(SAMPLES_KEY, timeout=self.timeout).read_bytes())
            if given is None:
                self._counts = [len(self._decoded(key)) for key in keys]
            elif isinstance(given, int):
                self._counts = [given] * len(keys)
            elif isinstance(given, Mapping):
                absent = [key for key in keys if key not in given]
                if absent:
                    raise UsageError(f"the sample counts of {self.dataset.ref} lack {absent[0]!r}; next: count again")
                self._counts = [int(given[key]) for key in keys]
            elif len(given) != len(keys):
                raise UsageError(f"{len(given)} sample counts for the {len(keys)} shards of {self.dataset.ref}")
            else:
                self._counts = [int(n) for n in given]
        return self._counts

    @property
    def lanes(self) -> int:
        """How many shards consecutive samples come from. By default 16, or a quarter of the shards if that is less."""
        return self._lanes or max(1, min(16, len(self.keys) // 4))

    def order(self, epoch: int | None = None) -> Order:
        """The canonical order of an epoch: `len()`, and `at(position)` gives shard (an index into `keys`) and sample."""
        seed = self.seed & 0xFFFF_FFFF_FFFF_FFFF if self.shuffle else None
        return Order(self.counts, self.lanes, seed, self._epoch if epoch is None else epoch)

    def __len__(self) -> int:
        """Samples that this rank gets in an epoch."""
        total, world = sum(self.counts), self._rank_and_world()[1]
        return -(-total // world) if self.uneven == "repeat" else total // world

    def set_epoch(self, epoch: int) -> None:
        """The next iteration reads this epoch from its beginning. Without it, an iteration that follows a finished one
        reads the next epoch; but a data loader that makes new workers for each epoch must be told."""
        if epoch < 0:
            raise UsageError(f"epoch {epoch} is negative")
        if self._resumed and epoch == self._epoch:
            return  # a resumed epoch goes on where it was
        self._epoch, self._base, self._taken, self._at = epoch, (0, []), 0, None
        self._finished = self._resumed = False

    # ------------------------------------------------------------- positions

    def fingerprint(self) -> str:
        """What a position must have been saved for to mean the same samples."""
        facts = [self.dataset.digest, self.shuffle, self.seed, self.lanes, ORDER_VERSION, self.keys, self.counts]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def state_dict(self) -> State:
        """The position after the last sample that was handed out. Costs microseconds."""
        at = self._at or self._place()
        return {
            "version": STATE_VERSION,
            "fingerprint": self._fingerprint_once(),
            "epoch": self._epoch,
            "prefix": self._base[0],
            "extras": self._base[1],
            "world": at.world,
            "rank": at.rank,
            "workers": at.workers,
            "worker": at.worker,
            "batch": at.batch,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on from `state`: one that `state_dict` returned, or the result of `merge_states`."""
        if state.get("version") != STATE_VERSION:
            raise UsageError(f"a position of version {state.get('version')}; this package reads {STATE_VERSION}")
        if state["fingerprint"] != self._fingerprint_once():
            raise UsageError(
                f"the position was saved for other samples than {self.dataset.ref} with shuffle={self.shuffle}, "
                f"seed={self.seed}, lanes={self.lanes}; next: use the dataset version and the settings of that run"
            )
        self._epoch = int(state["epoch"])
        self._base = (int(state["prefix"]), [int(p) for p in state["extras"]])
        self._taken = int(state["taken"])
        self._at = Place(*(int(state[name]) for name in Place._fields))
        self._finished = False
        self._resumed = True

    def _fingerprint_once(self) -> str:
        found: str | None = self.__dict__.get("_fingerprint")
        if found is None:
            found = self._fingerprint = self.fingerprint()
        return found

    # -------------------------------------------------------------- reading

    def __iter__(self) -> Iterator[Sample]:
        place = self._place()
        if self._finished:
            self._epoch, self._base, self._taken, self._at = self._epoch + 1, (0, []), 0, None
        elif not self._resumed:
            self._base, self._taken = (0, []), 0
        self._finished = self._resumed = False
        order = self.order()
        if self._at is not None and self._taken and self._at != place:
            self._base, self._taken = self._restriped(self._at, place, len(order)), 0
        self._at = place
        prefix, extras = self._base
        share = Share(
            order, prefix, extras, place.world, place.rank, place.workers, place.worker, place.batch,
            self.uneven == "repeat",
        )  # fmt: skip
        return self._samples_of(share)

    def _restriped(self, old: Place, new: Place, total: int) -> tuple[int, list[int]]:
        if old.workers > 1:
            raise UsageError(
                f"the position is that of worker {old.worker} of {old.workers} alone, and now there are {new.workers} "
                f"workers on {new.world} ranks; next: load_state_dict(merge_states(...)) with the states of all workers"
            )
        return Share.after(total, *self._base, [(old.world, old.rank, old.workers, old.worker, old.batch, self._taken)])

    def _samples_of(self, share: Share) -> Iterator[Sample]:
        sources: OrderedDict[int, Sequence[Any]] = OrderedDict()
        keys, transform, most = self.keys, self.transform, self.lanes + 1
        announcer = Announcer(self.dataset, share, keys, self.lanes, self.prefetch)
        for start in range(self._taken, len(share), CHUNK):
            for offset, (shard, index) in enumerate(share.take(start, CHUNK)):
                source = sources.get(shard)
                if source is None:
                    announcer.at(start + offset)
                    source = sources[shard] = self._decoded(keys[shard])
                    self._check(shard, source)
                    if len(sources) > most:
                        sources.popitem(last=False)
                else:
                    sources.move_to_end(shard)
                try:
                    sample = source[index]
                    if transform is not None:
                        sample = transform(sample)
                except Exception as error:
                    raise self._decode_error(keys[shard], index, error) from error
                self._taken += 1
                yield sample
                del sample  # whoever got it decides how long it lives: the next one may take its memory
        self._finished = True
        announcer.close()

    def _decoded(self, key: str) -> Sequence[Any]:
        """The samples of a shard, waiting for it as long as it takes, at most `timeout`."""
        deadline = time.monotonic() + self.timeout
        while True:
            path = self.dataset.path(key, timeout=max(0.0, deadline - time.monotonic()))
            try:
                return tar(path) if self.decode is None else _sequence(self.decode(path))
            except Exception as error:
                if isinstance(error, FileNotFoundError) and not path.exists() and time.monotonic() < deadline:
                    self.dataset._forget_root()  # evicted between asking for it and opening it: ask again
                    continue
                raise self._decode_error(key, None, error) from error

    def _check(self, shard: int, source: Sequence[Any]) -> None:
        if len(source) != self.counts[shard]:
            key = self.keys[shard]
            raise DecodeError(
                f"{key!r} of {self.dataset.ref} has {len(source)} samples, and {self.counts[shard]} were announced; "
                "next: correct samples=, or millstream-samples.json",
                shard=key,
            )

    def _decode_error(self, key: str, sample: int | None, error: Exception) -> MillstreamError:
        if isinstance(error, MillstreamError):
            return error
        where = f"{key!r} of {self.dataset.ref}" if sample is None else f"sample {sample} of {key!r} of {self.dataset.ref}"
        words = f"{where}: the decoder failed: {type(error).__name__}: {error} (the bytes are verified)"
        return DecodeError(words, shard=key, sample=sample)

    # --------------------------------------------------------------- places

    def _place(self) -> Place:
        rank, world = self._rank_and_world()
        return Place(world=world, rank=rank, workers=1, worker=0, batch=self.batch_size)

    def _rank_and_world(self) -> tuple[int, int]:
        if self._given is not None:
            return self._given
        try:
            rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError:
            rank, world = -1, 0
        if not 0 <= rank < world:
            raise UsageError(
                f"RANK={os.environ.get('RANK')!r} and WORLD_SIZE={os.environ.get('WORLD_SIZE')!r} name no place; next: "
                "give rank= and world_size="
            )
        return rank, world

    def __repr__(self) -> str:
        rank, world = self._rank_and_world()
        how = f"shuffled by {self.seed}" if self.shuffle else "in order"
        return f"<{type(self).__name__} of {self.dataset.ref}, {how}, epoch {self._epoch}, rank {rank} of {world}>"


class Announcer:
    """Tells the agent what a reader needs next and what it has read, where the agent wants to know. Only advice: reading
    goes on without it. But more shards at a time than the node has room for raise NoSpaceError.

    A reader lives as long as its connection: this one is its own, and is closed when the iteration is over or dropped.
    """

    def __init__(self, dataset: Dataset, share: Share, keys: list[str], lanes: int, prefetch: int | None) -> None:
        self._dataset, self._share, self._keys, self._lanes = dataset, share, keys, lanes
        self._horizon = AHEAD_MAX if prefetch is None else lanes + prefetch
        self._connection: Connection | None = None
        self._owed = False
        # Announced and not yet read through: shards with their number in the order of first use.
        self._left: dict[int, int] = {}
        self._announced = 0

    def at(self, position: int) -> None:
        """The reader is about to take its sample `position`, which is in a shard that it has not open."""
        try:
            wire = self._dataset._wire
            if "reader" not in wire.features():
                return
            try:
                self._settle()
            except AgentUnavailableError:
                pass  # it went away since: the next one is told everything
            if self._connection is None or not self._connection.is_open:
                # A new connection is a new reader, also for an agent that was restarted.
                self._connection, self._left, self._announced, self._owed = wire.connection(), {}, 0, False
            self._tell(position)
        except NoSpaceError:
            raise  # it would wait for ever
        except (AgentUnavailableError, NotReadyError):
            pass  # it is away, or the version is not staged here: shards are then asked for one by one
        except MillstreamError as error:
            warnings.warn(f"{self._dataset.ref}: shards are not fetched ahead: {error}", RuntimeWarning, stacklevel=2)

    def _tell(self, position: int) -> None:
        # Each lane has one shard in use. What comes before them in the order is over; one that was not announced comes
        # after all that were.
        current = set(self._share.upcoming(position, self._lanes))
        reach = max((self._left.get(shard, self._announced) for shard in current), default=-1)
        over = [shard for shard in takewhile(lambda s: self._left[s] <= reach, self._left) if shard not in current]
        for shard in over:
            del self._left[shard]
        more: list[int] = []
        if len(self._left) <= self._horizon // 2 or len(self._left) < self._lanes:
            more = [shard for shard in self._share.upcoming(position, self._horizon) if shard not in self._left]
        finished = [self._keys[shard] for shard in over]
        # One sample of each lane: as many shards are open at a time.
        open_now = len({shard for shard, _ in self._share.take(position, self._lanes)})
        for keys in _lines([self._keys[shard] for shard in more]) or [[]]:
            self._ask(keys, finished, open_now)
            finished = []
        for shard in more:
            self._left[shard] = self._announced
            self._announced += 1

    def _ask(self, upcoming: list[str], finished: list[str], open_now: int) -> None:
        if self._connection is None or not (upcoming or finished):
            return
        ref = self._dataset.ref
        request: dict[str, Any] = {"op": "reader", "dataset": ref, "reader": "stream", "finished": finished}
        if upcoming:
            request |= {"upcoming": upcoming, "append": True}
        if "reader-open" in self._dataset._wire.features():
            request["open"] = open_now
        self._dataset._wire.tell(self._connection, ref, request)
        self._owed = True
        if upcoming:
            self._settle()  # there may be no room for it; what was read is said in passing

    def _settle(self) -> None:
        """Takes the answer to what was said last."""
        if self._owed and self._connection is not None:
            self._owed = False
            self._dataset._wire.answer(self._connection, self._dataset.ref)

    def close(self) -> None:
        """The reader is done."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _lines(keys: list[str]) -> list[list[str]]:
    """Keys in parts that fit into a line."""
    parts: list[list[str]] = []
    room = 0
    for key in keys:
        # Escaped, a character may take six bytes.
        need = 6 * len(key) + 4
        if need > room:
            parts.append([])
            room = ANNOUNCE_BYTES
        parts[-1].append(key)
        room -= need
    return parts


def _sequence(samples: Iterable[Any]) -> Sequence[Any]:
    lazy = hasattr(samples, "__getitem__") and hasattr(samples, "__len__") and not isinstance(samples, Mapping)
    return cast("Sequence[Any]", samples) if lazy else list(samples)


def merge_states(states: Mapping[str, Any] | Iterable[Mapping[str, Any]], *, total: int | None = None) -> State:
    """One position out of those of several readers: then any number of ranks and workers may go on from it.

    `states`: what `state_dict()` of the datasets or of `StatefulDataLoader`s returned. Those of one rank are enough
    when all ranks had taken the same number of batches, as in data-parallel training; else give those of all ranks.
    """
    given: list[Any] = [states] if isinstance(states, Mapping) else list(states)
    found = [worker for state in given for worker in _worker_states(state)]
    if not found:
        raise UsageError("no position of a ShardDataset in what was given to merge_states()")
    first = found[0]
    same = ("version", "fingerprint", "epoch", "prefix", "extras", "world", "workers", "batch")
    for state in found:
        unlike = [name for name in same if state[name] != first[name]]
        if unlike:
            raise UsageError(f"the positions differ in {unlike[0]}: they are not of the same moment of one run")
    ranks = {state["rank"] for state in found}
    for rank in ranks:
        workers = {state["worker"] for state in found if state["rank"] == rank}
        if len(workers) != first["workers"]:
            raise UsageError(f"positions of {len(workers)} of the {first['workers']} workers of rank {rank}; all are needed")
    readers = [tuple(int(state[name]) for name in (*Place._fields, "taken")) for state in found]
    largest = (1 << 62) if total is None else total
    prefix, extras = Share.after(largest, first["prefix"], first["extras"], cast("list[Any]", readers))
    return {**first, "prefix": prefix, "extras": extras, "workers": 1, "worker": 0, "taken": 0}


def _worker_states(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Positions anywhere within the state of a data loader."""
    if "fingerprint" in state and "taken" in state:
        yield state
        return
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _worker_states(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Mapping):
                    yield from _worker_states(item)


def count_samples(dataset: Dataset, *, decode: Decode | None = None, shards: str | None = None) -> dict[str, int]:
    """Samples of each shard, for `samples=` or as the content of `millstream-samples.json`. Opens every shard."""
    stream: ShardStream[Any] = ShardStream(dataset, decode=decode, shards=shards)
    return {key: len(stream._decoded(key)) for key in stream.keys}
