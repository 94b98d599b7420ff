"""PyTorch: `ShardDataset`, an IterableDataset in the canonical order.

    data = millstream.torch.ShardDataset(ds, shuffle=True, seed=17, batch_size=32)
    loader = StatefulDataLoader(data, batch_size=32, num_workers=8)

Works without PyTorch as well, as a plain iterable.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from millstream._errors import MillstreamError
from millstream._millstream import Share
from millstream.stream import Place, ShardStream, State, count_samples, merge_states, tar

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset as _Base

    _worker_info: Any
    _distributed: Any
else:
    try:
        import torch.distributed as _distributed
        from torch.utils.data import IterableDataset as _Base
        from torch.utils.data import get_worker_info as _worker_info
    except ImportError:
        _distributed = _worker_info = None

        class _Base:
            """Stands in for PyTorch's class where PyTorch is not installed."""

            def __class_getitem__(cls, _item):
                return cls


Sample = TypeVar("Sample")

@contextmanager
def _from_worker() -> Iterator[None]:
    try:
        yield
    except MillstreamError as error:
        if _worker_info is not None and _worker_info() is not None:
            error._travel_as_text()
        raise


__all__ = ["ShardDataset", "State", "count_samples", "merge_states", "tar"]


class ShardDataset(ShardStream[Sample], _Base[Sample]):  # type: ignore[misc,unused-ignore]
    """The samples of a dataset for PyTorch's data loaders; the arguments are those of `millstream.stream.ShardStream`.

    Rank and world size are those of `torch.distributed` where it is initialised, else of `RANK` and `WORLD_SIZE`.
    Workers may be forked, spawned, or come from a fork server. With `batch_size` equal to the data loader's, batches
    come in the canonical order, whatever the number of workers.

    With `StatefulDataLoader` positions are saved and loaded by the loader. To go on with other numbers of ranks or
    workers: `data.load_state_dict(merge_states(loader_state))` before the loader is made.

    What a worker raises, the training process gets with its fields (`error.shard`, `error.expected` and so on).
    """

    def __iter__(self) -> Iterator[Sample]:
        with _from_worker():
            return super().__iter__()

    def _samples_of(self, share: Share) -> Iterator[Sample]:
        with _from_worker():
            yield from super()._samples_of(share)

    def _place(self) -> Place:
        place = super()._place()
        info = _worker_info() if _worker_info is not None else None
        return place if info is None else place._replace(workers=info.num_workers, worker=info.id)

    def _rank_and_world(self) -> tuple[int, int]:
        if self._given is None and _distributed is not None:
            if _distributed.is_available() and _distributed.is_initialized():
                return _distributed.get_rank(), _distributed.get_world_size()
        return super()._rank_and_world()

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group: it is told here which rank it works for.
        state = self.__dict__.copy()
        state["_given"] = self._rank_and_world()
        return state
