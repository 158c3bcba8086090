"""Singular vector canonical correlation analysis."""

import dataclasses
import functools

import jax
from jaxtyping import Array, Float, Inexact, Int
from numpy.typing import ArrayLike

from svcca_jax.cca import CCA, correlate, correlate_kept, from_moments
from svcca_jax.checks import as_pair
from svcca_jax.keep import Keep, VarianceFraction
from svcca_jax.linalg import center, count_datapoints
from svcca_jax.measure import Both
from svcca_jax.moments import Moments
from svcca_jax.spectrum import (
    Spectrum,
    find_spectrum,
    find_spectrum_of_covariance,
    overlap,
)

PAPER_RULE = VarianceFraction(0.99)


def svcca(
    x: ArrayLike,
    y: ArrayLike,
    *,
    keep: Keep = PAPER_RULE,
    mask: ArrayLike | None = None,
    fast: bool = False,
) -> CCA:
    """CCA of the leading singular directions of two layers.

    Each layer is first cut to the directions that `keep` names (`rank_x` and `rank_y`
    of the result say how many); the mean is over the smaller of the two numbers.

    Args:
      x: Activations [datapoints, neurons_x]; integers and booleans become floats.
      y: Activations [datapoints, neurons_y] for the same datapoints.
      keep: `VarianceFraction(0.99)` is the paper's rule, `SumFraction(0.99)` and
        `FixedCount(20)` are those of the published tutorial.
      mask: True on the datapoints that count (padding is False).
      fast: Use covariances where that is accurate; `from_covariance_x` and `_y` of the
        result say where it was, `spectrum.find_spectrum` how accurate.

    Raises:
      ValueError: As `cca.cca`.

    Source: SVCCA (NIPS 2017), section 2; google/svcca, tutorial 001.
    """
    first, second, checked = as_pair(x, y, mask)
    return _svcca(first, second, checked, keep=keep, fast=fast)


@functools.partial(jax.jit, static_argnames=("keep", "fast"))
def _svcca(x: Array, y: Array, mask: Array | None, *, keep: Keep, fast: bool) -> CCA:
    datapoints = count_datapoints(x, mask)
    layer_x = find_spectrum(center(x, mask), datapoints, keep=keep, fast=fast)
    layer_y = find_spectrum(center(y, mask), datapoints, keep=keep, fast=fast)
    return correlate(layer_x, layer_y, overlap(layer_x, layer_y))


@functools.partial(jax.jit, static_argnames=("keep",))
def _svcca_from_moments(moments: Moments, *, keep: Keep) -> CCA:
    return correlate(*from_moments(moments, keep))


def svcca_from_moments(
    moments: Moments, x: int = 0, y: int = 1, *, keep: Keep = PAPER_RULE
) -> CCA:
    """SVCCA of layers `x` and `y` of streamed moments."""
    return _svcca_from_moments(moments.select(x, y), keep=keep)


@dataclasses.dataclass(frozen=True)
class MeanSVCCA:
    """Mean SVCCA coefficient, for grids of layers (`pairwise`)."""

    keep: Keep = PAPER_RULE
    """How many directions of each layer are kept."""
    fast: bool = False
    """Use covariances where that is accurate."""
    one_at_a_time: bool = True
    """Spend on each pair only what its kept directions need. Turn it off where pairs
    are vectorised (`pairs_per_block` above 1), which would compute every choice."""

    def prepare(
        self,
        centered: Inexact[Array, "datapoints neurons"],
        datapoints: Int[Array, ""],
    ) -> Spectrum:
        """Decomposes one layer and cuts it."""
        return find_spectrum(centered, datapoints, keep=self.keep, fast=self.fast)

    def prepare_moments(
        self, comoment: Float[Array, "neurons neurons"], datapoints: Int[Array, ""]
    ) -> Spectrum:
        """Decomposes one layer from its covariance and cuts it."""
        return find_spectrum_of_covariance(comoment, datapoints, keep=self.keep)

    def compare(
        self,
        x: Spectrum,
        y: Spectrum,
        cross: Inexact[Array, "coordinates_x coordinates_y"] | None = None,
    ) -> Both:
        """Returns the mean coefficient of two layers, both ways."""
        between = overlap(x, y, cross)
        # Vectorised over pairs, the choice of a width would compute all of them.
        how = correlate_kept if self.one_at_a_time else correlate
        value = how(x, y, between).mean
        return value, value
