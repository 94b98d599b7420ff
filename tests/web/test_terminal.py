"""The same in a terminal: `status --watch` on a real pseudo-terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pyte
import pytest
from cluster import BINARY, DEADLINE_S, clean_environment

DATASET = "term@v1"


@pytest.fixture(scope="module")
def cluster(make_cluster):
    cluster = make_cluster({"node1": {}, "node2": {}})
    cluster.put("term", 10, 100_000)
    cluster.add(DATASET, "term")
    cluster.cli("stage", DATASET, "--wait", "--timeout", "60s")
    return cluster


class Terminal:
    """A pseudo-terminal with the program in it."""

    def __init__(self, cluster, *arguments, lines=40, columns=140):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = clean_environment({"MILLSTREAM_COORDINATOR": f"http://{cluster.grpc}", "TERM": "xterm-256color"})
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen([BINARY, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        self.ours, self.theirs = ours, theirs
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)

    def until(self, *texts):
        """Reads until all of these are on the screen."""
        end = time.monotonic() + DEADLINE_S
        while not all(text in self.shown() for text in texts):
            assert time.monotonic() < end, f"{texts} are not in \n{self.shown()}"
            if select.select([self.ours], [], [], 0.2)[0]:
                self.stream.feed(os.read(self.ours, 65536))

    def shown(self):
        return "\n".join(self.screen.display)

    def press(self, keys):
        os.write(self.ours, keys.encode())

    def end(self):
        code = self.process.wait(timeout=DEADLINE_S)
        after = termios.tcgetattr(self.theirs)
        os.close(self.ours)
        os.close(self.theirs)
        assert after == self.before, "the terminal is not as it was"
        return code


def test_overview_dataset_node_and_out_again(cluster):
    terminal = Terminal(cluster, "status", "--watch")
    terminal.until("overview", "live", DATASET, "2 of 2 nodes up")
    terminal.press("\r")
    terminal.until("Map: one cell is", "██████████", "node2", "ready 20")
    terminal.press("\r")
    terminal.until("Datasets here", "disk", "carriers tcp")
    terminal.press("\x1b")
    terminal.until("Map: one cell is")
    terminal.press("n")
    terminal.until("NODE", "DISK")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_small_terminal_tells_which_node_went(cluster):
    terminal = Terminal(cluster, "status", "--watch", lines=24, columns=80)
    terminal.until("overview", "live", "2 of 2 nodes up", "100 %")
    cluster.agents["node2"].kill()
    terminal.until("stage 1 is missing on node2", "ready on 1 of 2 nodes", "● done", "100 %")
    cluster.agents["node2"].start()
    terminal.until("2 of 2 nodes up", "ready on 2 of 2 nodes")
    terminal.press("q")
    assert terminal.end() == 0


def test_a_signal_gives_the_terminal_back(cluster):
    terminal = Terminal(cluster, "status", DATASET, "--watch")
    terminal.until("Map: one cell is")
    terminal.process.terminate()
    assert terminal.end() == 130


def test_one_node_without_a_terminal(cluster):
    done = cluster.cli("status", "--node", "node1")
    assert "node1  up" in done.stdout and DATASET in done.stdout
    assert cluster.cli("status", "--node", "nobody", check=False).returncode == 3
