"""Clouds of a data set in random order, read ahead of whoever uses them."""

from collections.abc import Iterator

import numpy as np

from e3dsnn_jax.data.clouds import PointCloud, ShapeDataset
from e3dsnn_jax.data.read_ahead import read_ahead


def stream_clouds(
    dataset: ShapeDataset,
    *,
    seed: int,
    epochs: int = 1,
    start: int = 0,
    workers: int = 0,
    prefetch: int = 16,
) -> Iterator[PointCloud]:
    """Every cloud once an epoch, each epoch in an order of its own.

    The order follows from the seed alone, whatever the workers.

    Args:
      dataset: The clouds; reading one by its index should be quick, as of records.
      seed: Chooses the orders.
      epochs: How often each cloud comes.
      start: How many clouds to leave out, where a stopped stream goes on.
      workers: Worker processes; 0 reads ahead in threads of this process.
      prefetch: Clouds kept ready.

    Yields:
      The clouds.

    Raises:
      ValueError: If a cloud cannot be read.
    """
    yield from read_ahead(
        _Shuffled(dataset, seed),
        start,
        epochs * len(dataset),
        workers=workers,
        prefetch=prefetch,
    )


class _Shuffled:
    """A place in the stream -> the cloud there. Can be pickled."""

    def __init__(self, dataset: ShapeDataset, seed: int):
        self._dataset, self._seed = dataset, seed
        # One attribute, so that threads never see the order of another epoch.
        self._order = (-1, np.zeros(0, np.int64))

    def __call__(self, place: int) -> PointCloud:
        epoch, within = divmod(place, len(self._dataset))
        known, order = self._order
        if epoch != known:
            rng = np.random.default_rng((self._seed, epoch))
            order = rng.permutation(len(self._dataset))
            self._order = (epoch, order)
        return self._dataset[order[within]]
