"""Layers to compare, and what `similarity` times against: NumPy, netrep, anatome.

`published_*` follow the published procedure from its definition, pair by pair: the
covariance of both layers in double precision, pseudo-inverses by SVD, their roots by
eigenvectors, a full SVD of the whitened product. `lapack_*` are floors: the least that
a program without a compiler can do, one decomposition a layer and one product with its
singular values for every unordered pair, by SciPy and in the layers' own precision:
NumPy decomposes float32 in float64, which takes twice as long. They serve for layers
of full rank only; given float64 layers they are the truth that errors are measured
from.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import linalg

Layers = Sequence[Float[np.ndarray, "datapoints _neurons"]]
Grid = Float[np.ndarray, "layers layers"]
Route = Literal["svd", "gram", "numpy"]

PAPER_FRACTION = 0.99


def make_layers(
    widths: Sequence[int], *, datapoints: int, decay: float = 1.0, seed: int = 0
) -> list[Float[np.ndarray, "datapoints _neurons"]]:
    """Rectified activations of layers that share some of what they represent.

    Args:
      widths: Neurons of each layer.
      datapoints: Rows of every layer.
      decay: Latent i has standard deviation (i + 1)^-decay. With 1, SVCCA keeps 60 to
        85 % of the directions.
      seed: Of all random numbers.
    """
    rng = np.random.default_rng(seed)
    latents = 128
    spectrum = np.arange(1, latents + 1) ** -decay
    shared = rng.standard_normal((datapoints, latents)) * spectrum
    layers = []
    for width in widths:
        own = rng.standard_normal((datapoints, latents)) * spectrum
        mixed = shared @ rng.standard_normal((latents, width))
        mixed += 0.5 * own @ rng.standard_normal((latents, width))
        active = np.maximum(mixed, 0)
        # Full rank, so that every method below is defined.
        active += 0.05 * active.std() * rng.standard_normal(active.shape)
        layers.append(active.astype(np.float32))
    return layers


class Decomposed(NamedTuple):
    """One layer's kept directions."""

    directions: Float[np.ndarray, "datapoints directions"]
    values: Float[np.ndarray, " directions"]
    loadings: Float[np.ndarray, "neurons directions"]


def decompose(
    layer: Float[np.ndarray, "datapoints neurons"],
    *,
    route: Route = "svd",
    fraction: float | None = PAPER_FRACTION,
) -> Decomposed:
    """Centres one layer and decomposes it.

    Args:
      layer: Activations.
      route: The SVD, the eigenvectors of the Gram matrix, which squares the condition
        number, or NumPy's SVD.
      fraction: Share of the variance to keep; all directions if None.
    """
    centered = layer - layer.mean(axis=0)
    if route != "gram":
        left, values, right = (
            linalg.svd(centered, full_matrices=False, check_finite=False)
            if route == "svd"
            else np.linalg.svd(centered, full_matrices=False)
        )
        kept = _count_kept(values, fraction)
        return Decomposed(left[:, :kept], values[:kept], right[:kept].T)
    gram = centered.T @ centered
    squares, vectors = linalg.eigh(gram, driver="evd", check_finite=False)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    positive = int(np.sum(squares > 0))
    values = np.sqrt(squares[:positive])
    kept = _count_kept(values, fraction)
    values, loadings = values[:kept], vectors[:, :kept]
    return Decomposed(centered @ (loadings / values), values, loadings)


def _count_kept(
    values: Float[np.ndarray, " directions"], fraction: float | None
) -> int:
    if fraction is None:
        return len(values)
    mass = np.cumsum(values**2)
    return int(np.argmax(mass >= fraction * mass[-1])) + 1


def correlations(x: Decomposed, y: Decomposed) -> Float[np.ndarray, " directions"]:
    """Canonical correlations of two decomposed layers."""
    inner = x.directions.T @ y.directions
    return np.clip(linalg.svdvals(inner, check_finite=False), 0, 1)


def lapack_svcca(layers: Layers, *, route: Route = "svd") -> Grid:
    """SVCCA of all pairs: a decomposition a layer, singular values a pair."""
    parts = [decompose(layer, route=route) for layer in layers]
    return _fill(len(parts), lambda i, j: (correlations(parts[i], parts[j]).mean(),))


def lapack_pwcca(layers: Layers, *, route: Route = "svd") -> Grid:
    """PWCCA of all pairs: a decomposition a layer, an SVD and the weights a pair."""
    parts = [decompose(layer, route=route, fraction=None) for layer in layers]

    def weigh(part: Decomposed, rotation: np.ndarray) -> np.ndarray:
        return np.abs(part.loadings @ (part.values[:, None] * rotation)).sum(axis=0)

    def compare(i: int, j: int) -> tuple[float, ...]:
        x, y = parts[i], parts[j]
        inner = x.directions.T @ y.directions
        left, values, right = linalg.svd(inner, full_matrices=False, check_finite=False)
        values = np.clip(values, 0, 1)
        narrow_x, narrow_y = len(x.loadings), len(y.loadings)
        both = []
        if narrow_x <= narrow_y:
            both.append(np.average(values, weights=weigh(x, left)))
        if narrow_y <= narrow_x:
            both.append(np.average(values, weights=weigh(y, right.T)))
        return tuple(both)

    return _fill(len(parts), compare)


def lapack_cka(layers: Layers) -> Grid:
    """Linear CKA of all pairs: a Gram matrix a layer, a product a pair."""
    centered = [layer - layer.mean(axis=0) for layer in layers]
    norms = [np.linalg.norm(layer.T @ layer) for layer in centered]

    def compare(i: int, j: int) -> tuple[float]:
        cross = np.linalg.norm(centered[i].T @ centered[j])
        return (float(cross**2 / (norms[i] * norms[j])),)

    return _fill(len(centered), compare)


def _fill(number: int, compare: Callable[[int, int], tuple[Any, ...]]) -> Grid:
    """Both halves of a grid from unordered pairs; of two values the last is (j, i)."""
    grid = np.zeros((number, number))
    for i in range(number):
        for j in range(i, number):
            values = compare(i, j)
            grid[j, i] = values[-1]
            grid[i, j] = values[0]
    return grid


def published_cca(
    x: Float[np.ndarray, "datapoints neurons_x"],
    y: Float[np.ndarray, "datapoints neurons_y"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients and both layers' weights, over roots of inverse covariances."""
    covariance = np.cov(x, y, rowvar=False)
    width = x.shape[1]
    root_x = _inverse_root(covariance[:width, :width])
    root_y = _inverse_root(covariance[width:, width:])
    left, values, right = np.linalg.svd(root_x @ covariance[:width, width:] @ root_y)
    count = min(x.shape[1], y.shape[1])
    return values, root_x @ left[:, :count], root_y @ right[:count].T


def _inverse_root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.linalg.pinv(covariance))
    return vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


def published_svcca(layers: Layers, *, cached: bool = False) -> Grid:
    """SVCCA pair by pair, each layer's SVD taken anew (or once) for its pairs."""

    def reduce(layer: np.ndarray) -> np.ndarray:
        part = decompose(layer, route="numpy")
        return part.directions * part.values

    if cached:
        reduced = [reduce(layer) for layer in layers]
        rows = [[published_cca(x, y)[0].mean() for y in reduced] for x in reduced]
    else:
        rows = [
            [published_cca(reduce(x), reduce(y))[0].mean() for y in layers]
            for x in layers
        ]
    return np.asarray(rows)


def published_pwcca(layers: Layers) -> Grid:
    """PWCCA pair by pair, weighted by the layer with fewer neurons, else the first."""

    def compare(x: np.ndarray, y: np.ndarray) -> float:
        values, weights_x, weights_y = published_cca(x, y)
        narrow = x.shape[1] <= y.shape[1]
        layer, weights = (x, weights_x) if narrow else (y, weights_y)
        centered = layer - layer.mean(axis=0)
        variates, _ = np.linalg.qr(centered @ weights)
        alpha = np.abs(variates.T @ centered).sum(axis=1)
        return float(np.average(values, weights=alpha))

    return np.asarray([[compare(x, y) for y in layers] for x in layers])


def lapack_qr_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations over QR decompositions."""
    centered = [z - z.mean(axis=0) for z in (x, y)]
    bases = [
        np.asarray(linalg.qr(z, mode="economic", check_finite=False)[0])
        for z in centered
    ]
    return np.asarray(linalg.svdvals(bases[0].T @ bases[1], check_finite=False))


def lapack_cholesky_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations over Cholesky factors of the Gram matrices."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    factors = [linalg.cholesky(z.T @ z, lower=True, check_finite=False) for z in (x, y)]
    inner = x.T @ y
    for factor in factors:
        solved = linalg.solve_triangular(factor, inner, lower=True, check_finite=False)
        inner = solved.T
    return np.asarray(linalg.svdvals(inner, check_finite=False))


def lapack_cca(x: np.ndarray, y: np.ndarray, *, route: Route = "svd") -> np.ndarray:
    """Canonical correlations over thin SVDs or Gram matrices' eigenvectors."""
    return correlations(*(decompose(z, route=route, fraction=None) for z in (x, y)))


def _netrep_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from netrep.metrics import LinearMetric  # pyright: ignore[reportMissingImports]

    # Of layers of equal width: the arc cosine of the mean coefficient.
    return np.cos(LinearMetric(alpha=0.0).fit_score(x, y))


def _anatome_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    from anatome.distance import cca  # pyright: ignore[reportMissingImports]

    return cca(torch.from_numpy(x), torch.from_numpy(y), "svd")[2].numpy()


PACKAGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "netrep": _netrep_cca,
    "anatome": _anatome_cca,
}
"""CCA of two layers of equal width by other packages; netrep gives the mean alone."""


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None
