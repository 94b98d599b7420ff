"""fsspec: `millstream://name@version/key`. Registered by entry point; nothing to import."""

from __future__ import annotations

from typing import Any

from fsspec.spec import AbstractFileSystem

from millstream._client import Client
from millstream._dataset import Dataset
from millstream._url import split_path


class MillstreamFileSystem(AbstractFileSystem):  # type: ignore[misc,unused-ignore]
    """Verified local shards, read-only. Opening one waits until it is here, at most `timeout` seconds.

    `socket`, `local`: as of `millstream.Client`.
    """

    protocol = "millstream"
    root_marker = ""

    def __init__(self, socket: str | None = None, local: str | None = None, timeout: float = 600.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._client = Client(socket, local=local)
        self._timeout = timeout
        self._datasets: dict[str, Dataset] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return str(path).removeprefix("millstream://").strip("/")

    def _dataset(self, path: str) -> tuple[Dataset, str]:
        name, version, key = split_path(path)
        ref = name if version is None else f"{name}@{version}"
        if ref not in self._datasets:
            self._datasets[ref] = self._client.dataset(ref)
        return self._datasets[ref], key

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        if not path:
            for ref in self._client.datasets():
                found[ref] = {"name": ref, "size": 0, "type": "directory"}
        else:
            dataset, key = self._dataset(path)
            base = path[: len(path) - len(key)].rstrip("/")
            if key and key in dataset:
                found[path] = self._entry(path, dataset[key].nbytes)
            prefix = f"{key}/" if key else ""
            for shard in dataset:
                if shard.key.startswith(prefix):
                    part, deeper, _ = shard.key[len(prefix) :].partition("/")
                    name = f"{base}/{prefix}{part}"
                    found[name] = {"name": name, "size": 0, "type": "directory"} if deeper else self._entry(name, shard.nbytes)
            if not found:
                raise FileNotFoundError(f"millstream://{path}: there is no such shard or directory")
        entries = [found[name] for name in sorted(found)]
        return entries if detail else [entry["name"] for entry in entries]

    @staticmethod
    def _entry(name: str, nbytes: int) -> dict[str, Any]:
        return {"name": name, "size": nbytes, "type": "file"}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        dataset, key = self._dataset(path)
        if not key:
            return {"name": path, "size": 0, "type": "directory"}
        if key in dataset:
            return self._entry(path, dataset[key].nbytes)
        if any(shard.key.startswith(f"{key}/") for shard in dataset):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(f"millstream://{path}: there is no such shard or directory")

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if mode != "rb":
            raise PermissionError(f"millstream://{path}: mode {mode!r}; versions are immutable, open them with 'rb'")
        dataset, key = self._dataset(self._strip_protocol(path))
        return dataset[key].open(timeout=self._timeout)

    def local_path(self, path: str) -> str:
        """The verified local file of a shard: for readers that take paths."""
        dataset, key = self._dataset(self._strip_protocol(path))
        return str(dataset.path(key, timeout=self._timeout))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        with self._open(path) as file:
            size = file.seek(0, 2)
            first = 0 if start is None else start + size * (start < 0)
            last = size if end is None else end + size * (end < 0)
            file.seek(first)
            return file.read(max(0, last - first))

    def created(self, path: str) -> Any:
        raise NotImplementedError("versions do not say when their objects were made")

    def modified(self, path: str) -> Any:
        raise NotImplementedError("versions do not say when their objects were made")
