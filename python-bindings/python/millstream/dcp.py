"""PyTorch Distributed Checkpoint: read a checkpoint that Millstream brought to this node.

    state = {"model": model.state_dict()}
    dcp.load(state, storage_reader=millstream.dcp.Reader(client.checkpoint("llama-7b")))

However many ranks and nodes restore it, the object store is read once: the nodes pass the pieces on to each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.filesystem import FileSystemReader

from millstream._dataset import Dataset

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata


class Reader(FileSystemReader):  # type: ignore[misc,unused-ignore]
    """A `StorageReader` over a `Checkpoint` (or any dataset that has the files of one).

    All of it is staged on this node and waited for, at most `timeout` seconds, when the first byte is asked for: every
    rank needs every metadata file, and verified files are mapped by all ranks of the node. `.metadata`, which is a
    pickle, is read only after its checksum matched the manifest's.
    """

    def __init__(self, checkpoint: Dataset, *, timeout: float = 600.0) -> None:
        self._checkpoint = checkpoint
        self._timeout = timeout
        self._pin: Any = None
        super().__init__("")

    def _here(self) -> None:
        if self._pin is None:
            self._checkpoint.stage("self")
            root = self._checkpoint.wait(timeout=self._timeout)
            self._pin = self._checkpoint.pin()
            self.path = self.fs.init_path(root)

    def reset(self, checkpoint_id: Any = None) -> None:
        """A checkpoint is immutable: only the plan is forgotten."""
        super().reset(None)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._here()
        return super().read_metadata(*args, **kwargs)

    def read_data(self, plan: Any, planner: Any) -> Any:
        self._here()
        return super().read_data(plan, planner)

    @property
    def checkpoint_id(self) -> str:
        return self._checkpoint.ref

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False
