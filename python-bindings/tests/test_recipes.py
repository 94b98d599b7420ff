"""Other loaders read `ds.root`: the recipes of the README, as they stand there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DEADLINE, Cluster, number_shards

import millstream


def test_webdataset(numbers: millstream.Dataset) -> None:
    wds = pytest.importorskip("webdataset")
    root = numbers.wait(timeout=DEADLINE)
    urls = sorted(str(path) for path in root.glob("*.tar"))
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [s["txt"] for s in samples] == [f"{s}:{i}" for s in range(12) for i in range(10)]


def test_mosaicml_streaming(cluster: Cluster, tmp_path: Path) -> None:
    """Its shards and index, verified; two workers, as in training. It must not write beside them."""
    pytest.importorskip("torch")
    from mosaic import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    columns = {"n": "int", "text": "str"}
    with MDSWriter(out=str(tmp_path), columns=columns, size_limit=1 << 11) as out:
        for n in range(300):
            out.write({"n": n, "text": f"sample {n}"})
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files) > 3 and "index.json" in files
    ds = cluster.add("mds", files)
    ds.stage().wait(timeout=DEADLINE)
    with ds.pin() as root:
        data = StreamingDataset(local=str(root), batch_size=10, shuffle=False)
        loader = DataLoader(data, batch_size=10, num_workers=2, timeout=DEADLINE)
        read = [(int(n), text) for batch in loader for n, text in zip(batch["n"], batch["text"], strict=True)]
    assert sorted(read) == [(n, f"sample {n}") for n in range(300)]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == files


def test_hugging_face_datasets(cluster: Cluster, tmp_path: Path) -> None:
    hf = pytest.importorskip("datasets")
    lines = {f"part-{i}.jsonl": "\n".join(json.dumps({"n": 10 * i + j}) for j in range(10)).encode() for i in range(3)}
    ds = cluster.add("jsonl", lines)
    ds.stage().wait(timeout=DEADLINE)
    files = sorted(str(path) for path in ds.root.glob("*.jsonl"))
    table = hf.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path))
    assert table["n"][:30] == list(range(30))
    streamed = hf.load_dataset("json", data_files=files, split="train", streaming=True)
    assert [row["n"] for row in streamed] == list(range(30))


@pytest.fixture(scope="module")
def parquet(cluster: Cluster) -> millstream.Dataset:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    files = {}
    for i in range(3):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"n": list(range(i * 100, i * 100 + 100))}), sink)
        files[f"part-{i}.parquet"] = bytes(sink.getvalue())
    ds = cluster.add("parquet", files)
    ds.stage().wait(timeout=DEADLINE)
    return ds


def test_parquet_with_pyarrow(parquet: millstream.Dataset) -> None:
    import pyarrow.dataset

    assert pyarrow.dataset.dataset(parquet.root).count_rows() == 300


def test_parquet_with_polars(parquet: millstream.Dataset) -> None:
    pl = pytest.importorskip("polars")
    assert pl.scan_parquet(parquet.root / "*.parquet").select(pl.col("n").sum()).collect().item() == sum(range(300))


def test_parquet_with_duckdb(parquet: millstream.Dataset) -> None:
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select sum(n) from '{parquet.root}/*.parquet'").fetchall()[0][0] == sum(range(300))


def test_safetensors(cluster: Cluster) -> None:
    np = pytest.importorskip("numpy")
    st = pytest.importorskip("safetensors.numpy")
    from safetensors import safe_open

    ds = cluster.add("weights", {"model.safetensors": st.save({"w": np.arange(6, dtype="float32").reshape(2, 3)})})
    ds.stage().wait(timeout=DEADLINE)
    with safe_open(ds.path("model.safetensors"), framework="np") as file:
        assert file.get_tensor("w").sum() == 15


def test_the_numbers_are_still_there(numbers: millstream.Dataset) -> None:
    """Whatever the other loaders did, nothing of it touched the verified files."""
    for key, content in number_shards(12, 10).items():
        assert numbers.path(key).read_bytes() == content
