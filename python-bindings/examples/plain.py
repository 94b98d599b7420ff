"""Without any framework: wait, walk over the shards, read them.

python plain.py URL
"""

from __future__ import annotations

import sys
import tarfile

import millstream
from millstream import Progress


def show(progress: Progress) -> None:
    """Called as the transfer goes on."""
    print(progress, file=sys.stderr)


def main(url: str) -> None:
    client = millstream.Client()
    ds = client.add("example", url, version="v1")
    transfer = ds.stage(nodes="all")
    try:
        transfer.wait(timeout=600, progress=show)
    except millstream.NotReadyError as error:
        sys.exit(f"waited for {error.slow_nodes}, {error.eta} s were left: {error}")
    with ds.pin():
        for shard in ds:
            if shard.key.endswith(".tar"):
                with tarfile.open(shard.path()) as tar:
                    print(shard.key, shard.nbytes, len(tar.getnames()))


if __name__ == "__main__":
    main(sys.argv[1])
