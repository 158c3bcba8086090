"""Brute-force NumPy oracles in float64: obvious, slow, and independent of the code."""

import itertools

import numpy as np

from e3dsnn_jax.kernel_map import Kernel


def dense_grid(
    coords: np.ndarray, features: np.ndarray, batch: int, extent
) -> np.ndarray:
    """Scatters rows into `[batch, *extent, channels]`."""
    grid = np.zeros((batch, *extent, features.shape[1]))
    for row, cell in enumerate(coords):
        grid[tuple(cell)] = features[row]
    return grid


def dense_conv(grid: np.ndarray, weights: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Cross-correlation of `[batch, *extent, c_in]` with `[offsets, c_in, c_out]`."""
    batch, *extent, _ = grid.shape
    out_extent = kernel.output_extent(tuple(extent))
    outputs = np.zeros((batch, *out_extent, weights.shape[-1]))
    for cell in itertools.product(*(range(n) for n in out_extent)):
        for number, offset in enumerate(kernel.offsets()):
            at = [
                o * s - p + k * d
                for o, s, p, k, d in zip(
                    cell,
                    kernel.stride,
                    kernel.padding,
                    offset,
                    kernel.dilation,
                    strict=True,
                )
            ]
            if all(0 <= a < n for a, n in zip(at, extent, strict=True)):
                outputs[(slice(None), *cell)] += (
                    grid[(slice(None), *at)] @ weights[number]
                )
    return outputs


def submanifold_pairs(coords: np.ndarray, kernel: Kernel) -> list[tuple[int, int, int]]:
    """Every (offset, receiver, sender), by looking up each neighbour in a dict."""
    rows = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    pairs = []
    for number, offset in enumerate(kernel.offsets()):
        for receiver, (batch, *cell) in enumerate(coords.tolist()):
            neighbour = tuple(
                c + (k - size // 2) * d
                for c, k, size, d in zip(
                    cell, offset, kernel.size, kernel.dilation, strict=True
                )
            )
            if (batch, *neighbour) in rows:
                pairs.append((number, receiver, rows[(batch, *neighbour)]))
    return pairs


def strided_pairs(
    coords: np.ndarray, kernel: Kernel, extent: tuple[int, ...] | None
) -> tuple[list[tuple[int, ...]], list[tuple[int, int, int]]]:
    """Sorted output cells, and every (offset, receiver, sender)."""
    bound = None if extent is None else kernel.output_extent(extent)
    hits = []
    for number, offset in enumerate(kernel.offsets()):
        for sender, (batch, *cell) in enumerate(coords.tolist()):
            reached = []
            for axis, c in enumerate(cell):
                at = c + kernel.padding[axis] - offset[axis] * kernel.dilation[axis]
                fits = at >= 0 and at % kernel.stride[axis] == 0
                at //= kernel.stride[axis]
                if not fits or (bound is not None and at >= bound[axis]):
                    break
                reached.append(at)
            else:
                hits.append((number, (batch, *reached), sender))
    outputs = sorted({cell for _, cell, _ in hits})
    place = {cell: row for row, cell in enumerate(outputs)}
    return outputs, sorted((k, place[cell], sender) for k, cell, sender in hits)


def python_lif(currents, *, decay, threshold, soft) -> np.ndarray:
    """Binary LIF, one neuron and one step at a time."""
    flat = currents.reshape(len(currents), -1)
    spikes = np.zeros_like(flat)
    for neuron in range(flat.shape[1]):
        carried = 0.0
        for t in range(len(flat)):
            potential = carried + flat[t, neuron]
            fired = 1.0 if potential >= threshold else 0.0
            spikes[t, neuron] = fired
            left = potential - threshold * fired if soft else potential * (1 - fired)
            carried = decay * left
    return spikes.reshape(currents.shape)


def python_integer_lif(currents, *, levels, decay) -> np.ndarray:
    """Integer LIF with soft reset, one neuron and one step at a time."""
    flat = currents.reshape(len(currents), -1)
    spikes = np.zeros_like(flat)
    for neuron in range(flat.shape[1]):
        carried = 0.0
        for t in range(len(flat)):
            potential = carried + flat[t, neuron]
            count = int(np.floor(min(max(potential, 0.0), levels) + 0.5))
            spikes[t, neuron] = count
            carried = decay * (potential - count)
    return spikes.reshape(currents.shape)


def batch_norm(
    values, real, *, epsilon=1e-3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised real rows (others 0), batch mean and unbiased variance."""
    kept = values[real].reshape(-1, values.shape[-1]).astype(np.float64)
    mean, var = kept.mean(0), kept.var(0)
    outputs = np.where(
        real[:, None, None], (values - mean) / np.sqrt(var + epsilon), 0.0
    )
    unbiased = var * len(kept) / max(len(kept) - 1, 1)
    return outputs, mean, unbiased


def cca_by_qr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Canonical correlations of two layers, over their numerical ranks."""
    bases = []
    for layer in (x, y):
        centered = layer.astype(np.float64) - layer.astype(np.float64).mean(axis=0)
        left, values, _ = np.linalg.svd(centered, full_matrices=False)
        cut = max(layer.shape) * np.finfo(np.float64).eps * values[0]
        bases.append(left[:, values > cut])
    return np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0, 1)


def centered(x: np.ndarray) -> np.ndarray:
    """Activations in float64 less their mean over the datapoints."""
    x = x.astype(np.float64)
    return x - x.mean(axis=0)


def pwcca_by_definition(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """PWCCA weighted by x and by y, for layers of full rank."""
    x, y = centered(x), centered(y)
    basis_x, basis_y = (np.linalg.qr(layer)[0] for layer in (x, y))
    left, values, right = np.linalg.svd(basis_x.T @ basis_y, full_matrices=False)
    found = []
    for layer, variates in ((x, basis_x @ left), (y, basis_y @ right.T)):
        weights = np.abs(variates.T @ layer).sum(axis=1)
        found.append(float((weights * values).sum() / weights.sum()))
    return found[0], found[1]


def cka_by_kernels(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Linear CKA and its debiased form from the kernels of all pairs of datapoints."""
    x, y = centered(x), centered(y)
    kernels = [layer @ layer.T for layer in (x, y)]
    biased = [(a * b).sum() for a, b in _pairs_of(kernels)]
    count = len(x)
    ones = np.ones(count)
    hollow = [kernel - np.diag(np.diag(kernel)) for kernel in kernels]
    unbiased = []
    for a, b in _pairs_of(hollow):
        spread = (ones @ a @ ones) * (ones @ b @ ones) / ((count - 1) * (count - 2))
        mixed = 2 * (ones @ a @ b @ ones) / (count - 2)
        unbiased.append(np.trace(a @ b) + spread - mixed)
    return tuple(float(xy / np.sqrt(xx * yy)) for xx, xy, yy in (biased, unbiased))


def _pairs_of(two: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(two[0], two[0]), (two[0], two[1]), (two[1], two[1])]


def procrustes_by_rotation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Squared distance after the best rotation, and the cosine there; equal widths."""
    x, y = centered(x), centered(y)
    left, _, right = np.linalg.svd(y.T @ x)
    rotated = y @ left @ right
    cosine = (x * rotated).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    return float(((x - rotated) ** 2).sum()), float(cosine)
