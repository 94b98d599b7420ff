"""Arrow's C stream interface: the list of shards, and Arrow IPC shards without a copy."""

from __future__ import annotations

import pytest
from conftest import DEADLINE, Cluster

import millstream

pa = pytest.importorskip("pyarrow")


def ipc(table: object, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema) as writer:  # type: ignore[attr-defined]
        writer.write_table(table, max_chunksize=100)
    return bytes(sink.getvalue())


def test_the_manifest_is_a_table(numbers: millstream.Dataset) -> None:
    table = pa.table(numbers)
    assert table.column_names == ["key", "bytes", "etag", "checksum"]
    assert table["key"].to_pylist() == [s.key for s in numbers]
    assert table["bytes"].to_pylist() == [s.nbytes for s in numbers]
    assert all(c.startswith("crc64nvme:") for c in table["checksum"].to_pylist())
    assert table.schema.metadata[b"dataset"] == b"numbers@v1"


@pytest.mark.parametrize("stream", [False, True])
def test_ipc_shards_are_mapped(cluster: Cluster, stream: bool) -> None:
    words = pa.array(["one", "two", None] * 100).dictionary_encode()
    table = pa.table({"n": list(range(300)), "word": words, "list": [[i, i] for i in range(300)]})
    name = f"arrow-{'stream' if stream else 'file'}"
    ds = cluster.add(name, {"t.arrow": ipc(table, stream), "bad.arrow": b"ARROW1\0\0 not at all", "text.arrow": b"hello"})
    ds.stage("all").wait(timeout=DEADLINE)
    found = pa.table(ds["t.arrow"])
    assert found.equals(table)
    # Mapped, and kept by the table when the file is evicted.
    maps = open("/proc/self/maps").read()
    assert str(ds.path("t.arrow")) in maps
    assert pa.total_allocated_bytes() < 1 << 20
    ds.evict()
    assert found["n"].to_pylist() == list(range(300))


def test_what_is_no_arrow_file_is_named(cluster: Cluster) -> None:
    ds = cluster.add("no-arrow", {"bad.arrow": b"ARROW1\0\0 not at all", "text.arrow": b"hello, world, this is text"})
    ds.stage().wait(timeout=DEADLINE)
    for key in ("bad.arrow", "text.arrow"):
        with pytest.raises(ValueError, match=key):
            pa.table(ds[key])
