"""Versions, their shards, and paths to verified files."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from millstream._errors import MillstreamError, NotFoundError, NotReadyError, UsageError
from millstream._millstream import Connection, ipc_stream, manifest_stream
from millstream._wire import Wire

TYPE_CHECKING = False  # see _errors.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import IO, Any, TypeVar, overload

    from millstream._client import Transfer
    from millstream._progress import Observer, Status

    AnyDataset = TypeVar("AnyDataset", bound="Dataset")

# Shards asked for at once; the agent may answer with fewer.
PAGE = 1000


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


class Shard:
    """One file of a version. `key`: its name; `nbytes`: its length; `index`: its place in the version.

    May be given to `open()` and everything else that takes a path: it is waited for then.
    """

    __slots__ = ("_dataset", "index", "key", "nbytes")

    def __init__(self, dataset: Dataset, index: int, key: str, nbytes: int) -> None:
        self._dataset = dataset
        self.index = index
        self.key = key
        self.nbytes = nbytes

    def path(self, *, timeout: float = 30.0) -> Path:
        """Its local path, once it is verified. Raises `NotReadyError` after `timeout` seconds."""
        return self._dataset.path(self.key, timeout=timeout)

    @property
    def ready(self) -> bool:
        """Is it here, now?"""
        try:
            self.path(timeout=0)
        except NotReadyError:
            return False
        return True

    def open(self, *, timeout: float = 600.0) -> IO[bytes]:
        """Opens it for reading, once it is verified. What is open stays readable, whatever is evicted."""
        deadline = time.monotonic() + timeout
        while True:
            path = self.path(timeout=max(0.0, deadline - time.monotonic()))
            try:
                return path.open("rb")
            except FileNotFoundError:  # evicted between the two lines
                if time.monotonic() >= deadline:
                    raise NotReadyError(
                        f"{self.key!r} of {self._dataset.ref} was evicted again and again for {timeout:.0f} s; next: "
                        "hold it with ds.pin()",
                        missing=[self.key],
                    ) from None
                self._dataset._forget_root()

    def __fspath__(self) -> str:
        return str(self.path(timeout=600.0))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The batches of an Arrow IPC shard, mapped without a copy."""
        return ipc_stream(str(self.path(timeout=600.0)))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Shard) and other.key == self.key
        return same and isinstance(other, Shard) and other._dataset == self._dataset

    def __hash__(self) -> int:
        return hash((self._dataset, self.key))

    def __repr__(self) -> str:
        from millstream._progress import size

        return f"<millstream.Shard {self.key!r} of {self._dataset.ref}, {size(self.nbytes)}>"


class Pin:
    """A version that is not evicted while this exists: `with ds.pin() as root:`. Ends with the process, too."""

    def __init__(self, dataset: Dataset, connection: Connection) -> None:
        self._dataset = dataset
        self._connection = connection

    @property
    def held(self) -> bool:
        """Still in force, as far as this process knows? An agent that restarted has forgotten it."""
        return self._connection.is_open

    def release(self) -> None:
        """Lets go; doing so twice is fine."""
        self._connection.close()
        if self in self._dataset._pins:
            self._dataset._pins.remove(self)

    def __enter__(self) -> Path:
        return self._dataset._directory()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<millstream.Pin on {self._dataset.ref}, {'held' if self.held else 'released'}>"


class Dataset(Sequence[Shard]):
    """One version of a dataset: an immutable list of shards, in the order of their keys.

    Made by `Client.dataset`. `ref`: `name@version`; `digest`: its lasting identity.
    """

    def __init__(self, wire: Wire, info: Mapping[str, Any]) -> None:
        self._wire = wire
        self._info = {k: v for k, v in info.items() if k not in ("ok", "shards", "root")}
        self.ref = str(info["dataset"])
        self.name, _, self.version = self.ref.partition("@")
        self.digest = str(info["digest"])
        root = info.get("root")
        self._root: str | None = str(root) if root else None
        self._shards: list[Shard] | None = None
        self._numbers: dict[str, int] = {}
        self._sums: list[tuple[str | None, str | None]] = []
        self._pins: list[Pin] = []

    @classmethod
    def _resolve(cls: type[AnyDataset], wire: Wire, ref: str) -> AnyDataset:
        if "shards" in wire.features():
            return cls(wire, wire.call(ref, {"op": "shards", "dataset": ref, "limit": 0}))
        # An agent of an early version: it knows what is on its own node.
        name, _, version = ref.partition("@")
        known = [d for d in wire.call(ref, {"op": "status"}).get("datasets") or () if isinstance(d, dict)]
        here = [d for d in known if d["dataset"] == ref or (not version and d["dataset"].startswith(f"{name}@"))]
        if not here:
            raise NotReadyError(f"{ref} is not on this node; next: millstream stage {ref}")
        return cls(wire, here[-1])

    # ------------------------------------------------------------ what it is

    @property
    def origin(self) -> str:
        """The URL that its shards come from."""
        return str(self._info.get("origin_url") or "")

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return int(self._info.get("bytes_total") or 0)

    @property
    def shards(self) -> list[Shard]:
        """All shards, in the order of their keys. Asked for once."""
        if self._shards is None:
            self._wire.need("shards", self.ref)
            shards: list[Shard] = []
            while True:
                page = self._wire.call(
                    self.ref, {"op": "shards", "dataset": self.ref, "offset": len(shards), "limit": PAGE}
                )
                if page["digest"] != self.digest:
                    raise NotFoundError(
                        f"{self.ref} is another version now than when it was looked up ({page['digest'][:12]} instead of "
                        f"{self.digest[:12]}); next: call client.dataset() again"
                    )
                found = page["shards"]
                for entry in found:
                    shards.append(Shard(self, len(shards), str(entry["key"]), int(entry["bytes"])))
                    self._sums.append((entry.get("etag"), entry.get("checksum")))
                if not found or len(shards) >= int(page["shards_total"]):
                    break
            self._shards = shards
            self._numbers = {shard.key: shard.index for shard in shards}
        return self._shards

    def __len__(self) -> int:
        return int(self._info.get("shards_total") or 0)

    if TYPE_CHECKING:

        @overload
        def __getitem__(self, index: int | str) -> Shard: ...
        @overload
        def __getitem__(self, index: slice) -> list[Shard]: ...

    def __getitem__(self, index: int | str | slice) -> Shard | list[Shard]:
        if isinstance(index, str):
            return self.shards[self._number(index)]
        return self.shards[index]

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.shards)

    def __contains__(self, value: object) -> bool:
        if isinstance(value, str):
            return bool(self.shards) and value in self._numbers
        return isinstance(value, Shard) and value._dataset == self

    def _number(self, key: str) -> int:
        if self.shards and key in self._numbers:
            return self._numbers[key]
        raise NotFoundError(f"{self.ref} has no shard {key!r}; next: `millstream dataset show {self.ref}`")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dataset) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        from millstream._progress import size

        where = f" at {self._root}" if self._root else ""
        kind = type(self).__name__
        return f"<millstream.{kind} {self.ref}, {len(self)} shards, {size(self.nbytes)}{where}, {self.digest[:12]}>"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_pins"] = []
        shards = self._shards
        state["_shards"] = None if shards is None else [(s.key, s.nbytes) for s in shards]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        plain = state.pop("_shards")
        self.__dict__.update(state)
        self._shards = None if plain is None else [Shard(self, i, key, n) for i, (key, n) in enumerate(plain)]

    # --------------------------------------------------------- getting it here

    def stage(self, nodes: str = "self", *, placement: str = "replicate", priority: int = 0) -> Transfer:
        """Asks that it be brought onto nodes; see `Client.stage`."""
        from millstream._client import Transfer

        self._wire.need("stage", f"stage {self.ref}")
        request = {"op": "stage", "dataset": self.ref, "nodes": nodes, "placement": placement, "priority": priority}
        reply = self._wire.call(self.ref, request)
        return Transfer(self._wire, str(reply["dataset"]), [str(n) for n in reply["nodes"]], int(reply["stage"]))

    def wait(
        self,
        shards: Iterable[int | str] | None = None,
        *,
        timeout: float = 600.0,
        progress: bool | Observer = False,
    ) -> Path:
        """Returns the directory once all shards (or the named ones) are verified on this node.

        `progress`: True for a bar on a terminal, or a function that is called with `Progress`. Raises `NotReadyError`
        after `timeout` seconds (with `missing`), `IntegrityError`, `NoSpaceError`.
        """
        from millstream._progress import ProgressMaker, observing

        deadline = time.monotonic() + timeout
        maker = ProgressMaker(self.ref)
        with observing(progress) as observer:

            def step(line: dict[str, Any]) -> None:
                if observer is not None:
                    observer(maker.make(line))

            if shards is not None:
                for shard in shards:
                    left = max(0.0, deadline - time.monotonic())
                    self._wait_for(self._key(shard), left, step)
                return self._directory()
            reply = self._wire.stream(self.ref, lambda left: self._wait_request(left, None), timeout, step)
            self._root = str(reply["path"])
            if observer is not None:
                total, count = self.nbytes, len(self)
                ready = {"state": "ready", "bytes_ready": total, "bytes_total": total}
                step({**ready, "shards_ready": count, "shards_total": count})
        return _path(self._root)

    def path(self, shard: int | str, *, timeout: float = 30.0) -> Path:
        """The local path of one verified shard, by key or index. Raises `NotReadyError` after `timeout` seconds
        (0: at once), `NotFoundError`, `IntegrityError`."""
        key = shard if isinstance(shard, str) else self._key(shard)
        root = self._root
        if root is not None:
            # Under this directory a name exists only while its file is complete and verified.
            path = f"{root}/{key}"
            if key and os.path.isfile(path) and ".." not in key:
                return _path(path)
        return _path(self._wait_for(key, timeout, None))

    @property
    def root(self) -> Path:
        """The directory, if all shards are verified here; else raises `NotReadyError`."""
        reply = self._wire.call(self.ref, {"op": "path", "dataset": self.ref})
        self._root = str(reply["path"])
        return _path(self._root)

    def status(self) -> Status:
        """How far it is on this node."""
        from millstream._progress import Status

        reply = self._wire.call(self.ref, {"op": "status"})
        found: dict[str, Any] = next((d for d in reply.get("datasets") or () if d.get("dataset") == self.ref), {})
        return Status(
            dataset=self.ref,
            digest=found.get("digest") or self.digest,
            node=str(reply.get("node")),
            state=str(found.get("state") or "absent"),
            shards_ready=int(found.get("shards_ready") or 0),
            shards_total=int(found.get("shards_total") or len(self)),
            bytes_ready=int(found.get("bytes_ready") or 0),
            bytes_total=int(found.get("bytes_total") or self.nbytes),
            reason=found.get("reason"),
        )

    def pin(self) -> Pin:
        """Keeps it on this node while the result is in use (`with ds.pin() as root:`), else while this object lives.
        It ends with the process at the latest."""
        pin = Pin(self, self._wire.lease(self.ref, self.ref))
        self._pins.append(pin)
        return pin

    def verify(self, *, timeout: float = 3600.0) -> int:
        """Re-reads and re-checks every byte on this node; returns how many. Raises `IntegrityError`; repair has begun
        then."""
        reply = self._wire.call(self.ref, {"op": "verify", "dataset": self.ref}, timeout=timeout)
        return int(reply["bytes_checked"])

    def evict(self) -> int:
        """Drops it from this node; returns the bytes freed. Raises `ConflictError` when it is pinned."""
        reply = self._wire.call(self.ref, {"op": "evict", "dataset": self.ref}, timeout=600.0)
        self._root = None
        return int(reply["bytes"])

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The shards as an Arrow table: key, bytes, etag, checksum."""
        shards = self.shards
        metadata = {"dataset": self.ref, "digest": self.digest, "origin_url": self.origin}
        return manifest_stream(
            [s.key for s in shards],
            [s.nbytes for s in shards],
            [etag for etag, _ in self._sums],
            [checksum for _, checksum in self._sums],
            metadata,
        )

    # ---------------------------------------------------------------- within

    def _key(self, shard: int | str) -> str:
        return shard if isinstance(shard, str) else self.shards[shard].key

    def _forget_root(self) -> None:
        self._root = None

    def _wait_request(self, left: float, key: str | None) -> dict[str, Any]:
        return {"op": "wait", "dataset": self.ref, "key": key, "timeout_ms": max(1, int(left * 1000))}

    def _wait_for(self, key: str, timeout: float, step: Any) -> str:
        """Waits for one shard; the agent fetches it where that is what its placement means."""
        if timeout < 0:
            raise UsageError(f"{key!r} of {self.ref}: timeout {timeout} is negative")
        features = self._wire.features()
        thing = f"{key!r} of {self.ref}"
        if timeout == 0:
            reply = self._wire.call(thing, {"op": "path", "dataset": self.ref, "key": key})
        elif "fetch" in features:
            reply = self._wire.stream(thing, lambda left: self._fetch_request(left, key), timeout, step)
        elif "wait-key" in features:
            reply = self._wire.stream(thing, lambda left: self._wait_request(left, key), timeout, step)
        else:
            reply = self._poll(thing, key, timeout)
        path = str(reply["path"])
        if path.endswith(f"/{key}"):
            self._root = path[: -len(key) - 1]
        return path

    def _fetch_request(self, left: float, key: str) -> dict[str, Any]:
        return {"op": "fetch", "dataset": self.ref, "key": key, "timeout_ms": max(1, int(left * 1000))}

    def _poll(self, thing: str, key: str, timeout: float) -> dict[str, Any]:
        """For agents that cannot wait for one shard."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._wire.call(thing, {"op": "path", "dataset": self.ref, "key": key})
            except NotReadyError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.1)

    def _directory(self) -> Path:
        """Where its files are or will be, complete or not."""
        if self._root is None and "shards" in self._wire.features():
            found = self._wire.call(self.ref, {"op": "shards", "dataset": self.ref, "limit": 0}).get("root")
            self._root = str(found) if found else None
        if self._root is None:
            return self.root
        return _path(self._root)


class Checkpoint(Dataset):
    """A checkpoint to read: a dataset that trainers wrote. `run` and `step` say which."""

    def __init__(self, wire: Wire, info: Mapping[str, Any]) -> None:
        super().__init__(wire, info)
        if info.get("kind") not in (None, "checkpoint"):
            raise MillstreamError(f"{self.ref} is a dataset, not a checkpoint; next: client.dataset()")
        self.run = str(info.get("run") or "")
        self.step = int(info.get("step") or 0)
