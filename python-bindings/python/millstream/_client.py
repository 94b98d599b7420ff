"""The way in: a client of the agent on this node."""

from __future__ import annotations

from millstream._dataset import Checkpoint, Dataset
from millstream._errors import NotFoundError, NotReadyError, UsageError
from millstream._wire import Wire

TYPE_CHECKING = False  # see _errors.py
if TYPE_CHECKING:
    import os
    from types import TracebackType
    from typing import Any, Literal

    from millstream._progress import Observer, Progress


class Client:
    """A client of the agent on this node.

    `socket`: the agent's Unix socket; by default `MILLSTREAM_SOCKET`, else the usual places. `local`: a directory in
    which an agent of one's own is run for as long as somebody uses it (see `MILLSTREAM_LOCAL`); for laptops and tests.
    `timeout`: seconds that one question may take, and that a restarting agent is waited for.

    Cheap to make; opens nothing until it is used; may be pickled, forked, and shared by threads.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None = None,
        *,
        local: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._wire = Wire(socket, local, timeout)

    def dataset(self, name: str, *, version: str | None = None) -> Dataset:
        """A version of a dataset: `name` and `version`, or `"name@version"`. Without a version the latest registered
        one is meant, resolved once, here. Raises `NotFoundError`."""
        return Dataset._resolve(self._wire, _ref(name, version))

    def datasets(self) -> list[str]:
        """All registered versions, as `name@version`."""
        return [str(info["dataset"]) for info in self._list()]

    def checkpoint(self, run: str, *, step: int | Literal["latest"] = "latest") -> Checkpoint:
        """A checkpoint of a training run, as registered with `run` and `step`. Raises `NotFoundError`."""
        found = [i for i in self._list() if i.get("kind") == "checkpoint" and i.get("run") == run]
        if step != "latest":
            found = [i for i in found if i.get("step") == step]
        if not found:
            raise NotFoundError(
                f"no checkpoint of run {run!r}{'' if step == 'latest' else f' at step {step}'}; next: "
                "`millstream dataset ls` lists what there is"
            )
        latest = max(found, key=lambda info: int(info.get("step") or 0))
        return Checkpoint._resolve(self._wire, str(latest["dataset"]))

    def add(
        self,
        name: str,
        url: str,
        *,
        version: str | None = None,
        run: str | None = None,
        step: int | None = None,
        timeout: float = 600.0,
    ) -> Dataset:
        """Registers a snapshot of what is under `url` now (s3://, gs://, az://, http(s)://, file://) and returns it.
        With `run` and `step` it is a checkpoint. Registering the same again is no error."""
        self._wire.need("add", f"add {name}")
        if (run is None) != (step is None):
            raise UsageError(f"{name}: a checkpoint has a run and a step; one of them is missing")
        request = {"op": "add", "name": name, "url": url, "version": version, "run": run, "step": step}
        reply = self._wire.stream(name, lambda _left: request, timeout, lambda _step: None)
        kind = Dataset if run is None else Checkpoint
        return kind._resolve(self._wire, str(reply["dataset"]))

    def stage(
        self, ref: str, *, nodes: str = "self", placement: str = "replicate", priority: int = 0
    ) -> Transfer:
        """Asks that a version be brought onto nodes: `"self"`, `"all"`, names with commas, or a host list such as
        `node[001-016]`. Returns at once; asking again joins what is under way."""
        self._wire.need("stage", f"stage {ref}")
        request = {"op": "stage", "dataset": ref, "nodes": nodes, "placement": placement, "priority": priority}
        reply = self._wire.call(ref, request)
        return Transfer(self._wire, str(reply["dataset"]), [str(n) for n in reply["nodes"]], int(reply["stage"]))

    def hello(self) -> dict[str, Any]:
        """Who answers: the agent's version, node, protocol and features."""
        return {key: value for key, value in self._wire.hello().items() if key != "ok"}

    def status(self) -> dict[str, Any]:
        """The agent's own account of itself, as documented for the socket's `status`."""
        reply = self._wire.call("status", {"op": "status"})
        return {key: value for key, value in reply.items() if key != "ok"}

    def close(self) -> None:
        """Closes this thread's connection. The client may be used again."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        what = "local" if self._wire.local is not None else "socket"
        return f"millstream.Client({what}={self._wire!r})"

    def _list(self) -> list[dict[str, Any]]:
        self._wire.need("datasets", "list datasets")
        return list(self._wire.call("datasets", {"op": "datasets"})["datasets"])


class Transfer:
    """A version on its way to nodes. Dropping it changes nothing: the transfer is the cluster's."""

    def __init__(self, wire: Wire, dataset: str, nodes: list[str], stage: int) -> None:
        self._wire = wire
        self.dataset = dataset
        self.nodes = nodes
        self.stage = stage

    def wait(self, *, timeout: float = 600.0, progress: bool | Observer = False) -> Progress:
        """Returns when all its nodes have everything, verified. Raises `NotReadyError` after `timeout` seconds (with
        `slow_nodes` and `eta`), `IntegrityError`, `NoSpaceError`."""
        from millstream._progress import ProgressMaker, observing

        self._wire.need("wait-nodes", self.dataset)
        maker = ProgressMaker(self.dataset)
        with observing(progress) as observer:

            def step(line: dict[str, Any]) -> None:
                if observer is not None:
                    observer(maker.make(line))

            last = maker.make(self._wire.stream(self.dataset, self._request, timeout, step))
            if observer is not None:
                observer(last)
        return last

    def status(self) -> Progress:
        """Where it is now."""
        from millstream._progress import ProgressMaker

        maker = ProgressMaker(self.dataset)
        seen: list[Progress] = []

        try:
            return maker.make(
                self._wire.stream(self.dataset, self._request, 0.001, lambda line: seen.append(maker.make(line)))
            )
        except NotReadyError:
            if seen:
                return seen[-1]
            raise

    def _request(self, left: float) -> dict[str, Any]:
        nodes = ",".join(self.nodes)
        return {"op": "wait", "dataset": self.dataset, "nodes": nodes, "timeout_ms": max(1, int(left * 1000))}

    def __repr__(self) -> str:
        names = ", ".join(self.nodes[:4]) + (f" and {len(self.nodes) - 4} more" if len(self.nodes) > 4 else "")
        return f"<millstream.Transfer {self.stage} of {self.dataset} to {names}>"


def _ref(name: str, version: str | None) -> str:
    if version is not None and "@" in name:
        raise UsageError(f"{name!r} names a version, and version={version!r} another; give one of them")
    return name if version is None else f"{name}@{version}"
