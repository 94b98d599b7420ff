"""How far something is, for programs and for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TextIO


def size(count: float) -> str:
    """Bytes in words: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def _number(reply: Mapping[str, Any], key: str) -> int:
    value = reply.get(key)
    return int(value) if isinstance(value, (int, float)) else 0


class NodeProgress(NamedTuple):
    """One node that is waited for. `state`: absent, receiving, verifying, ready, failed."""

    node: str
    state: str
    reason: str
    bytes_ready: int
    bytes_total: int
    shards_ready: int
    shards_total: int


class Progress(NamedTuple):
    """A moment of a wait. Counts are of this node, or of all nodes that are waited for."""

    dataset: str
    state: str
    shards_ready: int
    shards_total: int
    bytes_ready: int
    bytes_total: int
    nodes_ready: int
    nodes_total: int
    elapsed: float
    rate: float
    eta: float | None
    waiting_for: tuple[NodeProgress, ...] = ()

    @property
    def fraction(self) -> float:
        """Share of the bytes that is here, from 0 to 1."""
        if self.bytes_total:
            return min(1.0, self.bytes_ready / self.bytes_total)
        return 1.0 if self.state == "ready" else 0.0

    def __str__(self) -> str:
        parts = [f"{self.dataset}: {self.state}"]
        if self.bytes_total:
            parts.append(f"{self.fraction:.0%} of {size(self.bytes_total)}")
        if self.shards_total:
            parts.append(f"{self.shards_ready}/{self.shards_total} shards")
        if self.nodes_total:
            parts.append(f"{self.nodes_ready}/{self.nodes_total} nodes")
        if self.rate > 0 and self.state != "ready":
            parts.append(f"{size(self.rate)}/s")
        if self.eta is not None and self.state != "ready":
            parts.append(f"{self.eta:.0f} s left")
        return ", ".join(parts)


class ProgressMaker:
    """Turns the agent's progress lines into `Progress`, with rates measured here."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._began = time.monotonic()
        self._first: tuple[float, int] | None = None

    def make(self, line: Mapping[str, Any]) -> Progress:
        """One line."""
        now = time.monotonic()
        ready, total = _number(line, "bytes_ready"), _number(line, "bytes_total")
        if self._first is None:
            self._first = (now, ready)
        since, bytes_then = self._first
        rate = line.get("rate_bytes_per_s")
        if not isinstance(rate, (int, float)):
            rate = (ready - bytes_then) / (now - since) if now - since > 0.2 else 0.0
        eta = line.get("eta_s")
        if not isinstance(eta, (int, float)):
            eta = (total - ready) / rate if rate > 0 and total else None
        nodes = [n for n in line.get("waiting_for") or () if isinstance(n, dict)]
        return Progress(
            dataset=str(line.get("dataset") or self._dataset),
            state=str(line.get("state") or "waiting"),
            shards_ready=_number(line, "shards_ready"),
            shards_total=_number(line, "shards_total"),
            bytes_ready=ready,
            bytes_total=total,
            nodes_ready=_number(line, "nodes_ready"),
            nodes_total=_number(line, "nodes_total"),
            elapsed=now - self._began,
            rate=max(0.0, float(rate)),
            eta=eta,
            waiting_for=tuple(
                NodeProgress(
                    node=str(n.get("node", "")),
                    state=str(n.get("state", "")),
                    reason=str(n.get("reason") or ""),
                    bytes_ready=_number(n, "bytes_ready"),
                    bytes_total=_number(n, "bytes_total"),
                    shards_ready=_number(n, "shards_ready"),
                    shards_total=_number(n, "shards_total"),
                )
                for n in nodes
            ),
        )


class Bar:
    """A progress bar on a terminal; nothing where there is none."""

    WIDTH = 24

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._shown = 0
        self._last = 0.0
        try:
            self.visible = self._stream.isatty()
        except (AttributeError, ValueError):
            self.visible = False

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self.visible or (now - self._last < 0.1 and progress.state != "ready"):
            return
        self._last = now
        filled = int(progress.fraction * self.WIDTH)
        line = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {progress}"
        self._stream.write(f"\r{line:<{self._shown}}")
        self._stream.flush()
        self._shown = len(line)

    def close(self) -> None:
        """Ends the line."""
        if self.visible and self._shown:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = 0


Observer = Callable[[Progress], None]


class observing:
    """`with observing(progress) as observer:` for the `progress=` argument of waits: a bar, a callback, or nothing."""

    def __init__(self, progress: bool | Observer) -> None:
        self._bar = Bar() if progress is True else None
        self._observer = progress if callable(progress) else self._bar

    def __enter__(self) -> Observer | None:
        return self._observer

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Status(NamedTuple):
    """How far a version is on this node. `state`: absent, receiving, verifying, ready, failed."""

    dataset: str
    digest: str | None
    node: str
    state: str
    shards_ready: int
    shards_total: int
    bytes_ready: int
    bytes_total: int
    reason: str | None

    @property
    def ready(self) -> bool:
        """All shards visible?"""
        return self.state == "ready"

    def __str__(self) -> str:
        shards = f"{self.shards_ready}/{self.shards_total} shards"
        what = f"{self.dataset} on {self.node}: {self.state}, {shards}, {size(self.bytes_ready)} of {size(self.bytes_total)}"
        return f"{what} ({self.reason})" if self.reason else what
