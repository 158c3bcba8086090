"""A training run that is killed again and again, and resumed until it is done.

What it leaves in the end must be what a run without a break leaves, bit for bit.
"""

import dataclasses
import time
from pathlib import Path

import numpy as np

from e3dsnn_jax.training.config import TrainConfig
from experiments.faults.outcomes import SAME, Campaign
from experiments.faults.processes import (
    PATIENCE,
    compare_results,
    finish,
    result_of,
    start_process,
    tiny_config,
    train_here,
    wait_for,
)
from experiments.smoke import write_shards

KILLS_PER_RUN = 10
"""Then a run is left to finish, so that its result can be looked at."""

# What a kill waits for: a moment of its own, or new names in the run folder.
_AIMS = {
    "kill at a random moment": None,
    "kill while a checkpoint is written": "checkpoints/*tmp*",
    "kill while the best is written": "best/*tmp*",
    "kill when a checkpoint got its name": "checkpoints/*[0-9]",
}
_FIRST = "kill while the run folder is made"
_FIRST_PATTERN = "*.json*"


def run_kills(folder: Path, *, kills: int, seed: int, epochs: int = 4) -> Campaign:
    """Kills training runs with SIGKILL `kills` times in all, and resumes them.

    Args:
      folder: Where data, compiled programs and runs go.
      kills: How many kills, shared by as many runs as they need.
      seed: Chooses the moments.
      epochs: Length of a run, three updates each.

    Returns:
      For each aim, the outcomes of the runs that its kills belong to.
    """
    campaign = Campaign()
    rng = np.random.default_rng(seed)
    compilations = folder / "compilations"
    config = tiny_config(folder / "whole", write_shards(folder / "data"), epochs=epochs)
    began = time.monotonic()
    problem = finish(config, compilations)
    # About what a run takes that finds its programs compiled.
    seconds = 0.5 * (time.monotonic() - began)
    if problem is not None:
        campaign.add("no kill", problem[0], fault="nothing", message=problem[1])
        return campaign
    expected = result_of(config.run)
    campaign.add("no kill", SAME, fault="nothing")
    number = 0
    while kills > 0 and campaign.ok:
        run = dataclasses.replace(config, run=folder / f"killed_{number}")
        aims, problem = _kill_and_resume(
            run, compilations, rng, kills=min(kills, KILLS_PER_RUN), seconds=seconds
        )
        outcome, message = problem or compare_results(run.run, expected)
        for aim in aims or ["no kill"]:
            campaign.add(aim, outcome, fault=f"run {run.run}", message=message)
        kills -= len(aims)
        number += 1
    return campaign


def _kill_and_resume(
    config: TrainConfig,
    compilations: Path,
    rng: np.random.Generator,
    *,
    kills: int,
    seconds: float,
) -> tuple[list[str], tuple[str, str] | None]:
    """Starts a run until it is done; returns the kills, and what went wrong."""
    aims: list[str] = []
    while True:
        first = not config.run.exists()
        aim = _FIRST if first else str(rng.choice(list(_AIMS)))
        pattern = _FIRST_PATTERN if first else _AIMS[aim]
        deadline = seconds * rng.uniform()
        names_to_pass, pause = rng.integers(5 if first else 2), rng.exponential(0.005)
        before = _names(config.run, pattern)
        process, answers = start_process(train_here, config, compilations)
        if len(aims) == kills:
            return aims, wait_for(process, answers)
        began, new = time.monotonic(), set()
        while process.is_alive() and not answers.poll(0.0003):
            elapsed = time.monotonic() - began
            new |= _names(config.run, pattern) - before
            if len(new) > names_to_pass or (pattern is None and elapsed > deadline):
                time.sleep(pause)
                break
            if elapsed > PATIENCE:
                break
        if answers.poll():  # done, or stopped by an error, ahead of the kill
            return aims, wait_for(process, answers)
        process.kill()
        process.join()
        aims.append(aim)


def _names(run: Path, pattern: str | None) -> set[Path]:
    return set() if pattern is None else set(run.glob(pattern))
