"""Requests to the agent: JSON lines over its Unix socket, one connection per thread and process.

Goals: every wait has a deadline and says what it waited for; an agent that restarts is waited for, one that was never
there is not; after a fork, and after unpickling, everything works. Non-goals: what the answers mean.
"""

from __future__ import annotations

import os
import threading
import time
import weakref

from millstream._errors import AgentUnavailableError, DeniedError, MillstreamError, NotReadyError, UsageError, from_reply
from millstream._millstream import Connection, __version__

TYPE_CHECKING = False  # see _errors.py
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Reply = dict[str, Any]

PROTOCOL = 1
DEFAULT_SOCKETS = ("/run/millstream/agent.sock", "/var/lib/millstream/agent.sock")
# How long after its own deadline the agent may answer that the time is over.
GRACE = 5.0
# The longest pause between two attempts to reach an agent that restarts.
RETRY_PAUSE_MAX = 0.5

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _let_go_of_inherited() -> None:
    for connection in list(_connections):
        connection.close_inherited()


# A lease ends when its socket is closed: a child must not keep the parent's open.
os.register_at_fork(after_in_child=_let_go_of_inherited)


class _Broken(Exception):
    """The connection broke, or was refused; `never` says that nobody ever answered here."""


class Wire:
    """Where the agent is, and how to ask it. Picklable; nothing is opened before the first request."""

    def __init__(self, socket: str | os.PathLike[str] | None, local: str | os.PathLike[str] | None, timeout: float) -> None:
        if timeout <= 0:
            raise UsageError(f"timeout {timeout} is not a positive number of seconds")
        if socket is not None and local is not None:
            raise UsageError("an agent's socket and a local directory were both given; give one of them")
        if socket is None and local is None:
            socket = os.environ.get("MILLSTREAM_SOCKET") or None
        if socket is None and local is None:
            local = os.environ.get("MILLSTREAM_LOCAL") or None
        self.local = None if local is None else os.path.abspath(os.path.expanduser(local))
        self.timeout = float(timeout)
        self._socket = None if socket is None else os.fspath(socket)
        self._met: Reply | None = None
        self._user: Any = None
        self._mine = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"local": self.local, "timeout": self.timeout, "_socket": self._socket, "_met": self._met}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._user = None
        self._mine = threading.local()

    def __repr__(self) -> str:
        return self.local or self.socket()

    def socket(self) -> str:
        """The path of the socket."""
        if self.local is not None:
            from millstream import _local

            return _local.socket_of(self.local)
        if self._socket is not None:
            return self._socket
        return next((path for path in DEFAULT_SOCKETS if os.path.exists(path)), DEFAULT_SOCKETS[0])

    # ------------------------------------------------------------ asking

    def hello(self) -> Reply:
        """Who is there."""
        self._met = None
        return self._hello()

    def features(self) -> frozenset[str]:
        """What the agent can do beyond the first protocol."""
        return frozenset(str(f) for f in self._hello().get("features") or ())

    def need(self, feature: str, what: str) -> None:
        """Raises when the agent is too old for it."""
        if feature not in self.features():
            version = self._hello().get("version")
            raise MillstreamError(
                f"{what}: the agent on this node is version {version} and does not offer {feature!r}, which millstream "
                f"{__version__} for Python asks for; next: upgrade the agent"
            )

    def call(self, thing: str, request: Mapping[str, Any], *, timeout: float | None = None) -> Reply:
        """One question about `thing`, one answer."""
        return self.stream(thing, lambda _left: request, self.timeout if timeout is None else timeout)

    def stream(
        self,
        thing: str,
        request: Callable[[float], Mapping[str, Any]],
        timeout: float,
        on_progress: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """A question whose answer may take until `timeout`; `request` is made from the seconds that are left.

        A connection that breaks, or a coordinator that is away, is tried again within the client's own timeout.
        """
        if timeout < 0:
            raise UsageError(f"{thing}: timeout {timeout} is negative")
        deadline = time.monotonic() + timeout
        give_up: float | None = None
        pause = 0.05
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._once(thing, request(left), left + GRACE, on_progress)
            except _Broken as broken:
                problem: MillstreamError = self._unreachable(thing, str(broken))
                patient = self._met is not None
            except AgentUnavailableError as refused:
                problem, patient = refused, on_progress is not None
            now = time.monotonic()
            give_up = give_up if give_up is not None else now + min(self.timeout, max(timeout, 1.0))
            if not patient or now + pause > min(give_up, max(deadline, now)):
                raise problem from None
            time.sleep(pause)
            pause = min(pause * 2, RETRY_PAUSE_MAX)

    def lease(self, thing: str, dataset: str) -> Connection:
        """A connection of its own that holds a lease; closing it releases the lease."""
        connection = self.connection()
        self.ask(connection, thing, {"op": "lease", "dataset": dataset})
        return connection

    def connection(self) -> Connection:
        """A connection of its own, for what the agent holds as long as it is open. Raises `AgentUnavailableError`."""
        try:
            return self._connect()
        except _Broken as broken:
            raise self._unreachable("agent", str(broken)) from None

    def ask(self, connection: Connection, thing: str, request: Mapping[str, Any]) -> Reply:
        """One question over such a connection, tried once; it is closed when it does not answer."""
        self.tell(connection, thing, request)
        return self.answer(connection, thing)

    def tell(self, connection: Connection, thing: str, request: Mapping[str, Any]) -> None:
        """The same without waiting for the answer, which `answer` takes before anything else is said."""
        try:
            connection.send(self._line(request), self.timeout)
        except OSError as error:
            raise self._named(thing, error) from None

    def answer(self, connection: Connection, thing: str) -> Reply:
        """What the agent says to what it was told."""
        try:
            reply = self._parse(connection.receive(self.timeout))
        except OSError as error:
            raise self._named(thing, error) from None
        if reply.get("ok") is not True:
            raise from_reply(thing, reply)
        return reply

    def _named(self, thing: str, error: OSError) -> Exception:
        if isinstance(error, MillstreamError):
            return error
        if isinstance(error, TimeoutError):
            return NotReadyError(f"{thing}: the agent at {self.socket()} gave no answer within {self.timeout:.0f} s")
        return self._unreachable(thing, f"the connection broke: {error}")

    def close(self) -> None:
        """Closes this thread's connection, and ends the use of a local agent."""
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            connection.close()
        user, self._user = self._user, None
        if user is not None:
            user.close()

    # --------------------------------------------------------- one attempt

    def _once(
        self, thing: str, request: Mapping[str, Any], timeout: float, on_progress: Callable[[Reply], None] | None
    ) -> Reply:
        until = time.monotonic() + timeout
        connection = self._connection()
        done = False
        try:
            reply = self._exchange(connection, request, timeout)
            while isinstance(step := reply.get("progress"), dict):
                if on_progress is not None:
                    on_progress(step)
                reply = self._parse(connection.receive(max(0.0, until - time.monotonic())))
            done = True
        except TimeoutError:
            socket = self.socket()
            raise NotReadyError(f"{thing}: the agent at {socket} gave no answer within {timeout:.0f} s") from None
        except (ConnectionError, OSError) as error:
            if isinstance(error, MillstreamError):
                raise
            raise _Broken(f"the connection broke: {error}") from None
        finally:
            if not done:
                connection.close()  # answers that are still on their way would be taken for later ones
        if reply.get("ok") is True:
            return reply
        raise from_reply(thing, reply)

    def _hello(self) -> Reply:
        if self._met is None:
            deadline = time.monotonic() + self.timeout
            self._attempt(deadline)
        assert self._met is not None
        return self._met

    def _attempt(self, deadline: float) -> None:
        try:
            connection = self._connection()
            if self._met is None:
                self._greet(connection, max(0.1, deadline - time.monotonic()))
        except _Broken as broken:
            raise self._unreachable("agent", str(broken)) from None

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._mine, "connection", None)
        if connection is None or not connection.is_open:
            connection = self._connect()
            self._mine.connection = connection
        return connection

    def _connect(self) -> Connection:
        if self.local is not None:
            from millstream import _local

            if self._user is None or not self._user.alive():
                self._user = _local.join(self.local, self.timeout)
        path = self.socket()
        connection = Connection(path)
        _connections.add(connection)
        try:
            connection.connect(self.timeout)
        except PermissionError as error:
            raise DeniedError(
                f"agent at {path}: {error.strerror}; next: ask who runs the agent for access to its directory"
            ) from None
        except (OSError, ValueError) as error:
            raise _Broken(f"cannot connect: {error}") from None
        self._greet(connection, self.timeout)
        return connection

    def _greet(self, connection: Connection, timeout: float) -> None:
        try:
            reply = self._exchange(connection, {"op": "hello"}, timeout)
        except TimeoutError:
            raise AgentUnavailableError(
                f"agent at {self.socket()}: no answer to a greeting within {timeout:.0f} s; next: see the agent's log",
                socket=self.socket(),
            ) from None
        except (ConnectionError, OSError) as error:
            if isinstance(error, MillstreamError):
                raise
            raise _Broken(f"the connection broke: {error}") from None
        if reply.get("ok") is not True:
            raise from_reply(f"agent at {self.socket()}", reply)
        if reply.get("protocol") != PROTOCOL:
            connection.close()
            raise AgentUnavailableError(
                f"agent at {self.socket()}: it is version {reply.get('version')} and speaks protocol "
                f"{reply.get('protocol')}, millstream {__version__} for Python speaks {PROTOCOL}; next: install the "
                "package of the agent's version",
                socket=self.socket(),
            )
        self._met = reply

    def _exchange(self, connection: Connection, request: Mapping[str, Any], timeout: float) -> Reply:
        return self._parse(connection.exchange(self._line(request), timeout))

    def _line(self, request: Mapping[str, Any]) -> bytes:
        import json

        return json.dumps({k: v for k, v in request.items() if v is not None}, ensure_ascii=False).encode()

    def _parse(self, line: bytes) -> Reply:
        import json

        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise AgentUnavailableError(
                f"agent at {self.socket()}: an answer that is not of this protocol: {line[:80]!r}; next: does "
                "MILLSTREAM_SOCKET name an agent's socket?",
                socket=self.socket(),
            )
        return reply

    def _unreachable(self, thing: str, reason: str) -> AgentUnavailableError:
        path = self.socket()
        about = "" if thing == "agent" else f"{thing}: "
        return AgentUnavailableError(
            f"{about}agent at {path}: {reason}; next: is the agent running here? Name its socket with "
            "Client(socket=...) or MILLSTREAM_SOCKET; without an agent, Client(local=DIR) runs one",
            socket=path,
        )
