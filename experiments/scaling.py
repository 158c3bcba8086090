"""What a training step should take on 1 to 256 TPU chips, on paper.

    python -m experiments.scaling runs/tpu/programs.json

Reads the programs that `experiments.tpu_compile` wrote, and estimates the time of a
step with a fixed number of clouds a chip (weak scaling). Nothing here is measured: the
assumptions are printed with the numbers.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

# Passes of a bfloat16 product that a float32 product at HIGHEST precision takes: of the
# nine products of three parts each, the three smallest are left out.
FLOAT32_PASSES = 6
# Assumed, not published: one message from a chip to its neighbour.
HOP_SECONDS = 1e-6


class Chip(NamedTuple):
    """Published figures of one chip."""

    name: str
    flops: float
    """Of bfloat16 products, a second."""
    hbm_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second between chips, all links of a chip together."""
    hbm_bytes: int
    cycles: float
    """Clock a second: `flops` over two for each cell of the matrix units."""


# https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB at 819 GB/s, 1600 Gbit/s
# between chips, four matrix units of 128 x 128.
V5E = Chip("v5e", 197e12, 819e9, 1600e9 / 8, 16 * 2**30, 197e12 / (2 * 4 * 128**2))
# https://cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB at 2765 GB/s, 4800 Gbit/s,
# two cores with four matrix units each.
V5P = Chip("v5p", 459e12, 2765e9, 4800e9 / 8, 95 * 2**30, 459e12 / (2 * 8 * 128**2))
CHIPS = {chip.name: chip for chip in (V5E, V5P)}


class Exchange(NamedTuple):
    """One kind of exchange in a training step."""

    kind: str
    times: int
    """How many of these a step has."""
    result_bytes: int
    """Of all their results, on each device."""


def step_exchanges(
    *, parameters: int, norm_channels: Sequence[int], levels: int, devices: int
) -> list[Exchange]:
    """The exchanges of a training step in float32, from the sizes of the network.

    Every BatchNorm gathers (count, mean, squared deviations) of each channel from all
    devices; its derivative sums what every device owes to every other's part. Then the
    gradient and three sums over the clouds are added up, and what the levels needed is
    gathered.

    Args:
      parameters: Trained numbers of the network.
      norm_channels: Channels of each BatchNorm layer.
      levels: Resolutions of the network.
      devices: Devices of the mesh; one alone exchanges nothing.
    """
    if devices == 1:
        return []
    parts = 4 * 3 * sum(norm_channels)
    return [
        Exchange("gather of statistics", len(norm_channels), devices * parts),
        Exchange("sum of their derivatives", len(norm_channels), devices * parts),
        Exchange("sum of the gradient", 1, 4 * parameters + 3 * 4),
        Exchange("gather of needs", 1, devices * levels * 3 * 4),
    ]


def sent_bytes(kind: str, result_bytes: float, devices: int) -> float:
    """Bytes that each device sends in a ring.

    Args:
      kind: "all-reduce", "all-gather", "reduce-scatter", "collective-permute" or
        "all-to-all".
      result_bytes: Bytes of the result on each device.
      devices: Devices in the ring.

    Raises:
      ValueError: On another kind.
    """
    others = (devices - 1) / devices
    factors = {
        "all-reduce": 2 * others,
        "all-gather": others,
        "reduce-scatter": devices - 1,
        "collective-permute": 1,
        "all-to-all": others,
    }
    if kind not in factors:
        raise ValueError(f"kind must be one of {sorted(factors)}, got {kind!r}")
    return factors[kind] * result_bytes


class StepEstimate(NamedTuple):
    """Seconds of a step on each chip."""

    devices: int
    products: float
    """Matrix products at the chip's peak."""
    memory: float
    """Bytes from and to HBM."""
    schedule: float
    """The compiler's estimated cycles, and those of gathers and scatters."""
    exchange: float
    """Exchanges between chips."""

    @property
    def roofline(self) -> float:
        """The longer of products and memory, and then the exchange."""
        return max(self.products, self.memory) + self.exchange

    @property
    def scheduled(self) -> float:
        """The longer of schedule and memory, and then the exchange."""
        return max(self.schedule, self.memory) + self.exchange


def rings(devices: int) -> tuple[int, int]:
    """Sides of the most nearly square grid of so many chips."""
    side = next(n for n in range(math.isqrt(devices), 0, -1) if devices % n == 0)
    return side, devices // side


def estimate_step(
    work: dict[str, float],
    chip: Chip,
    exchanges: Sequence[Exchange],
    devices: int,
) -> StepEstimate:
    """Time of a step on `devices` chips, each with the same work.

    Args:
      work: "flops", "hbm_bytes" and "cycles" of the step on one chip.
      chip: Figures of the chip.
      exchanges: From `step_exchanges`.
      devices: Chips, along the axes of the most nearly square grid.
    """
    hops = sum(side - 1 for side in rings(devices))
    seconds = 0.0
    for exchange in exchanges:
        kind = "all-gather" if exchange.kind.startswith("gather") else "all-reduce"
        passes = 2 if kind == "all-reduce" else 1
        seconds += exchange.times * passes * hops * HOP_SECONDS
        sent = sent_bytes(kind, exchange.result_bytes, devices)
        seconds += sent / chip.link_bandwidth
    return StepEstimate(
        devices,
        FLOAT32_PASSES * work["flops"] / chip.flops,
        work["hbm_bytes"] / chip.hbm_bandwidth,
        work["cycles"] / chip.cycles,
        seconds,
    )


def first_programs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first train step of each network on each kind of chip."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "train":
            first.setdefault((row["variant"], row["topology"].partition(":")[0]), row)
    return list(first.values())


ASSUMPTIONS = f"""Assumptions: each chip holds the same number of clouds; every
product is float32 at HIGHEST precision and takes {FLOAT32_PASSES} bfloat16 passes at
the published peak; a step takes the longer of that (or of the compiler's schedule)
and of HBM traffic at the published rate, and then the exchanges, without overlap;
rings along both axes of the most nearly square grid, 2(N-1)/N of the bytes of a sum
and (N-1)/N of those of a gather over all links of a chip, and
{1e6 * HOP_SECONDS:g} microsecond a hop, which is a guess; batches arrive in time."""

CHIP_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def scale_row(row: dict[str, Any]) -> list[StepEstimate]:
    """Estimates of one compiled train step for every number of chips."""
    chip = CHIPS[row["topology"].partition(":")[0]]
    return [
        estimate_step(
            {
                "flops": row["work"]["flops"],
                "hbm_bytes": row["work"]["hbm_bytes"],
                "cycles": row["scheduled_cycles"],
            },
            chip,
            step_exchanges(
                parameters=row["parameters"],
                norm_channels=row["norm_channels"],
                levels=row["levels"],
                devices=devices,
            ),
            devices,
        )
        for devices in CHIP_COUNTS
    ]


def format_scaling(rows: Sequence[dict[str, Any]]) -> str:
    """Tables in markdown: milliseconds, and efficiency against one chip."""
    lines = [ASSUMPTIONS, ""]
    head = "| program | | " + " | ".join(str(n) for n in CHIP_COUNTS) + " |"
    lines += [head, "|---" * (len(CHIP_COUNTS) + 2) + "|"]
    for row in rows:
        estimates = scale_row(row)
        name = f"{row['variant']}, {row['clouds']} clouds a {row['topology'][:3]} chip"
        for label, times in (
            ("roofline", [step.roofline for step in estimates]),
            ("schedule", [step.scheduled for step in estimates]),
        ):
            cells = [f"{1e3 * t:.2f} ({times[0] / t:.0%})" for t in times]
            lines.append(f"| {name} | {label}, ms | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Config:
    """Estimates weak scaling from compiled programs."""

    programs: tyro.conf.Positional[Path]
    """What `experiments.tpu_compile` wrote."""


def main() -> None:
    """Prints the estimate of the command line."""
    config = tyro.cli(Config)
    rows = json.loads(config.programs.read_text())["programs"]
    print(format_scaling(first_programs(rows)))


if __name__ == "__main__":
    main()
