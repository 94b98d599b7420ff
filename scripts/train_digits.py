#!/usr/bin/env python3
"""Trains a small classifier on the shards that nodes have, each node on its own share, and prints what it reached.

    train_digits.py ROOT [ROOT...]        one directory of verified files per node

Every "node" reads its part of the training shards from its own directory; after each epoch the nodes' weights are
averaged, as data-parallel training does. Plain tarfile, no loader library: the paths are ordinary files.
"""

import io
import json
import pathlib
import sys
import tarfile
import time
import warnings

import numpy as np
from sklearn.linear_model import SGDClassifier

EPOCHS = 30


def samples(path):
    """Pixels and label of each sample of a shard, in its order."""
    found = {}
    with tarfile.open(path) as tar:
        for entry in tar:
            stem, kind = entry.name.rsplit(".", 1)
            found.setdefault(stem, {})[kind] = tar.extractfile(entry).read()
    for fields in found.values():
        yield np.load(io.BytesIO(fields["npy"])).ravel() / 16.0, int(fields["cls"])


def load(paths):
    pixels, labels = zip(*(sample for path in paths for sample in samples(path)))
    return np.array(pixels), np.array(labels)


def main(roots):
    began = time.monotonic()
    warnings.filterwarnings("ignore", module="sklearn")
    shards = [sorted(root.glob("train-*.tar")) for root in roots]
    names = {tuple(path.name for path in paths) for paths in shards}
    if len(names) != 1 or not next(iter(names)):
        sys.exit(f"the nodes have different shards, or none: {names}")
    nodes = [load(paths[i :: len(roots)]) for i, paths in enumerate(shards)]
    test_pixels, test_labels = load(roots[0].glob("test-*.tar"))
    models = [SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=i) for i in range(len(nodes))]
    for _ in range(EPOCHS):
        for model, (pixels, labels) in zip(models, nodes):
            model.partial_fit(pixels, labels, classes=np.arange(10))
        weights = np.mean([m.coef_ for m in models], axis=0)
        bias = np.mean([m.intercept_ for m in models], axis=0)
        for model in models:
            model.coef_, model.intercept_ = weights.copy(), bias.copy()
    result = {
        "accuracy": round(float(models[0].score(test_pixels, test_labels)), 4),
        "train_samples": sum(len(labels) for _, labels in nodes),
        "test_samples": len(test_labels),
        "seconds": round(time.monotonic() - began, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main([pathlib.Path(text) for text in sys.argv[1:]])
