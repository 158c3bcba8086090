"""Freeze training: the blocks of a network are frozen from below, while it trains.

Layers converge from the input upwards, so that those that have converged need no
gradient any more. A frozen block keeps its parameters, its BatchNorm statistics (which
normalise it from then on) and its share of the optimizer's state; the backward pass
ends above it. Blocks are frozen in groups, so that few programs are compiled: for each
group that is frozen, one train step more for every shape of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict


@dataclass(frozen=True)
class LinearFreeze:
    """Groups of blocks are frozen from below, at evenly spaced steps.

    Source: the linear regime of freeze training, SVCCA (NIPS 2017), section 4.1.
    """

    start: float = 0.25
    """Part of the run after which the lowest group is frozen."""
    end: float = 1.0
    """Part of the run after which the highest group is frozen; at 1 it never is."""
    groups: int = 4
    """Groups that the blocks are divided into."""


@dataclass(frozen=True)
class GuidedFreeze:
    """A group of blocks is frozen when what it computes has settled.

    Every few steps the outputs of each block, on clouds of the training split that stay
    the same, are compared with those of the look before by SVCCA. A block has settled
    once the similarity was above the threshold several times in a row; a group is
    frozen when all of its blocks have, and those below it are frozen. Then counting
    starts anew: what is above had changed with what was below.
    """

    threshold: float = 0.9
    """Mean SVCCA coefficient above which a block counts as unchanged, below 1."""
    patience: int = 2
    """How many times in a row it must be above."""
    every: int = 25
    """Steps between looks."""
    start: float = 0.1
    """Part of the run before the first look: while the learning rate warms up, little
    changes though nothing has settled."""
    groups: int = 4
    """Groups that the blocks are divided into."""
    clouds: int = 160
    """Training clouds, not augmented, that are looked at."""


Freeze = LinearFreeze | GuidedFreeze


class Frozen(NamedTuple):
    """How far freezing has come."""

    blocks: int = 0
    """Blocks that are frozen, counted from the input."""
    streaks: tuple[int, ...] = ()
    """For each block, at how many looks in a row it was above the threshold; empty
    without a guide."""


def check_freeze(freeze: Freeze, *, blocks: int) -> None:
    """Refuses values that no run could use.

    Args:
      freeze: The options.
      blocks: Blocks of the network.

    Raises:
      ValueError: Names the field, its value and what is expected.
    """
    if not 1 <= freeze.groups <= blocks:
        raise ValueError(
            f"recipe.freeze.groups must lie in 1..{blocks}, the blocks of the network, "
            f"got {freeze.groups}"
        )
    match freeze:
        case LinearFreeze():
            if not 0 < freeze.start <= freeze.end <= 1:
                raise ValueError(
                    "recipe.freeze needs 0 < start <= end <= 1, as parts of the run, "
                    f"got start={freeze.start} and end={freeze.end}"
                )
        case GuidedFreeze():
            if not 0 < freeze.threshold < 1:
                raise ValueError(
                    "recipe.freeze.threshold must lie between 0 and 1, got "
                    f"{freeze.threshold}"
                )
            if not 0 <= freeze.start < 1:
                raise ValueError(
                    f"recipe.freeze.start must lie in [0, 1), got {freeze.start}"
                )
            for name in ("patience", "every", "clouds"):
                if getattr(freeze, name) < 1:
                    raise ValueError(
                        f"recipe.freeze.{name} must be at least 1, got "
                        f"{getattr(freeze, name)}"
                    )


def group_ends(blocks: int, groups: int) -> tuple[int, ...]:
    """Blocks up to the end of each group: as equal groups as there can be.

    >>> group_ends(9, 4)
    (2, 4, 6, 9)
    """
    return tuple((group + 1) * blocks // groups for group in range(groups))


def frozen_at(freeze: LinearFreeze, step: int, *, total: int, blocks: int) -> int:
    """Number of blocks that are frozen in the update after `step`.

    Args:
      freeze: The schedule.
      step: Updates done.
      total: Updates of the run.
      blocks: Blocks of the network.
    """
    reached = 0
    for group, end in enumerate(group_ends(blocks, freeze.groups)):
        along = group / max(freeze.groups - 1, 1)
        part = freeze.start + (freeze.end - freeze.start) * along
        if step >= max(round(part * total), 1):
            reached = end
    return reached


def first_look(freeze: GuidedFreeze, *, total: int) -> int:
    """Step of the guide's first look, which it compares nothing with."""
    return max(-(-round(freeze.start * total) // freeze.every), 1) * freeze.every


def is_look(freeze: GuidedFreeze, step: int, *, total: int) -> bool:
    """Whether the guide looks after update `step`; not when nothing comes after it."""
    return first_look(freeze, total=total) <= step < total and not step % freeze.every


def settle(
    freeze: GuidedFreeze, frozen: Frozen, similarities: Sequence[float]
) -> Frozen:
    """What is frozen after a look.

    Args:
      freeze: The options.
      frozen: What was before.
      similarities: Of each block with itself at the look before. NaN is not similar.
    """
    streaks = frozen.streaks or (0,) * len(similarities)
    streaks = tuple(
        streak + 1 if similarity > freeze.threshold else 0
        for streak, similarity in zip(streaks, similarities, strict=True)
    )
    ends = group_ends(len(streaks), freeze.groups)
    following = [end for end in ends if end > frozen.blocks]
    if not following:
        return Frozen(frozen.blocks, streaks)
    if min(streaks[frozen.blocks : following[0]]) < freeze.patience:
        return Frozen(frozen.blocks, streaks)
    return Frozen(following[0], (0,) * len(streaks))


def numbers_of_frozen_blocks(freeze: Freeze | None, *, blocks: int) -> tuple[int, ...]:
    """Every number of frozen blocks that a run can come to: a train step for each."""
    return (0,) if freeze is None else (0, *group_ends(blocks, freeze.groups))


class Parts(NamedTuple):
    """A tree of variables in two, each nested as the whole was."""

    fixed: dict[str, Any]
    trained: dict[str, Any]


def part_frozen(tree: dict[str, Any], frozen: Sequence[str]) -> Parts:
    """Takes the variables of frozen blocks apart from the others.

    Args:
      tree: Parameters, or anything nested like them.
      frozen: Names of the blocks, from `Architecture.block_names`.
    """
    if not frozen:
        return Parts({}, tree)
    blocks = tuple(f"backbone/{name}/" for name in frozen)
    fixed, trained = {}, {}
    for path, leaf in flatten_dict(tree).items():
        part = fixed if "/".join(path).startswith(blocks) else trained
        part[path] = leaf
    return Parts(unflatten_dict(fixed), unflatten_dict(trained))


def join_parts(parts: Parts) -> dict[str, Any]:
    """The tree that `part_frozen` took apart."""
    if not parts.fixed:
        return parts.trained
    return unflatten_dict(flatten_dict(parts.fixed) | flatten_dict(parts.trained))


def update_trained(
    optimizer: optax.GradientTransformation,
    gradient: dict[str, Any],
    opt_state: optax.OptState,
    params: dict[str, Any],
    frozen: Sequence[str],
) -> tuple[dict[str, Any], optax.OptState]:
    """One update of the parameters that are trained.

    Frozen ones stay as they are, and so does whatever the optimizer keeps for each of
    them; its counts of updates go on.

    Args:
      optimizer: The transformation.
      gradient: By the trained parameters alone.
      opt_state: State for all parameters.
      params: All parameters.
      frozen: Names of the frozen blocks.

    Returns:
      All parameters and the whole state after the update.
    """
    whole = jax.tree.structure(params)
    # What the optimizer keeps for each parameter it keeps in trees of their structure.
    is_whole = lambda node: jax.tree.structure(node) == whole

    def trained_of(node: Any) -> Any:
        return part_frozen(node, frozen).trained if is_whole(node) else node

    def put_back(old: Any, new: Any) -> Any:
        return (
            join_parts(Parts(part_frozen(old, frozen).fixed, new))
            if is_whole(old)
            else new
        )

    fixed, trained = part_frozen(params, frozen)
    state = jax.tree.map(trained_of, opt_state, is_leaf=is_whole)
    updates, state = optimizer.update(gradient, state, trained)
    applied: Any = optax.apply_updates(trained, updates)
    opt_state = jax.tree.map(put_back, opt_state, state, is_leaf=is_whole)
    return join_parts(Parts(fixed, applied)), opt_state
