"""Millstream: training data on the node that reads it.

    import millstream

    ds = millstream.Client().dataset("digits", version="v1")
    root = ds.wait(timeout=600, progress=True)      # a directory of verified, read-only files

Everything here talks to the agent on this node through its Unix socket (`MILLSTREAM_SOCKET`). Nothing is opened
before it is used, no thread is started, and objects may be pickled and carried over a fork.
"""

from __future__ import annotations

from millstream._client import Client, Transfer
from millstream._dataset import Checkpoint, Dataset, Pin, Shard
from millstream._errors import (
    AgentUnavailableError,
    ConflictError,
    DecodeError,
    DeniedError,
    IntegrityError,
    MillstreamError,
    NoSpaceError,
    NotFoundError,
    NotReadyError,
    UsageError,
)
from millstream._millstream import __version__

TYPE_CHECKING = False  # see _errors.py
if TYPE_CHECKING:
    from typing import IO

    from millstream import dcp, fs, stream, torch
    from millstream._progress import NodeProgress, Progress, Status

__all__ = [
    "AgentUnavailableError",
    "Checkpoint",
    "Client",
    "ConflictError",
    "Dataset",
    "DecodeError",
    "DeniedError",
    "IntegrityError",
    "MillstreamError",
    "NoSpaceError",
    "NodeProgress",
    "NotFoundError",
    "NotReadyError",
    "Pin",
    "Progress",
    "Shard",
    "Status",
    "Transfer",
    "UsageError",
    "__version__",
    "open",
]

# Loaded when somebody asks for them, because of what they import themselves.
_LAZY_MODULES = {"torch", "fs", "dcp", "stream"}
_LAZY_NAMES = {"NodeProgress", "Progress", "Status"}


def __getattr__(name: str) -> object:
    import importlib

    if name in _LAZY_MODULES:
        return importlib.import_module(f"millstream.{name}")
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module("millstream._progress"), name)
    raise AttributeError(f"module 'millstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})


def open(url: str, *, timeout: float = 600.0, client: Client | None = None) -> IO[bytes]:
    """Opens one shard for reading, once it is verified on this node.

    `url` is `millstream://name@version/key`; without a version the latest one is meant. Raises
    `NotFoundError`, `NotReadyError` after `timeout` seconds, or another `MillstreamError`.
    """
    from millstream._url import split_url

    name, version, key = split_url(url)
    dataset = (client or Client()).dataset(name, version=version)
    return dataset[key].open(timeout=timeout)
