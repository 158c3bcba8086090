"""What the account of operations costs: a forward pass with it, and without.

    python -m experiments.account_cost
    python -m experiments.account_cost --variants T L --small

times what a batch costs on one device, until its logits are on the host: a jitted
forward pass of a network; the same with every operation counted, and the counts of the
batch added up on the host, as in `e3dsnn energy` (`operations`); and the pass on binary
spikes (`spike_driven`), in turns. Logits alone leave each program. Weights are random,
of a size with which every layer fires. The last line of stdout is a JSON object: for
each network the milliseconds, and the ratios to the plain pass round by round, of time
and of CPU time (which others on the machine disturb less), medians and quartiles, with
the load of the machine before and after. An account that takes more than `limit` times
as long as the plain pass is an error, unless the machine was `busy`.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from e3dsnn_jax.backbone import VARIANTS
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.cli import report_errors
from e3dsnn_jax.layer_shapes import describe_layers
from e3dsnn_jax.operations import LayerTotals, add_counts, count_operations
from e3dsnn_jax.pyramid import build_pyramid
from e3dsnn_jax.spike_driven import run_binary
from e3dsnn_jax.training.config import Variant
from e3dsnn_jax.voxels import join_clouds, pad_features
from experiments.benchmarks.clouds import surface_clouds
from experiments.benchmarks.timing import (
    describe_machine,
    interleave,
    is_busy,
    ratio,
    spread,
)
from experiments.random_variables import random_variables

NUM_CLASSES = 40
LIMIT = 1.5
"""Times that a pass with its account may take as long as one without."""


@dataclasses.dataclass(frozen=True)
class AccountCost:
    """Times forward passes with and without the account."""

    variants: tuple[Variant, ...] = ("T", "L")
    """Networks."""
    clouds: int = 16
    """Clouds of the batch."""
    voxels: int = 2048
    """Voxels of each cloud."""
    voxel_size: float = 0.05
    """Edge of a voxel."""
    repeats: int = 20
    """Rounds that are timed."""
    small: bool = False
    """Sizes that take seconds, to see that everything runs."""


def measure(config: AccountCost, variant: Variant) -> dict[str, Any]:
    """Times one network; ratios are those to its plain forward pass."""
    clouds = surface_clouds(
        config.clouds, voxels=config.voxels, voxel_size=config.voxel_size
    )
    coords, rows = join_clouds(clouds)
    model = Classifier(VARIANTS[variant], NUM_CLASSES)
    host_levels = build_pyramid(coords, num_levels=model.architecture.num_levels)
    levels = jax.tree.map(jnp.asarray, host_levels)
    features = jnp.asarray(pad_features(rows, rows=len(levels[0].coords)))
    options: dict[str, Any] = {"num_clouds": config.clouds, "train": False}
    rng = np.random.default_rng(0)
    variables = random_variables(model, rng, features, levels, **options)
    inputs = variables, features, levels
    shapes = describe_layers(model, *inputs, **options)
    binary = functools.partial(run_binary, model, **options)
    plain = functools.partial(model.apply, **options)

    def count(*inputs: Any) -> Any:
        outputs, counts = count_operations(model, *inputs, **options)
        return outputs[0], counts

    run_plain = jax.jit(lambda *inputs: plain(*inputs)[0])
    run_account = jax.jit(count)
    run_spikes = jax.jit(lambda *inputs: binary(*inputs)[0])

    def account() -> dict[str, LayerTotals]:
        logits, counts = run_account(*inputs)
        np.asarray(logits)
        return add_counts({}, counts, shapes, host_levels)

    cases = {
        ("forward", "plain"): lambda: np.asarray(run_plain(*inputs)),
        ("forward", "account"): account,
        ("forward", "binary"): lambda: np.asarray(run_spikes(*inputs)),
    }
    times = {
        name: timing
        for (_, name), timing in interleave(cases, repeats=config.repeats).items()
    }
    return {
        "variant": variant,
        "voxels": len(coords),
        "milliseconds": {name: spread(timing.wall) for name, timing in times.items()},
        "ratio": {
            name: ratio(timing.wall, times["plain"].wall)
            for name, timing in times.items()
            if name != "plain"
        },
        "cpu_ratio": {
            name: ratio(timing.cpu, times["plain"].cpu)
            for name, timing in times.items()
            if name != "plain"
        },
    }


def run(config: AccountCost) -> None:
    """Measures every network and prints the JSON line.

    Raises:
      ValueError: If an account took longer than the limit on a machine that others
        left alone; `small` sizes are not judged.
    """
    if config.small:
        config = dataclasses.replace(config, clouds=2, voxels=128, repeats=2)
    machine = describe_machine()
    rows = [measure(config, variant) for variant in config.variants]
    after = describe_machine()["load_average"]
    answer = {
        "rows": rows,
        "machine": machine,
        "load_average_after": after,
        "busy": is_busy(machine["load_average"]) or is_busy(after),
        "limit": LIMIT,
    }
    print(json.dumps(answer), flush=True)
    if not config.small:
        judge(rows, busy=answer["busy"])


def judge(rows: list[dict[str, Any]], *, busy: bool) -> None:
    """Holds the account of each network to the limit.

    Args:
      rows: From `measure`.
      busy: Whether others used the machine; then what is over the limit is only told.

    Raises:
      ValueError: If one is over the limit and the machine was not busy.
    """
    over = [
        f"{row['variant']}: {row['ratio']['account']['median']:.2f}"
        for row in rows
        if not row["ratio"]["account"]["median"] <= LIMIT
    ]
    if not over:
        return
    message = f"the account takes over {LIMIT} times a plain pass ({', '.join(over)})"
    if not busy:
        raise ValueError(message)
    print(f"The machine is busy, so that nothing follows: {message}.", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Reads the options from the command line and times the passes."""
    prog = "python -m experiments.account_cost"
    config = tyro.cli(AccountCost, args=arguments, prog=prog)
    return report_errors(lambda: run(config))


if __name__ == "__main__":
    sys.exit(main())
