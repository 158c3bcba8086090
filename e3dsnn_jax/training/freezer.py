"""Freeze training as a run goes on: what is frozen now, and since when."""

import sys
from pathlib import Path

from tqdm import tqdm

from e3dsnn_jax.training.checkpoints import Position
from e3dsnn_jax.training.freeze import (
    Frozen,
    GuidedFreeze,
    LinearFreeze,
    first_look,
    frozen_at,
    is_look,
)
from e3dsnn_jax.training.freeze_guide import advise
from e3dsnn_jax.training.processes import is_first, say
from e3dsnn_jax.training.run_folder import MetricsLog, read_metrics
from e3dsnn_jax.training.setup import RunSetup
from e3dsnn_jax.training.state import TrainState
from e3dsnn_jax.training.steps import replicate

Freezings = tuple[tuple[int, int], ...]
"""Each step after which more blocks were frozen, and how many were from then on."""


class Freezer:
    """Freezes the blocks of a run when they are due.

    Args:
      setup: The run.
      log: Where each freezing and each look of a guide is noted.
      position: Where the run starts or goes on.
    """

    def __init__(self, setup: RunSetup, log: MetricsLog, position: Position):
        self._setup = setup
        self._log = log
        self.frozen = Frozen(position.frozen_blocks, tuple(position.streaks or ()))

    def place(self, position: Position) -> Position:
        """The position with all that a resumed run must know of freezing."""
        streaks = list(self.frozen.streaks) or None
        return position._replace(frozen_blocks=self.frozen.blocks, streaks=streaks)

    def after(self, state: TrainState, step: int) -> TrainState:
        """Freezes what is due after an update.

        Returns:
          The state, with what a guide has to remember.
        """
        setup, before = self._setup, self.frozen
        total, freeze = setup.total, setup.config.recipe.freeze
        if isinstance(freeze, LinearFreeze) and step < total:
            blocks = len(setup.block_names)
            self.frozen = Frozen(frozen_at(freeze, step, total=total, blocks=blocks))
        elif isinstance(freeze, GuidedFreeze) and is_look(freeze, step, total=total):
            state = self._look(freeze, state, step)
        if self.frozen.blocks > before.blocks:
            self._tell(step)
        return state

    def _look(self, freeze: GuidedFreeze, state: TrainState, step: int) -> TrainState:
        setup = self._setup
        assert setup.guide is not None
        first = step == first_look(freeze, total=setup.total)
        advice = advise(setup.guide, freeze, state, self.frozen, first=first)
        self.frozen = advice.frozen
        if advice.similarities:
            names = setup.block_names
            similarities = zip(names, advice.similarities, strict=True)
            self._log.write("look", step, **dict(similarities))
        return state._replace(last_look=replicate(advice.look, setup.mesh))

    def _tell(self, step: int) -> None:
        blocks, names = self.frozen.blocks, self._setup.block_names
        self._log.write("freeze", step, frozen_blocks=blocks)
        if is_first():
            tqdm.write(
                f"step {step}: {blocks} of {len(names)} blocks are frozen, up to "
                f"{names[blocks - 1]}",
                file=sys.stderr,
            )


def read_freezings(run: Path) -> Freezings:
    """When a run has frozen how much, as it has noted it."""
    lines = [line for line in read_metrics(run) if line["kind"] == "freeze"]
    return tuple((line["step"], line["frozen_blocks"]) for line in lines)


def tell_freezings(freezings: Freezings, setup: RunSetup) -> None:
    """Says at the end of a run what was frozen when, if anything was to be."""
    if setup.config.recipe.freeze is None:
        return
    told = [f"{blocks} blocks from step {step} on" for step, blocks in freezings]
    say(
        f"Frozen of {len(setup.block_names)} blocks in {setup.total} steps: "
        f"{', '.join(told) or 'none'}."
    )
