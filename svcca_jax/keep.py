"""How many singular directions of a layer are kept before two layers are compared.

Three rules are in use under the one name SVCCA: the paper's (`VarianceFraction`), and
two of the published tutorial (`SumFraction`, `FixedCount`). They give different
numbers, so the rule belongs beside every number that is reported.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@runtime_checkable
class Keep(Protocol):
    """A rule: from a layer's singular values to the number of directions kept."""

    def count(
        self, singular_values: Float[Array, " directions"], rank: Int[Array, ""]
    ) -> Int[Array, ""]:
        """Returns how many of the leading directions are kept, at most `rank`."""
        ...


@dataclasses.dataclass(frozen=True)
class AllDirections:
    """Keep every direction of the layer's span: plain CCA."""

    def count(
        self, singular_values: Float[Array, " directions"], rank: Int[Array, ""]
    ) -> Int[Array, ""]:
        """Returns `rank`."""
        del singular_values
        return rank


@dataclasses.dataclass(frozen=True)
class VarianceFraction:
    r"""The smallest k with :math:`\sum_{i\le k} s_i^2 \ge f \sum_i s_i^2`.

    Source: SVCCA (NIPS 2017), section 2: directions that explain 99 % of variance.
    """

    fraction: float = 0.99
    """Share of the variance to keep, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def count(
        self, singular_values: Float[Array, " directions"], rank: Int[Array, ""]
    ) -> Int[Array, ""]:
        """Returns the number of leading directions that hold the fraction."""
        largest = singular_values[:1]
        # Squares of huge or tiny activations would leave the range of float32.
        shares = singular_values / jnp.where(largest == 0, 1, largest)
        return _smallest_count(shares**2, self.fraction, rank)


@dataclasses.dataclass(frozen=True)
class SumFraction:
    r"""The smallest k with :math:`\sum_{i\le k} s_i \ge f \sum_i s_i`.

    Source: google/svcca, tutorial 001, the cell on "fraction of variance", which sums
    the singular values themselves; it keeps more directions than the paper's rule.
    """

    fraction: float = 0.99
    """Share of the sum to keep, in (0, 1]."""

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)

    def count(
        self, singular_values: Float[Array, " directions"], rank: Int[Array, ""]
    ) -> Int[Array, ""]:
        """Returns the number of leading directions that hold the fraction."""
        return _smallest_count(singular_values, self.fraction, rank)


@dataclasses.dataclass(frozen=True)
class FixedCount:
    """The first `directions` directions, or all of them where there are fewer.

    Source: google/svcca, tutorial 001, the cell on SVCCA (20 directions).
    """

    directions: int = 20
    """Number of directions to keep, at least 1."""

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError(
                f"at least 1 direction must be kept, got directions={self.directions}"
            )

    def count(
        self, singular_values: Float[Array, " directions"], rank: Int[Array, ""]
    ) -> Int[Array, ""]:
        """Returns the fixed count, at most `rank`."""
        del singular_values
        return jnp.minimum(rank, self.directions)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction to keep must lie in (0, 1], got {fraction}")


def _smallest_count(
    masses: Float[Array, " directions"], fraction: float, rank: Int[Array, ""]
) -> Int[Array, ""]:
    total = jnp.cumsum(masses)
    enough = total >= fraction * total[-1:]
    return jnp.minimum(jnp.argmax(enough) + 1, rank).astype(rank.dtype)
