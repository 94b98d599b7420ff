"""What can go wrong, as exceptions with fields. Each is also the builtin exception that fits best."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` itself takes a third of the time that `import millstream` may take
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


# What follows it in a text are the fields of an error, as JSON.
_FIELDS = "\nfields of this error: "


class MillstreamError(Exception):
    """Anything that Millstream refuses or cannot do. `code` is the exit code of the command line for the same."""

    code: int = 1
    _as_text = False

    def __init__(self, message: str) -> None:
        message, fields = _with_fields(message)
        super().__init__(message)
        self.message = message
        self.__dict__.update(fields)

    def __str__(self) -> str:
        if not self._as_text:
            return self.message
        import json

        return self.message + _FIELDS + json.dumps({k: v for k, v in self.__dict__.items() if k not in ("message", "_as_text")})

    def _travel_as_text(self) -> None:
        """PyTorch hands on of a worker's exception no more than its class and its text, and makes another from these:
        the text carries the fields, and the constructor finds them there."""
        self._as_text = True

    def __reduce__(self) -> tuple[Any, ...]:
        # Data loader workers send their exceptions by pickle: fields must survive.
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(kind: type[MillstreamError], message: str, fields: dict[str, Any]) -> MillstreamError:
    error = kind(message)
    error.__dict__.update(fields)
    return error


def _with_fields(text: str) -> tuple[str, dict[str, Any]]:
    """A message, and the fields that travelled in it."""
    message, mark, encoded = text.rpartition(_FIELDS)
    if mark:
        import json

        try:
            fields = json.loads(encoded)
        except ValueError:
            fields = None
        if isinstance(fields, dict):
            return message, fields
    return text, {}


class UsageError(MillstreamError, ValueError):
    """A request that makes no sense: a malformed name, a negative timeout."""

    code = 2


class NotFoundError(MillstreamError, FileNotFoundError):
    """There is no such dataset, version, node or shard."""

    code = 3


class NotReadyError(MillstreamError, TimeoutError):
    """Something did not become ready in time; trying again may help.

    `missing`: keys of shards that are not here yet (at most 100). `missing_total`: how many there are.
    `eta`: seconds that the coordinator expects it to take still, if it knows. `slow_nodes`: nodes that are waited for.
    """

    code = 4

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        missing_total: int | None = None,
        eta: float | None = None,
        slow_nodes: Sequence[str] = (),
    ) -> None:
        self.missing = list(missing)
        self.missing_total = len(self.missing) if missing_total is None else missing_total
        self.eta = eta
        self.slow_nodes = list(slow_nodes)
        super().__init__(message)


class IntegrityError(MillstreamError, OSError):
    """Bytes that do not match what they must be. They are never shown.

    `shard`: the key. `piece`: its number within the shard, if known. `expected`, `actual`: checksums.
    `source`: where the bytes came from (the origin, a node, the disk). `node`: where it was found.
    """

    code = 5

    def __init__(
        self,
        message: str,
        *,
        shard: str | None = None,
        piece: int | None = None,
        expected: str | None = None,
        actual: str | None = None,
        source: str | None = None,
        node: str | None = None,
    ) -> None:
        self.shard = shard
        self.piece = piece
        self.expected = expected
        self.actual = actual
        self.source = source
        self.node = node
        super().__init__(message)


class AgentUnavailableError(MillstreamError, ConnectionError):
    """The agent on this node, or the coordinator behind it, does not answer. `socket`: where it was looked for."""

    code = 6

    def __init__(self, message: str, *, socket: str | None = None) -> None:
        self.socket = socket
        super().__init__(message)


class NoSpaceError(MillstreamError, OSError):
    """It does not fit on the node's disk, or into its quota."""

    code = 7


class ConflictError(MillstreamError):
    """It contradicts something that is there, such as evicting what is pinned."""

    code = 8


class DeniedError(MillstreamError, PermissionError):
    """Not allowed."""

    code = 9


class DecodeError(MillstreamError):
    """A shard is verified, but the decoder raised. `shard`: its key. `sample`: the sample's number in it, if known.

    The decoder's own exception is the `__cause__` (in a worker process: its text is in the message).
    """

    code = 1

    def __init__(self, message: str, *, shard: str | None = None, sample: int | None = None) -> None:
        self.shard = shard
        self.sample = sample
        super().__init__(message)


def from_reply(thing: str, reply: Mapping[str, Any]) -> MillstreamError:
    """The exception for a refusal of the agent about `thing`."""
    words = str(reply.get("error") or "the agent refused, without a reason")
    message = words if thing in words else f"{thing}: {words}"
    code = reply.get("code")
    found = reply.get("details")
    details: Mapping[str, Any] = found if isinstance(found, dict) else {}
    if code == 4:
        eta = details.get("eta_s")
        total = details.get("missing_total")
        return NotReadyError(
            message,
            missing=[str(key) for key in details.get("missing") or ()],
            missing_total=int(total) if isinstance(total, int) else None,
            eta=float(eta) if isinstance(eta, (int, float)) else None,
            slow_nodes=[str(node) for node in details.get("slow_nodes") or ()],
        )
    if code == 5:
        text = {name: str(details[name]) for name in ("expected", "actual", "source", "node") if details.get(name)}
        piece = str(details.get("piece") or "")
        return IntegrityError(
            message,
            shard=str(details["key"]) if details.get("key") else None,
            piece=int(piece) if piece.isdigit() else None,
            **text,
        )
    kinds: dict[object, type[MillstreamError]] = {
        2: UsageError,
        3: NotFoundError,
        6: AgentUnavailableError,
        7: NoSpaceError,
        8: ConflictError,
        9: DeniedError,
    }
    return kinds.get(code, MillstreamError)(message)
