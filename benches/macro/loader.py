#!/usr/bin/env python3
"""The Python package against other ways to read the same local, verified tar shards.

    loader.py --out FILE [--samples N] [--large N]

Needs a Python with the package, PyTorch, webdataset and MosaicML Streaming (`make test-python` makes one). An agent of
its own serves the data, MosaicML's shards (the same samples, uncompressed) too. Every figure is the median of
interleaved rounds in this run; ratios are what counts on a machine that is shared.
"""

import argparse
import collections
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import timeit

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python-bindings" / "tests"))

import millstream
import mosaic
import torch
import webdataset as wds
from millstream.torch import ShardDataset
from torch.utils.data import DataLoader

ROUNDS = 5


def write_tar(path, first, count, size):
    noise = os.urandom(size)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(first, first + count):
            for field, content in (("bin", noise), ("cls", str(number % 10).encode())):
                entry = tarfile.TarInfo(f"{number:08d}.{field}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_mds(directory, tars):
    """The samples of some tar shards as MosaicML Streaming shards of the same size."""
    size = max(path.stat().st_size for path in tars)
    with mosaic.MDSWriter(out=str(directory), columns={"bin": "bytes", "cls": "bytes"}, size_limit=size) as out:
        for path in tars:
            for sample in millstream.stream.tar(path):
                out.write({"bin": sample["bin"], "cls": sample["cls"]})


class Mosaic(mosaic.StreamingDataset):
    """Decodes as the others do."""

    def __getitem__(self, at):
        return decode(super().__getitem__(at))


def decode(sample):
    """The same work for every loader."""
    return len(sample["bin"]), int(sample["cls"])


def seconds(run):
    began = time.perf_counter()
    found = run()
    return time.perf_counter() - began, found


def interleaved(ways, samples):
    """Samples a second of each way, medians over rounds in which each had its turn."""
    times = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            took, found = seconds(way)
            assert found == samples, (name, found, samples)
            times[name].append(samples / took)
            print(f"  {name}: {samples / took:.0f} samples/s", file=sys.stderr, flush=True)
    return {name: round(statistics.median(rates), 1) for name, rates in times.items()}


def loaders(ds, mds, samples, workers):
    """Two workers, batches of 32, the same decode."""
    urls = sorted(str(path) for path in ds.root.glob("*.tar"))

    def count(loader):
        return sum(len(batch[0]) for batch in loader)

    def ours(shuffle):
        data = ShardDataset(
            ds, transform=decode, samples=counts, shuffle=shuffle, seed=1, batch_size=32, rank=0, world_size=1
        )
        return lambda: count(DataLoader(data, batch_size=32, num_workers=workers))

    def theirs():
        data = wds.WebDataset(urls, shardshuffle=False).map(decode)
        return count(DataLoader(data, batch_size=32, num_workers=workers))

    def mosaics():
        return count(DataLoader(mosaicml, batch_size=32, num_workers=workers))

    counts = samples // len(urls)
    mosaicml = Mosaic(local=str(mds.root), batch_size=32, shuffle=False)
    ways = {"millstream": ours(False), "millstream_shuffled": ours(True), "webdataset": theirs, "mosaicml": mosaics}
    return interleaved(ways, samples)


def bare(ds, samples):
    """One process, no data loader: our reader against open() and read() of the same files."""
    paths = sorted(ds.root.glob("*.tar"))

    def ours():
        data = ShardDataset(ds, samples=samples // len(paths), rank=0, world_size=1, lanes=1)
        collections.deque(data, maxlen=0)  # keeps none, as the other
        return len(data)

    def plain():
        for path in paths:
            with open(path, "rb") as file:
                while file.read(1 << 20):
                    pass
        return samples

    return interleaved({"millstream": ours, "open_read": plain}, samples)


def starts(ds):
    """Milliseconds of fresh processes: the import, and what the first batch adds to a process that imports PyTorch."""
    first = (
        "import torch, time, millstream; from millstream.torch import ShardDataset;"
        "from torch.utils.data import DataLoader; ds = millstream.Client().dataset('small');"
        f"next(iter(DataLoader(ShardDataset(ds, samples={len_small(ds)}, rank=0, world_size=1), batch_size=32,"
        "collate_fn=list))); print(time.monotonic())"
    )
    only = "import torch, time; from torch.utils.data import DataLoader; print(time.monotonic())"
    package = "import time; t = time.perf_counter(); import millstream; print(time.perf_counter() - t)"
    env = {**os.environ, "MILLSTREAM_SOCKET": ds._wire.socket()}
    env.pop("MILLSTREAM_LOCAL", None)

    def printed(text):
        done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    def since_start(text):
        began = time.monotonic()
        return printed(text) - began

    printed(first)  # byte code and page cache
    imports = [printed(package) for _ in range(9)]
    firsts = [(since_start(first), since_start(only)) for _ in range(9)]
    added = [with_batch - without for with_batch, without in firsts]
    found = {"import": imports, "first_batch": added}
    return {
        f"{name}_ms{suffix}": round(of(values) * 1e3, 1)
        for name, values in found.items()
        for suffix, of in (("", statistics.median), ("_best", min))
    }


def len_small(ds):
    return ds_counts[ds.name]


ds_counts = {}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--samples", type=int, default=20_000, help="small samples (8 KiB), in 10 shards")
    parser.add_argument("--large", type=int, default=1600, help="large samples (1 MiB), in 4 shards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ms-") as scratch:
        home = pathlib.Path(scratch)
        datasets = {}
        with millstream.Client(local=home / "m") as client:
            for name, shards, total, size in (
                ("small", 10, options.samples, 8 << 10), ("large", 4, options.large, 1 << 20)):
                (home / name).mkdir()
                each = total // shards
                for shard in range(shards):
                    write_tar(home / name / f"train-{shard:03d}.tar", shard * each, each, size)
                ds = client.add(name, f"file://{home / name}/", version="v1")
                ds.stage()
                ds.wait(timeout=600)
                datasets[name], ds_counts[name] = ds, each
            write_mds(home / "mds", sorted((home / "small").glob("*.tar")))
            mds = client.add("mds", f"file://{home / 'mds'}/", version="v1")
            mds.stage()
            mds.wait(timeout=600)
            small, large = datasets["small"], datasets["large"]
            data = ShardDataset(small, samples=ds_counts["small"], rank=0, world_size=1)
            next(iter(data))
            data.state_dict()
            loaded = loaders(small, mds, options.samples, 2)
            read = bare(large, options.large)
            result = {
                "torch": torch.__version__, "webdataset": wds.__version__, "cpus": os.cpu_count(),
                "load_average": round(os.getloadavg()[0], 1),
                "loaders_2_workers_samples_per_s": loaded,
                "ratio_to_mosaicml": round(loaded["millstream"] / loaded["mosaicml"], 2),
                "ratio_to_webdataset": round(loaded["millstream"] / loaded["webdataset"], 2),
                "large_samples_per_s": read,
                "ratio_to_open_read": round(read["millstream"] / read["open_read"], 3),
                "path_us": round(min(timeit.repeat(lambda: small.path("train-003.tar"), number=2000, repeat=5)) / 2e-3, 2),
                "state_dict_us": round(min(timeit.repeat(data.state_dict, number=2000, repeat=5)) / 2e-3, 2),
                **starts(small),
            }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
