"""What a similarity must offer to be computed over grids of layers."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

# The similarity of x with y and that of y with x: equal, but for PWCCA at equal widths.
Both = tuple[Float[Array, ""], Float[Array, ""]]


@runtime_checkable
class Measure(Protocol):
    """A similarity in two steps: once for each layer, once for each pair.

    Implementations are frozen dataclasses, so that equal measures share a program:
    `MeanCCA`, `MeanSVCCA`, `MeanPWCCA`, `CKA`, `ProcrustesSimilarity`, `TotalPLS`,
    `MeanFourierCCA`. A prepared layer is a NamedTuple with the field `coordinates`.
    """

    def prepare(self, centered: Any, datapoints: Any) -> Any:
        """Returns what `compare` needs of one layer's centred activations.

        They are 0 on datapoints that do not count; `datapoints` is how many do.
        """
        ...

    def prepare_moments(self, comoment: Any, datapoints: Any) -> Any:
        """Returns what `compare` needs of one layer, from its co-moment."""
        ...

    def compare(self, x: Any, y: Any, cross: Any = None) -> Both:
        """Returns the similarity of two prepared layers, both ways.

        `cross` is the product of their coordinates (of moments: their co-moment),
        where it is known already.
        """
        ...
