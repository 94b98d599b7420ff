#!/usr/bin/env python3
"""Trains a small classifier on the shards that nodes have, each node on its own share, and prints what it reached.

    train_digits.py DATASET SOCKET [SOCKET...]        one agent's socket per node

Every "node" is a rank that reads through its own agent: `millstream.torch.ShardDataset` deals the samples out. After
each epoch the ranks' weights are averaged, as data-parallel training does. In the middle of one epoch the position is
saved, as a checkpoint would; two runs go on from it, one with as many ranks and one with fewer, and their samples are
compared with those of the run that was not interrupted.
"""

import hashlib
import io
import json
import sys
import time
import warnings

import millstream
import numpy as np
from millstream.torch import ShardDataset, merge_states
from sklearn.linear_model import SGDClassifier

EPOCHS = 30
BATCH = 16
INTERRUPTED_EPOCH = 2
INTERRUPTED_STEP = 7


def decode(sample):
    """Key, pixels and label."""
    return sample["__key__"], np.load(io.BytesIO(sample["npy"])).ravel() / 16.0, int(sample["cls"])


def reader(dataset, rank, world, *, shards="train-*.tar", shuffle=True):
    return ShardDataset(
        dataset, transform=decode, shards=shards, shuffle=shuffle, seed=17, rank=rank, world_size=world, batch_size=BATCH
    )


def batches(samples):
    """Lists of `BATCH` samples, the last one shorter."""
    batch = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def in_order(steps):
    """Keys in the global order: in each step the ranks' samples alternate."""
    return [sample[0] for step in steps for turn in zip(*step) for sample in turn]


def average(models):
    weights = np.mean([m.coef_ for m in models], axis=0)
    bias = np.mean([m.intercept_ for m in models], axis=0)
    for model in models:
        model.coef_, model.intercept_ = weights.copy(), bias.copy()


def resumed(datasets, world, state):
    """Keys that `world` ranks read from a saved position to the end of its epoch."""
    ranks = [reader(datasets[rank % len(datasets)], rank, world) for rank in range(world)]
    for rank in ranks:
        rank.load_state_dict(state)
    return in_order(zip(*(batches(rank) for rank in ranks)))


def train(datasets):
    """The models after `EPOCHS`, the order of one epoch, and the position in the middle of it."""
    world = len(datasets)
    ranks = [reader(dataset, rank, world) for rank, dataset in enumerate(datasets)]
    models = [SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=i) for i in range(world)]
    steps, state, read = [], None, 0
    for epoch in range(EPOCHS):
        for number, step in enumerate(zip(*(batches(rank) for rank in ranks))):
            for model, batch in zip(models, step):
                pixels, labels = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
                model.partial_fit(pixels, labels, classes=np.arange(10))
            if epoch == INTERRUPTED_EPOCH:
                steps.append(step)
                if number + 1 == INTERRUPTED_STEP:
                    # Through JSON, as it would lie in a checkpoint.
                    state = json.loads(json.dumps(merge_states([rank.state_dict() for rank in ranks])))
            read += sum(map(len, step)) if epoch == 0 else 0
        average(models)
    return models, in_order(steps), state, read


def main(ref, sockets):
    began = time.monotonic()
    warnings.filterwarnings("ignore", module="sklearn")
    datasets = [millstream.Client(socket).dataset(ref) for socket in sockets]
    for dataset in datasets:
        dataset.wait(timeout=600)
    models, order, state, train_samples = train(datasets)
    rest = order[INTERRUPTED_STEP * BATCH * len(datasets) :]
    again = resumed(datasets, len(datasets), state)
    fewer = resumed(datasets, max(1, len(datasets) - 1), state)
    common = min(len(rest), len(fewer))
    test = list(reader(datasets[0], 0, 1, shards="test-*.tar", shuffle=False))
    result = {
        "accuracy": round(float(models[0].score([t[1] for t in test], [t[2] for t in test])), 4),
        "train_samples": train_samples,
        "test_samples": len(test),
        "resumed_at_sample": len(order) - len(rest),
        "resumed_same_order": again == rest,
        "resumed_on_fewer_ranks_same_order": fewer[:common] == rest[:common],
        "order_sha256": hashlib.sha256("\n".join(order).encode()).hexdigest()[:16],
        "seconds": round(time.monotonic() - began, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
