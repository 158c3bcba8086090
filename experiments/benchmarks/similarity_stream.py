"""Moments of a stream of datapoints that is made on the fly and never held.

`similarity_memory` runs it in a process of its own. The same stream is summed by NumPy
in float32 and float64; the latter is the truth that errors are measured from.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

import svcca_jax as sv
from experiments.benchmarks.report import (
    peak_memory,
    report,
    summarize,
    timed,
)
from experiments.benchmarks.timing import interleave

Sums = tuple[int, Float[np.ndarray, " neurons"], Float[np.ndarray, "neurons neurons"]]


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Moments of two layers over a stream of datapoints."""

    datapoints: int = 10_000_000
    """How many in all."""
    batch: int = 10_000
    """How many at a time; must divide `datapoints`."""
    widths: tuple[int, int] = (256, 64)
    """Neurons of the two layers."""
    rounds: int = 1
    """How often all of it is timed."""

    def __post_init__(self) -> None:
        if self.datapoints % self.batch:
            raise ValueError(
                f"batches of {self.batch} do not divide {self.datapoints} datapoints"
            )


def stream(settings: Streaming) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of both layers: a few random blocks, scaled and shifted anew each time.

    Making them costs little beside what is measured, and each array is a new one: JAX
    may still be reading the last.
    """
    rng = np.random.default_rng(0)
    total = sum(settings.widths)
    mixing = rng.standard_normal((32, total)) / np.sqrt(32)
    blocks = []
    for _ in range(4):
        latent = rng.standard_normal((settings.batch, 32))
        noise = 0.5 * rng.standard_normal((settings.batch, total))
        block = (latent @ mixing + noise).astype(np.float32)
        blocks.append(
            [np.ascontiguousarray(x) for x in np.split(block, settings.widths[:1], 1)]
        )
    for number in range(settings.datapoints // settings.batch):
        rng = np.random.default_rng([1, number])
        layers = []
        for x in blocks[number % len(blocks)]:
            scale = rng.uniform(0.8, 1.2, x.shape[1]).astype(np.float32)
            batch = x * scale
            batch += rng.normal(3, 0.3, x.shape[1]).astype(np.float32)
            layers.append(batch)
        yield layers[0], layers[1]


def numpy_sums(settings: Streaming, dtype: type[np.floating]) -> Sums:
    """Plain sums of the joint layer's products, about the first datapoint."""
    total = sum(settings.widths)
    sums, products = np.zeros(total, dtype), np.zeros((total, total), dtype)
    shift = np.concatenate(next(stream(settings)), axis=1, dtype=dtype)[0]
    for layers in stream(settings):
        joint = np.concatenate(layers, axis=1, dtype=dtype) - shift
        sums += joint.sum(axis=0)
        products += joint.T @ joint
    return settings.datapoints, sums, products


def _covariance(sums: Sums) -> np.ndarray:
    number, total, products = (np.asarray(part, np.float64) for part in sums)
    return (products - np.outer(total, total) / number) / (number - 1)


def _joint_covariance(moments: sv.Moments) -> np.ndarray:
    blocks = [[np.asarray(moments.comoment(i, j)) for j in (0, 1)] for i in (0, 1)]
    return np.block(blocks).astype(np.float64) / (int(moments.datapoints) - 1)


def measure_streaming(settings: Streaming) -> dict[str, Any]:
    """Times the moments of the stream and checks what is computed from them."""
    few = dataclasses.replace(settings, datapoints=settings.batch)
    _, first_call = timed(lambda: sv.accumulate(stream(few)))
    at_start = peak_memory()
    found: dict[str, Any] = {}
    peaks: dict[str, int] = {}

    def watched() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batches = settings.datapoints // settings.batch
        for number, layers in enumerate(stream(settings)):
            if number == batches // 10:
                peaks.setdefault("tenth", peak_memory())
            if number % max(1, batches // 4) == 0:
                report(f"batch {number} of {batches}")
            yield layers

    def ours() -> None:
        moments = sv.accumulate(watched())
        moments.comoment(0, 0).block_until_ready()
        found["ours"] = moments
        peaks.setdefault("all", peak_memory())

    def sums_of(dtype: type[np.floating]) -> Callable[[], None]:
        def case() -> None:
            found[dtype.__name__] = numpy_sums(settings, dtype)
            report(f"sums in {dtype.__name__}")

        return case

    def generate() -> None:
        for _ in stream(settings):
            pass

    times = interleave(
        {
            # Ours comes first: the peak of memory is that of no other.
            ("moments", "ours"): ours,
            ("moments", "numpy_float32"): sums_of(np.float32),
            ("moments", "numpy_float64"): sums_of(np.float64),
            ("generation", "numpy"): generate,
        },
        repeats=settings.rounds,
        warm_up=0,
    )
    moments = found["ours"]
    return {
        **dataclasses.asdict(settings),
        "input_bytes": 4 * settings.datapoints * sum(settings.widths),
        "memory_at_start_bytes": at_start,
        "peak_memory_after_a_tenth_bytes": peaks["tenth"],
        "peak_memory_bytes": peaks["all"],
        "first_call_seconds": {"moments": {"ours": first_call}},
        "error": streaming_errors(
            settings,
            moments,
            single=_covariance(found["float32"]),
            truth=_covariance(found["float64"]),
        ),
        "directions": int(sv.cca_from_moments(moments).num_coefficients),
        **summarize(times),
    }


def streaming_errors(
    settings: Streaming, moments: sv.Moments, *, single: np.ndarray, truth: np.ndarray
) -> dict[str, dict[str, float]]:
    """Largest errors against the covariance of float64 sums.

    `covariance` is relative to the standard deviations of the two neurons; `cca` (the
    coefficients) and `cka` are absolute.
    """
    deviation = np.sqrt(np.diag(truth))
    scale = np.outer(deviation, deviation)

    def largest(a: np.ndarray, b: Any) -> float:
        return float(np.abs(a - b).max())

    width = settings.widths[0]
    blocks = truth[:width, :width], truth[width:, width:], truth[:width, width:]
    roots = [np.linalg.cholesky(block) for block in blocks[:2]]
    half = np.linalg.solve(roots[0], blocks[2])
    exact = np.linalg.svd(np.linalg.solve(roots[1], half.T), compute_uv=False)
    norms = [np.linalg.norm(block) for block in blocks]
    cka = float(norms[2] ** 2 / (norms[0] * norms[1]))
    coefficients = np.asarray(sv.cca_from_moments(moments).coefficients)
    return {
        "covariance": {
            "ours": largest(_joint_covariance(moments) / scale, truth / scale),
            "numpy_float32": largest(single / scale, truth / scale),
        },
        "cca": {"ours": largest(coefficients, exact)},
        "cka": {"ours": abs(float(sv.linear_cka_from_moments(moments).value) - cka)},
    }
