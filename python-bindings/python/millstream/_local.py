"""An agent of one's own: `Client(local=DIR)`, `MILLSTREAM_LOCAL`.

Participants: users (processes with a client) hold a connection to the *keeper*; the keeper (this module, run as a
process of its own) runs a coordinator and an agent in the directory, and stops both when nobody has been connected for
a while. Goals: nothing is left running, whichever of them is killed how; two users of one host have nothing in common;
one directory has one agent, whoever comes first. All state is files below the directory; no shared memory.
Non-goals: serving other hosts.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from millstream._errors import AgentUnavailableError, DeniedError, MillstreamError

# How long the keeper stays after its last user: the next step of a script finds it warm.
LINGER = 2.0
# How long a coordinator and an agent take to start on a busy laptop, at most.
START_TIMEOUT = 60.0
# How long they get to stop by themselves.
STOP_TIMEOUT = 15.0
# The longest path of a Unix socket in Linux.
SOCKET_PATH_MAX = 107


def socket_of(directory: str) -> str:
    """The agent's socket of a local directory."""
    return os.path.join(directory, "agent.sock")


def _keeper_socket(directory: str) -> str:
    return os.path.join(directory, "keeper.sock")


def binary() -> str:
    """The `millstream` program: `MILLSTREAM_BINARY`, beside this Python, or on the path."""
    named = os.environ.get("MILLSTREAM_BINARY")
    beside = os.path.join(os.path.dirname(sys.executable), "millstream")
    for candidate in [named] if named else [beside, shutil.which("millstream")]:
        if candidate and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)  # whoever starts it has another working directory
    raise MillstreamError(
        f"{named or 'millstream'}: there is no such program; next: put the millstream binary on PATH, or name it in "
        "MILLSTREAM_BINARY"
    )


class User:
    """This process's connection to the keeper: while it is open, the agent runs."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # it is only ever looked at
        self._connection = connection
        self._pid = os.getpid()

    def alive(self) -> bool:
        """Open in this process, and the keeper still there?"""
        if self._pid != os.getpid():
            return False
        try:
            return self._connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Lets go."""
        self._connection.close()


def join(directory: str, timeout: float) -> User:
    """Connects to the directory's keeper, starting one if there is none; returns when its agent answers."""
    _prepare(directory)
    deadline = time.monotonic() + max(timeout, START_TIMEOUT)
    keeper: subprocess.Popen[bytes] | None = None
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            connection.connect(_keeper_socket(directory))
            answer = connection.recv(4096)
            if answer.startswith(b"ready"):
                return User(connection)
            if answer:
                connection.close()
                raise AgentUnavailableError(answer.decode(errors="replace").strip(), socket=socket_of(directory))
            connection.close()  # it is just leaving
        except (FileNotFoundError, ConnectionError, TimeoutError) as error:
            connection.close()
            if isinstance(error, MillstreamError):
                raise
        if time.monotonic() >= deadline:
            raise AgentUnavailableError(
                f"local agent in {directory}: not up within {timeout:.0f} s; next: see {directory}/keeper.log and "
                f"{directory}/agent.log",
                socket=socket_of(directory),
            )
        if keeper is None or keeper.poll() is not None:
            keeper = _start_keeper(directory)
        time.sleep(0.05)


def _prepare(directory: str) -> None:
    if len(_keeper_socket(directory).encode()) > SOCKET_PATH_MAX:
        raise MillstreamError(
            f"{directory}: the path is too long for a Unix socket ({SOCKET_PATH_MAX} bytes with its name); next: "
            "choose a shorter one"
        )
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = os.stat(directory).st_uid
    except OSError as error:
        raise DeniedError(f"{directory}: {error.strerror}; next: choose another directory") from None
    if owner != os.geteuid():
        raise DeniedError(f"{directory} belongs to another user (uid {owner}); next: choose a directory of your own")


def _start_keeper(directory: str) -> subprocess.Popen[bytes]:
    program = binary()  # refuses here, where somebody reads it
    try:
        log = open(os.path.join(directory, "keeper.log"), "ab")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DeniedError(f"{directory}: {error.strerror}; next: choose another directory") from None
    with log:
        # A session of its own: Ctrl-C in the user's terminal is not meant for it.
        return subprocess.Popen(
            [sys.executable, "-I", os.path.abspath(__file__), directory, program],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            close_fds=True,
            cwd="/",
        )


# ------------------------------------------------------------------- the keeper


class Keeper:
    """The process that runs a coordinator and an agent for as long as it has users."""

    def __init__(self, directory: str, program: str) -> None:
        self.directory = Path(directory)
        self.program = program
        self.children: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """Until the last user has gone, or a child has died."""
        lock = open(self.directory / "keeper.lock", "w")  # noqa: SIM115 (held until the end)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else was first
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path = _keeper_socket(str(self.directory))
        if os.path.exists(path):
            os.unlink(path)  # of a keeper that was killed: we hold the lock
        listener.bind(path)
        listener.listen(128)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        try:
            greeting = self._start()
            self._serve(listener, greeting)
        finally:
            os.unlink(path)
            listener.close()
            self._stop()

    def _start(self) -> bytes:
        try:
            coordinator = self._spawn(
                "coordinator", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
                "--state-dir", str(self.directory / "coordinator"),
            )  # fmt: skip
            url = f"http://{coordinator['grpc']}"
            self._spawn(
                "agent", "--coordinator", url, "--data-dir", str(self.directory / "data"), "--node", "local",
                "--listen", "127.0.0.1:0", "--http", "off", "--buffers", "64MiB",
                "--socket", socket_of(str(self.directory)),
            )  # fmt: skip
            self._until_in_session()
        except (MillstreamError, OSError) as error:
            return f"local agent in {self.directory}: {error}; next: see {self.directory}/agent.log".encode()
        return b"ready\n"

    def _spawn(self, role: str, *arguments: str) -> dict[str, Any]:
        ready = self.directory / f"{role}.ready"
        ready.unlink(missing_ok=True)
        log_path = self.directory / f"{role}.log"
        # Left-over settings of the user's environment are for clusters, not for this.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MILLSTREAM_")}
        with open(log_path, "wb") as log:
            child = subprocess.Popen(
                [self.program, role, *arguments, "--ready-file", str(ready), "--parent", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.children.append(child)
        deadline = time.monotonic() + START_TIMEOUT
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                lines = log_path.read_text(errors="replace").strip().splitlines()
                reason = " ".join(lines[-2:]) or f"it ended with {child.returncode}"
                raise MillstreamError(f"the {role} did not start: {reason}")
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(ready.read_text())
        return found

    def _until_in_session(self) -> None:
        """An agent is up a moment before it has found its coordinator."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
                agent.settimeout(START_TIMEOUT)
                agent.connect(socket_of(str(self.directory)))
                agent.sendall(b'{"op":"status"}\n')
                with agent.makefile("rb") as lines:
                    if json.loads(lines.readline()).get("coordinator"):
                        return
            time.sleep(0.02)
        raise MillstreamError("the agent did not find its coordinator")

    def _serve(self, listener: socket.socket, greeting: bytes) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(listener, selectors.EVENT_READ)
            users: set[socket.socket] = set()
            empty_since = time.monotonic()
            while users or time.monotonic() - empty_since < LINGER:
                if any(child.poll() is not None for child in self.children):
                    return  # users find out when their connection closes, and start another keeper
                for key, _ in ready.select(timeout=0.25):
                    if key.fileobj is listener:
                        user, _ = listener.accept()
                        user.sendall(greeting)
                        users.add(user)
                        ready.register(user, selectors.EVENT_READ)
                    elif isinstance(key.fileobj, socket.socket):
                        # Users say nothing; they only hang up.
                        ready.unregister(key.fileobj)
                        users.discard(key.fileobj)
                        key.fileobj.close()
                        empty_since = time.monotonic()
                if greeting != b"ready\n" and not users:
                    return

    def _stop(self) -> None:
        for child in reversed(self.children):
            child.terminate()
        for child in reversed(self.children):
            try:
                child.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


if __name__ == "__main__":
    Keeper(sys.argv[1], sys.argv[2]).run()
