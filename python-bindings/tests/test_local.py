"""`Client(local=DIR)`: an agent of one's own, gone when its users are gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DEADLINE, binary, clean_environment, number_shards, python, said, until

import millstream


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a short path, and what runs in it afterwards."""
    monkeypatch.setenv("MILLSTREAM_BINARY", binary())
    where = Path(tempfile.mkdtemp(prefix="ms-local-"))
    yield where
    until("everything has stopped", lambda: not processes_of(where))
    shutil.rmtree(where)


def processes_of(directory: Path) -> list[str]:
    """Command lines of processes that work in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(directory / "local") in line and state != "Z" and " -c " not in line:
                found.append(line)
    return found


def source(home: Path) -> str:
    where = home / "data"
    where.mkdir(exist_ok=True)
    for key, content in number_shards(3, 5).items():
        (where / key).write_bytes(content)
    return f"file://{where}/"


def test_the_same_code_without_a_cluster(home: Path) -> None:
    with millstream.Client(local=home / "local") as client:
        ds = client.add("numbers", source(home), version="v1")
        ds.stage().wait(timeout=DEADLINE)
        root = ds.wait(timeout=DEADLINE)
        assert root == home / "local/data/datasets/numbers@v1"
        assert (root / "train-000.tar").read_bytes() == (home / "data/train-000.tar").read_bytes()
        assert ds.verify() == ds.nbytes
        processes = processes_of(home)
        assert len(processes) == 3, processes  # keeper, coordinator, agent
    until("it has stopped by itself", lambda: not processes_of(home))
    # What was staged is still there for the next one.
    with millstream.Client(local=home / "local") as client:
        assert client.dataset("numbers").wait(timeout=DEADLINE) == root
    del ds


CHILD = """
import millstream, sys
client = millstream.Client()
client.hello()
print("up", flush=True)
sys.stdin.read()
"""


def user(home: Path) -> subprocess.Popen[str]:
    child = python(CHILD, MILLSTREAM_LOCAL=str(home / "local"))
    assert said(child) == "up"
    return child


def test_several_users_share_one_agent_and_kill_9_leaves_nothing(home: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    users = [user(home) for _ in range(3)]
    assert len(processes_of(home)) == 3
    for child in users[:2]:
        child.kill()
        child.communicate()
    assert len(processes_of(home)) == 3, "one user is left"
    users[2].kill()
    users[2].communicate()
    until("nobody is left", lambda: not processes_of(home))
    assert {n for n in set(os.listdir("/dev/shm")) - before if "millstream" in n} == set()


def test_two_users_have_nothing_in_common(home: Path) -> None:
    """Directories of their own, at the same time: the same name is other data for each."""
    other = home / "local-of-another"
    for where in (home / "a", home / "b"):
        where.mkdir()
        (where / "x.txt").write_bytes(where.name.encode())
    with millstream.Client(local=home / "local") as mine, millstream.Client(local=other) as yours:
        found = []
        for client, where in ((mine, home / "a"), (yours, home / "b")):
            ds = client.add("same", f"file://{where}/", version="v1")
            ds.stage()
            found.append((ds.wait(timeout=DEADLINE) / "x.txt").read_bytes())
        assert found == [b"a", b"b"]
        assert len(processes_of(home)) == 6


def test_a_killed_keeper_takes_its_children_along_and_is_replaced(home: Path) -> None:
    child = user(home)
    keeper = next(
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and b"_local.py" in _cmdline(entry) and str(home).encode() in _cmdline(entry)
    )
    os.kill(keeper, signal.SIGKILL)
    until("its children have stopped", lambda: not processes_of(home))
    with millstream.Client(local=home / "local") as client:
        assert client.hello()["node"] == "local"
    child.kill()
    child.communicate()


def _cmdline(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_workers_keep_it_alive(home: Path) -> None:
    """A child of a fork uses the agent after its parent has let go."""
    code = """
import millstream, os
client = millstream.Client()
client.hello()
pid = os.fork()
if pid == 0:
    print(client.hello()["node"], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
client.close()
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(MILLSTREAM_LOCAL=str(home / "local"), MILLSTREAM_BINARY=binary()),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert out.stdout == "local\n", out.stderr


def test_refusals_are_clear(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(millstream.UsageError):
        millstream.Client("/some/socket", local=home)
    with pytest.raises(millstream.MillstreamError, match="too long"):
        millstream.Client(local=tmp_path / ("x" * 120)).hello()
    (home / "file").write_bytes(b"")
    with pytest.raises(millstream.DeniedError, match="file"):
        millstream.Client(local=home / "file").hello()
    monkeypatch.setenv("MILLSTREAM_BINARY", "/nowhere/millstream")
    with pytest.raises(millstream.MillstreamError, match="/nowhere/millstream"):
        millstream.Client(local=home / "local").hello()
    (tmp_path / "no-program").write_bytes(b"\x7fELF and no more")
    (tmp_path / "no-program").chmod(0o755)
    monkeypatch.setenv("MILLSTREAM_BINARY", str(tmp_path / "no-program"))
    with pytest.raises(millstream.AgentUnavailableError, match="Exec format error.*no-program"):
        millstream.Client(local=home / "local").hello()


def test_a_program_may_be_named_from_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(binary()).parent)
    monkeypatch.setenv("MILLSTREAM_BINARY", f"./{Path(binary()).name}")
    with millstream.Client(local=home / "local") as client:
        assert client.hello()["node"] == "local"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory to somebody else needs root")
def test_a_directory_of_somebody_else_is_refused(home: Path) -> None:
    (home / "local").mkdir()
    os.chown(home / "local", 12345, 12345)
    with pytest.raises(millstream.DeniedError, match="uid 12345"):
        millstream.Client(local=home / "local").hello()
    os.chown(home / "local", 0, 0)
