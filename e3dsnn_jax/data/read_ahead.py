"""Reading ahead: items are made by threads or processes before they are asked for."""

import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
from absl import flags

from e3dsnn_jax.orphans import end_with_parent

Item = TypeVar("Item")


def read_ahead(
    make: Callable[[int], Item],
    start: int,
    stop: int,
    *,
    workers: int = 0,
    prefetch: int = 4,
) -> Iterator[Item]:
    """Items `start` to `stop` - 1 in order, made ahead by grain.

    Args:
      make: Makes an item from its number; can be pickled if there are workers.
      start: Number of the first item.
      stop: Number after that of the last one.
      workers: Worker processes; 0 makes items in threads of this process.
      prefetch: Items kept ready.

    Yields:
      Each item once, whatever the number of workers.
    """
    threads = grain.ReadOptions(
        num_threads=1 if workers else 2, prefetch_buffer_size=max(prefetch, 1)
    )
    items = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(threads)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=-(-max(prefetch, 1) // workers)
        )
        items = items.mp_prefetch(options, worker_init_fn=_belong_to_the_parent)
    yield from items


def _belong_to_the_parent(worker: int, num_workers: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent ends its workers."""
    del worker, num_workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
