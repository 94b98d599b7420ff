#!/usr/bin/env python3
"""Writes the handwritten digits of scikit-learn as WebDataset shards: NNNNN.npy (8x8 pixels) beside NNNNN.cls.

Real data (UCI "Optical Recognition of Handwritten Digits", 1,797 images, part of the scikit-learn package), and the
same bytes on every machine. One line of JSON says what was written.
"""

import argparse
import io
import json
import pathlib
import tarfile

import numpy as np
from sklearn.datasets import load_digits


def add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_shard(path, numbers, images, labels):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            pixels = io.BytesIO()
            np.save(pixels, images[number].astype(np.uint8))
            add(tar, f"{number:05d}.npy", pixels.getvalue())
            add(tar, f"{number:05d}.cls", str(labels[number]).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--train-shards", type=int, default=12)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    test, train = np.split(order, [len(order) // 5])
    shards = {"test-000.tar": test}
    for number, part in enumerate(np.array_split(train, options.train_shards)):
        shards[f"train-{number:03d}.tar"] = part
    for name, numbers in shards.items():
        write_shard(options.directory / name, numbers, digits.images, digits.target)
    written = sum((options.directory / name).stat().st_size for name in shards)
    print(json.dumps({"shards": len(shards), "bytes": written, "samples": len(order)}))


if __name__ == "__main__":
    main()
