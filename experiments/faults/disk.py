"""Writes that fail for want of room, and the same writes once there is room again.

The system's limit on the size of a file stands in for a full disk: it needs no rights,
holds for libraries in C too, and fails in the middle of a write as a full disk does.
"""

import contextlib
import io
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from e3dsnn_jax.data.cache import CloudSource, cached
from e3dsnn_jax.data.modelnet import read_shape
from e3dsnn_jax.interop import read_weights, write_weights
from experiments.faults.formats import fingerprint
from experiments.faults.outcomes import (
    BAD_MESSAGE,
    CRASH,
    HANG,
    LOST,
    REFUSED,
    SAME,
    WRONG,
    Campaign,
    describe_error,
    judge_error,
)
from experiments.faults.processes import (
    compare_results,
    finish,
    limit_file_size,
    result_of,
    start_process,
    tiny_config,
)
from experiments.faults.run_formats import random_variables
from experiments.smoke import write_shards

LIMITS = (0, 130, 400, 1300, 2000, 3000, 3700, 6000, 13000, 35000)
"""Bytes beyond which a file cannot grow, from nothing to more than most files need."""
_PATIENCE = 60.0


def run_disk(
    folder: Path, *, limits: tuple[int, ...] = LIMITS, trainings: bool = True
) -> Campaign:
    """Writes caches, weights and training runs under each limit, then without it.

    Args:
      folder: Where everything is written.
      limits: Bytes beyond which a file cannot grow.
      trainings: Whether to try training runs too, ten seconds each.

    Returns:
      For each thing that is written, how often each outcome came up.
    """
    campaign = Campaign()
    for kind in _WRITERS:
        for limit in limits:
            place = folder / f"{kind.replace(' ', '_')}_{limit}"
            process, answers = start_process(_write_limited, kind, place, limit)
            if answers.poll(_PATIENCE):
                outcome, message = answers.recv()
            else:
                outcome, message = HANG, ""
            process.kill()
            campaign.add(
                kind, outcome, fault=f"a limit of {limit} bytes", message=message
            )
    if trainings:
        _run_trainings(campaign, folder, limits)
    return campaign


def _write_limited(answers: Connection, kind: str, place: Path, limit: int) -> None:
    place.mkdir(parents=True)
    try:
        answers.send(_WRITERS[kind](place, limit))
    except Exception as error:
        answers.send((CRASH, describe_error(error)))


def _write_weights(name: str, place: Path, limit: int) -> tuple[str, str]:
    """Replaces a weights file by another one."""
    path = place / name
    old, new = random_variables(0), random_variables(1)
    write_weights(old, path)
    outcome, message = SAME, ""
    limit_file_size(limit)
    try:
        write_weights(new, path)
    except Exception as error:
        outcome, message = judge_error(error, path.name)
    limit_file_size(-1)
    if os.listdir(place) != [name]:
        return LOST, f"{sorted(os.listdir(place))} are there"
    expected = new if outcome == SAME else old
    if fingerprint(read_weights(path)) != fingerprint(expected):
        return WRONG, "the file holds something else"
    write_weights(new, path)
    if fingerprint(read_weights(path)) != fingerprint(new):
        return LOST, "the file cannot be written any more"
    return outcome, message


def _write_cache(place: Path, limit: int) -> tuple[str, str]:
    """Opens a data set whose cache may find no room."""
    os.environ["XDG_CACHE_HOME"] = str(place / "user")
    root = place / "data"
    root.mkdir()
    for number in range(3):
        points = np.random.default_rng(number).standard_normal((20, 3))
        np.savetxt(root / f"{number}.txt", points)
    files = tuple(sorted(root.iterdir()))
    source = CloudSource(root, "disk", ("a", "b"), files, (0, 1, 0), read_shape)
    expected = [
        read_shape(file, label) for file, label in zip(files, (0, 1, 0), strict=True)
    ]
    told = io.StringIO()
    limit_file_size(limit)
    with contextlib.redirect_stderr(told):
        clouds = cached(source)
    found = [[clouds[index]] for index in range(len(clouds))]
    limit_file_size(-1)
    if fingerprint(found) != fingerprint(expected):
        return WRONG, "other clouds"
    again = cached(source)
    if fingerprint([[again[index]] for index in range(3)]) != fingerprint(expected):
        return WRONG, "other clouds after room was made"
    if len(list(root.glob(".e3dsnn_cache/*"))) != 3:
        return LOST, "no cache after room was made"
    if not told.getvalue():
        return SAME, ""
    return (REFUSED if str(root) in told.getvalue() else BAD_MESSAGE), told.getvalue()


_WRITERS: dict[str, Callable[[Path, int], tuple[str, str]]] = {
    "cache": _write_cache,
    "npz weights": lambda place, limit: _write_weights("w.npz", place, limit),
    "pth weights": lambda place, limit: _write_weights("w.pth", place, limit),
}


def _run_trainings(campaign: Campaign, folder: Path, limits: tuple[int, ...]) -> None:
    data, compiled = write_shards(folder / "data"), folder / "compilations"
    whole = tiny_config(folder / "whole", data, epochs=2)
    problem = finish(whole, compiled)
    if problem is not None:
        campaign.add("training run", CRASH, fault="no limit", message=problem[1])
        return
    expected = result_of(whole.run)
    for limit in limits:
        config = tiny_config(folder / f"run_{limit}", data, epochs=2)
        fault = f"a limit of {limit} bytes"
        outcome, message = finish(config, compiled, limit) or (SAME, "")
        campaign.add("training run", outcome, fault=fault, message=message)
        problem = finish(config, compiled)
        outcome, message = problem or compare_results(config.run, expected)
        campaign.add(
            "the same run, with room again", outcome, fault=fault, message=message
        )
