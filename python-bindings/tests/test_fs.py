"""fsspec: `millstream://`."""

from __future__ import annotations

import pytest
from conftest import DEADLINE, Cluster

import millstream

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def tree(cluster: Cluster) -> millstream.Dataset:
    files = {"a.txt": b"alpha", "d/b.txt": b"beta", "d/e/c.txt": b"gamma", "spaces and ünicode.txt": b"x"}
    ds = cluster.add("tree", files)
    ds.stage().wait(timeout=DEADLINE)
    return ds


def test_registered_by_entry_point(cluster: Cluster, tree: millstream.Dataset) -> None:
    with fsspec.open("millstream://tree@v1/d/b.txt", "rb", socket=cluster.socket()) as file:
        assert file.read() == b"beta"
    with fsspec.open("millstream://tree/a.txt", "rt", socket=cluster.socket()) as file:
        assert file.read() == "alpha"


def test_listing_and_reading(cluster: Cluster, tree: millstream.Dataset) -> None:
    fs = fsspec.filesystem("millstream", socket=cluster.socket())
    assert fs.ls("tree@v1", detail=False) == ["tree@v1/a.txt", "tree@v1/d", "tree@v1/spaces and ünicode.txt"]
    assert fs.ls("millstream://tree@v1/d", detail=False) == ["tree@v1/d/b.txt", "tree@v1/d/e"]
    assert "tree@v1" in fs.ls("", detail=False)
    assert sorted(fs.find("tree@v1")) == sorted(f"tree@v1/{s.key}" for s in tree)
    assert fs.glob("tree@v1/**/*.txt") and fs.isdir("tree@v1/d") and fs.isfile("tree@v1/a.txt")
    assert fs.info("tree@v1/a.txt")["size"] == 5 and not fs.exists("tree@v1/nope")
    assert fs.cat_file("tree@v1/a.txt", 1, 3) == b"lp" and fs.cat_file("tree@v1/a.txt", -2) == b"ha"
    assert fs.cat(["tree@v1/d/b.txt", "tree@v1/d/e/c.txt"]) == {"tree@v1/d/b.txt": b"beta", "tree@v1/d/e/c.txt": b"gamma"}
    assert open(fs.local_path("tree@v1/a.txt"), "rb").read() == b"alpha"


def test_versions_are_immutable_and_errors_named(cluster: Cluster, tree: millstream.Dataset) -> None:
    fs = fsspec.filesystem("millstream", socket=cluster.socket())
    with pytest.raises(PermissionError, match="immutable"):
        fs.open("tree@v1/a.txt", "wb")
    with pytest.raises(FileNotFoundError, match="nope"):
        fs.info("tree@v1/nope")
    with pytest.raises(FileNotFoundError):
        fs.ls("no-such-dataset")
