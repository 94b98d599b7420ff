"""PyTorch Distributed Checkpoint: N ranks restore one checkpoint, and the origin is read once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import DEADLINE, Cluster, clean_environment

torch = pytest.importorskip("torch")

import torch.distributed.checkpoint as dcp  # noqa: E402

RESTORE = """
import sys, torch, millstream, millstream.dcp
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
rank, world, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
state = {"w": torch.zeros(1000, 300), "step": 0}
checkpoint = millstream.Client().checkpoint("run", step="latest")
dcp.load(state, storage_reader=millstream.dcp.Reader(checkpoint))
assert torch.equal(state["w"], torch.arange(300000, dtype=torch.float32).reshape(1000, 300)), state
print(state["step"])
dist.destroy_process_group()
"""


def test_ranks_on_two_nodes_read_the_origin_once(own_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    cluster = own_cluster(2)
    saved = tmp_path / "saved"
    state = {"w": torch.arange(300000, dtype=torch.float32).reshape(1000, 300), "step": 7}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(saved))
    files = {str(p.relative_to(saved)): p.read_bytes() for p in saved.rglob("*") if p.is_file()}
    assert ".metadata" in files
    cluster.client().add("run-7", cluster.put("run-7", files), version="v1", run="run", step=7)
    total = sum(map(len, files.values()))
    before = cluster.control("GET", "/stats")["bytes_sent"]
    script = tmp_path / "restore.py"
    script.write_text(RESTORE)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "4", str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(MILLSTREAM_SOCKET=cluster.socket(rank % 2)),
        )
        for rank in range(4)
    ]
    for process in ranks:
        out, err = process.communicate(timeout=DEADLINE)
        assert out.strip() == "7", err
    read = cluster.control("GET", "/stats")["bytes_sent"] - before
    assert total <= read <= total * 1.05, (total, read)
