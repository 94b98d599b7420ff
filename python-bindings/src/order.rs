//! The order of samples and the shares of readers, as Python classes over the pure core.

use std::sync::Arc;

use millstream_loader_core::order::{Order as CoreOrder, SampleAt};
use millstream_loader_core::share::{Consumed, Left, Reader, per_rank};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

/// The canonical order of one epoch.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Order(Arc<CoreOrder>);

#[pymethods]
impl Order {
    #[new]
    #[pyo3(signature = (counts, lanes, seed, epoch))]
    fn new(py: Python<'_>, counts: Vec<u64>, lanes: u32, seed: Option<u64>, epoch: u64) -> Order {
        Order(Arc::new(py.detach(|| CoreOrder::new(&counts, lanes, seed, epoch))))
    }

    fn __len__(&self) -> usize {
        self.0.len() as usize
    }

    /// Shard and sample number at a position.
    fn at(&self, position: u64) -> PyResult<(u32, u64)> {
        if position >= self.0.len() {
            return Err(PyIndexError::new_err(format!("position {position} of {}", self.0.len())));
        }
        let SampleAt { shard, index } = self.0.at(position);
        Ok((shard, index))
    }
}

/// One reader's share of what is left of an order.
#[pyclass(frozen, module = "millstream._millstream")]
pub(crate) struct Share {
    order: Arc<CoreOrder>,
    left: Left,
    reader: Reader,
    count: u64,
    rank_count: u64,
}

#[pymethods]
impl Share {
    #[new]
    #[pyo3(signature = (order, prefix, extras, world, rank, workers, worker, batch, repeat))]
    #[allow(clippy::too_many_arguments)] // called from one place, by keyword
    fn new(
        order: &Order,
        prefix: u64,
        extras: Vec<u64>,
        world: u64,
        rank: u64,
        workers: u64,
        worker: u64,
        batch: u64,
        repeat: bool,
    ) -> PyResult<Share> {
        let reader = self::reader(world, rank, workers, worker, batch)?;
        let left = Left::new(order.0.len(), prefix, extras);
        let rank_count = if left.remaining() == 0 { 0 } else { per_rank(left.remaining(), world, repeat) };
        let count = reader.count(rank_count);
        Ok(Share { order: order.0.clone(), left, reader, count, rank_count })
    }

    /// What is left, as (prefix, extras), after readers (world, rank, workers, worker, batch) took so many samples.
    #[staticmethod]
    #[pyo3(signature = (len, prefix, extras, readers))]
    #[allow(clippy::type_complexity)] // a tuple per reader, as Python hands it over
    fn after(
        len: u64,
        prefix: u64,
        extras: Vec<u64>,
        readers: Vec<(u64, u64, u64, u64, u64, u64)>,
    ) -> PyResult<(u64, Vec<u64>)> {
        let readers: Vec<(Reader, u64)> = readers
            .into_iter()
            .map(|(world, rank, workers, worker, batch, count)| {
                Ok((self::reader(world, rank, workers, worker, batch)?, count))
            })
            .collect::<PyResult<_>>()?;
        Ok(Share::consumed(&Left::new(len, prefix, extras), &readers))
    }

    /// Samples of this reader.
    fn __len__(&self) -> usize {
        self.count as usize
    }

    /// Samples of this reader's rank: the same for every rank.
    #[getter]
    fn rank_count(&self) -> u64 {
        self.rank_count
    }

    /// Samples `first` to `first + n` of this reader: (shard, sample number) each.
    fn take(&self, first: u64, n: u64) -> Vec<(u32, u64)> {
        let end = first.saturating_add(n).min(self.count);
        let at = |c| {
            let SampleAt { shard, index } = self.order.at(self.position(c));
            (shard, index)
        };
        (first..end).map(at).collect()
    }

    /// The next shards, at most `max`, that this reader's rank opens from its `first` sample on.
    fn upcoming(&self, py: Python<'_>, first: u64, max: usize) -> Vec<u32> {
        if first >= self.count {
            return Vec::new();
        }
        // Extras are few and near: the shards are those of the order without them.
        let from =
            self.position(first) / self.reader.world * self.reader.world + self.position(first) % self.reader.world;
        py.detach(|| self.order.upcoming(from, self.reader.world, self.order.len(), max))
    }
}

impl Share {
    /// `repeat` makes the last items of some ranks those of the beginning.
    fn position(&self, c: u64) -> u64 {
        let q = self.reader.item(c) * self.reader.world + self.reader.rank;
        let remaining = self.left.remaining();
        self.left.position(if q < remaining { q } else { q % remaining })
    }

    fn consumed(left: &Left, readers: &[(Reader, u64)]) -> (u64, Vec<u64>) {
        let left = Consumed::of(left, readers);
        (left.prefix(), left.extras().to_vec())
    }
}

fn reader(world: u64, rank: u64, workers: u64, worker: u64, batch: u64) -> PyResult<Reader> {
    Reader::new(world, rank, workers, worker, batch).ok_or_else(|| {
        PyValueError::new_err(format!(
            "rank {rank} of {world}, worker {worker} of {workers}, batches of {batch}: no such reader"
        ))
    })
}
