"""A training loop with PyTorch that may be killed at any time: run it again, and it goes on where it was.

python train_torch.py URL [CHECKPOINT]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

import millstream
from millstream.torch import ShardDataset


def decode(sample: dict[str, Any]) -> tuple[str, int]:
    """What the model sees of a sample."""
    return str(sample["__key__"]), len(sample["bin"])


def main(url: str, checkpoint: Path) -> None:
    ds = millstream.Client().add("example", url, version="v1")
    ds.stage()
    ds.wait(timeout=600, progress=True)
    data = ShardDataset(ds, transform=decode, shuffle=True, seed=17, batch_size=8)
    loader: Any = StatefulDataLoader(data, batch_size=8, num_workers=2)
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    with ds.pin():
        for step, (keys, _sizes) in enumerate(loader):
            if step % 3 == 0:  # as often as the model is saved
                checkpoint.write_text(json.dumps(loader.state_dict()))
            print(step, keys[0])


if __name__ == "__main__":
    where = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp()) / "position.json"
    main(sys.argv[1], where)
