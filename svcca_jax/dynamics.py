"""When the layers of a network settle, and whether they do so from the bottom up.

On the host, in NumPy: what comes in is a similarity for each layer and checkpoint, such
as `pairwise.over_checkpoints` returns.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


class BottomUp(NamedTuple):
    """A rank test of the order in which layers settle."""

    correlation: float
    """Kendall's rank correlation of depth and convergence step, averaged over runs: 1
    if in every run every layer settles before those above it, -1 if after them. A pair
    that settles at the same step counts as 0."""
    p_value: float
    """Probability of so high a correlation if all orders of layers were equally likely
    in every run; 1 if all layers tie. Too small where neighbouring layers settle alike:
    see `bottom_up_test`."""
    correlations: tuple[float, ...]
    """The correlation of each run."""


def convergence_steps(
    similarities: ArrayLike, steps: ArrayLike, threshold: float
) -> Float[np.ndarray, " layers"]:
    """First step from which on a layer stays as similar as the threshold.

    A layer that reaches the threshold and falls below it again has not settled. Against
    its own final state a layer is at last equal to itself: "settled at the last step"
    then says nothing but that it did not earlier.

    Args:
      similarities: Similarities [steps, layers] with the end of training, such as
        `over_checkpoints` returns. NaN is below every threshold.
      steps: Training step of each checkpoint, increasing.
      threshold: The least similarity that counts as settled.

    Returns:
      The step for each layer; NaN where the last checkpoint is below the threshold.

    Raises:
      ValueError: For shapes that do not match, no checkpoints or layers, steps that do
        not increase and a threshold that is NaN.
    """
    values = np.asarray(similarities, np.float64)
    at = np.asarray(steps, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"similarities must be [steps, layers] and not empty, got shape "
            f"{values.shape}"
        )
    if at.shape != values.shape[:1]:
        raise ValueError(
            f"similarities have {values.shape[0]} checkpoints but steps have shape "
            f"{at.shape}: give one step for each"
        )
    if not (np.diff(at) > 0).all():
        raise ValueError(f"steps must increase, got {at.tolist()}")
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN: give a similarity such as 0.8")
    # From the end: True while no checkpoint has been below.
    stays = np.logical_and.accumulate((values >= threshold)[::-1], axis=0)[::-1]
    return np.where(stays.any(axis=0), at[stays.argmax(axis=0)], np.nan)


def bottom_up_test(convergence: ArrayLike) -> BottomUp:
    r"""Exact one-sided test of whether lower layers settle before higher ones.

    The statistic is Kendall's: pairs of layers of which the lower settles first, less
    those of which the higher does, summed over the runs. A layer that never settled
    comes after all that did, and ties with the others that never did. Under the null
    hypothesis every order of the layers' steps is equally likely, in each run by
    itself; ties stay as they are. Its distribution is computed, not approximated: the
    discordant pairs of a run with ties follow a Gaussian multinomial coefficient, and
    the runs are independent.

    The layers are treated as independent: any order is as likely as any other.
    Neighbouring layers of a network are not, they settle at about the same time, and
    then orders that rise or fall with depth are more likely than the null hypothesis
    has it. For such layers the p-value is too small: of nine layers whose steps follow
    a random walk along depth, with no direction, 25 % come out at p <= 0.05 in one run
    and 20 % in three (`tests/test_dynamics.py`). So a low p alone proves nothing. The
    runs are independent of one another: whether their correlations agree needs no
    assumption about layers.

    It speaks about the networks that the runs are draws of: a low value says that their
    order follows depth more than chance would, not why, nor that other networks' does.

    Args:
      convergence: Convergence steps [runs, layers] with layers from the bottom up, such
        as rows of `convergence_steps`; NaN where a layer never settled.

    Raises:
      ValueError: For another rank, no runs, and fewer than 2 layers.

    Source: Kendall, A new measure of rank correlation (1938); the finding tested is
      that of SVCCA (NIPS 2017), section 4.1.
    """
    settled = np.asarray(convergence, np.float64)
    if settled.ndim != 2 or settled.shape[0] < 1 or settled.shape[1] < 2:
        raise ValueError(
            "convergence must be [runs, layers] with at least 1 run and 2 layers, got "
            f"shape {settled.shape}"
        )
    settled = np.where(np.isnan(settled), np.inf, settled)
    layers = settled.shape[1]
    pairs = layers * (layers - 1) // 2
    discordant, scores = 0, []
    chances = np.ones(1)
    for run in settled:
        lower, higher = (run[index] for index in np.triu_indices(layers, 1))
        falls = int((lower > higher).sum())
        scores.append(int((lower < higher).sum()) - falls)
        discordant += falls
        _, ties = np.unique(run, return_counts=True)
        chances = np.convolve(chances, _chances_of_discordant(ties.tolist()))
    # Few discordant pairs are a high correlation.
    p_value = float(min(1.0, chances[: discordant + 1].sum()))
    correlations = tuple(score / pairs for score in scores)
    return BottomUp(sum(scores) / (pairs * len(settled)), p_value, correlations)


def _chances_of_discordant(ties: list[int]) -> Float[np.ndarray, " counts"]:
    """Probability of each number of discordant pairs in a random order.

    Args:
      ties: How many layers share each step.
    """
    chances = np.ones(1)
    below = 0
    for group in ties:
        below += group
        chances = np.convolve(chances, _chances_between(group, below - group))
    return chances


def _chances_between(first: int, second: int) -> Float[np.ndarray, " counts"]:
    """Chances of each number of discordant pairs between two groups of ties.

    The last of the merged order is one of the first group with probability
    first / (first + second): it is then discordant with none, else with all of them.
    """
    row = [np.ones(1) for _ in range(second + 1)]
    for a in range(1, first + 1):
        for b in range(1, second + 1):
            chances = np.zeros(a * b + 1)
            chances[: len(row[b])] += a / (a + b) * row[b]
            chances[a:] += b / (a + b) * row[b - 1]
            row[b] = chances
    return row[second]
