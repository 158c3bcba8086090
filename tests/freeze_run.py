"""A tiny run whose freezing is guided: one process of it.

`python tests/freeze_run.py RUN DATA 0 CACHE DEVICES`, as `tiny_run.py` is started.
"""

import dataclasses
import sys
from pathlib import Path

import jax
from tiny_run import tiny_config, use_compilation_cache

from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.config import TrainConfig
from e3dsnn_jax.training.freeze import GuidedFreeze

GUIDED = GuidedFreeze(
    threshold=0.05, patience=2, every=1, start=0.0, groups=3, clouds=12
)


def guided_config(folder: Path, *, run: str = "run") -> TrainConfig:
    """A tiny run of a network that is not silent in its first steps."""
    config = tiny_config(folder, run=run, freeze=GUIDED)
    model = dataclasses.replace(config.model, neuron=Neuron(relu=True))
    return dataclasses.replace(config, model=model)


def main() -> None:
    from e3dsnn_jax.training.loop import train

    run, data, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[5])
    use_compilation_cache(Path(sys.argv[4]))
    jax.config.update("jax_disable_most_optimizations", True)
    config = guided_config(data.parent)
    train(dataclasses.replace(config, run=run, devices=devices))


if __name__ == "__main__":
    main()
