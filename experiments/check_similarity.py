"""Compares `svcca_jax` with cases whose similarities are known.

    python -m experiments.check_similarity tests/golden/svcca/*.npz

One JSON line a case, `{"case", "ok", "errors": {quantity: {"float64", "float32"}}}`,
with errors max|ours - golden| / max(1, max|golden|), null where a case is too
ill-conditioned for float32. Expected: `"ok": true`, that is at most 1e-9 in float64
(1e-6 for the cases near_collinear_1e-6 and neuron_scales) and 2e-5 in float32 (1e-4 for
near_collinear_1e-3). Directions are compared up to sign and only where they are
determined; angles by their cosine. The exit status is 1 if any quantity fails or
nothing was compared.
"""

import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import Array

import svcca_jax

_LIMITS = {"float64": 1e-9, "float32": 2e-5}
_OTHER_LIMITS = {
    "near_collinear_1e-6": {"float64": 1e-6},
    "neuron_scales": {"float64": 1e-6},
    "near_collinear_1e-3": {"float32": 1e-4},
}
# Directions belong to values: those are compared that the value determines.
_DIRECTIONS = {"pls_dirs_x": "pls_values", "pls_dirs_y": "pls_values"}
# Stands for an infinite error, which JSON cannot spell.
UNMATCHED = 1e9


@dataclasses.dataclass(frozen=True)
class Config:
    """Check the similarity measures against cases of known results."""

    cases: tyro.conf.Positional[tuple[Path, ...]]
    """Cases (.npz), each with its description beside it (.json)."""


def compute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns every quantity of a case, computed through the public functions.

    Args:
      inputs: `in_X` and `in_Y` [neurons, datapoints], or maps `in_A` and `in_B`
        [datapoints, height, width, channels].
    """
    if "in_A" in inputs:
        return _compute_maps(inputs["in_A"], inputs["in_B"])
    return _compute_layers(inputs["in_X"].T, inputs["in_Y"].T)


def _compute_maps(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    result = svcca_jax.fourier_cca(a, b)
    coefficients = np.array(result.coefficients)
    missing = (
        np.arange(coefficients.shape[-1])
        >= np.asarray(result.num_coefficients)[..., None]
    )
    flat = svcca_jax.cca(a.reshape(len(a), -1), b.reshape(len(b), -1))
    return {
        "dft_coefs": np.where(missing, np.nan, coefficients),
        "dft_means": np.asarray(result.means),
        "dft_mean": np.asarray(result.mean),
        "flat_cca_coefs": np.asarray(flat.coefficients)[: int(flat.num_coefficients)],
    }


_RULES = {
    "var99": svcca_jax.VarianceFraction(0.99),
    "sum99": svcca_jax.SumFraction(0.99),
    "top20": svcca_jax.FixedCount(20),
}


@jax.jit
def _measure(x: Array, y: Array) -> dict[str, Any]:
    # One program a case: compiling every measure by itself takes five times as long.
    return {
        "cca": svcca_jax.cca(x, y),
        "svcca": {name: svcca_jax.svcca(x, y, keep=k) for name, k in _RULES.items()},
        "pwcca": svcca_jax.pwcca(x, y),
        "pls": svcca_jax.pls(x, y),
        "pca": {"x": svcca_jax.pca(x), "y": svcca_jax.pca(y)},
        "cka": svcca_jax.linear_cka(x, y),
        "procrustes": svcca_jax.procrustes_distance(x, y),
    }


def _compute_layers(x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    results = _measure(x, y)
    plain = results["cca"]
    count = int(plain.num_coefficients)
    coefficients = plain.coefficients[:count]
    found: dict[str, Any] = {
        "rank_x": plain.rank_x,
        "rank_y": plain.rank_y,
        "cca_coefs": coefficients,
        "unscaled_cca_coefs": coefficients,
        "cca_mean": plain.mean,
        "cca_mean_over_min_width": coefficients.sum() / min(x.shape[1], y.shape[1]),
        "cca_mean_trunc98": svcca_jax.leading_mean(plain.coefficients, 0.98),
        "cca_sum": coefficients.sum(),
        "cca_sum_sq": (coefficients**2).sum(),
    }
    for name, result in results["svcca"].items():
        found[f"svcca_{name}_coefs"] = result.coefficients[
            : int(result.num_coefficients)
        ]
        found[f"svcca_{name}_mean"] = result.mean
        found[f"svcca_{name}_k"] = np.array([result.rank_x, result.rank_y])
    weighted = results["pwcca"]
    found |= {
        "pwcca": weighted.value,
        "pwcca_x": weighted.weighted_by_x,
        "pwcca_y": weighted.weighted_by_y,
        "pwcca_weights_x": weighted.weights_x[:count],
        "pwcca_weights_y": weighted.weights_y[:count],
    }
    least_squares = results["pls"]
    found |= {
        "pls_values": least_squares.values,
        "pls_dirs_x": least_squares.directions_x,
        "pls_dirs_y": least_squares.directions_y,
    }
    for name, components in results["pca"].items():
        found[f"pca_singular_{name}"] = components.singular_values
        found[f"pca_variance_{name}"] = components.variances
    distance = results["procrustes"]
    found |= {
        "cka": results["cka"].value,
        "cka_debiased": results["cka"].debiased,
        "procrustes_sq": distance.squared,
        "procrustes_nuc": distance.similarity,
        "procrustes_norm": distance.distance,
        "procrustes_angular": distance.angle,
    }
    return {name: np.asarray(value) for name, value in found.items()}


def measure_error(
    name: str, ours: np.ndarray | None, golden: dict[str, np.ndarray]
) -> float:
    """Returns the error of one quantity by the rules of this module."""
    theirs = golden[name]
    if ours is None or ours.shape != theirs.shape:
        return UNMATCHED
    ours = ours.astype(np.float64)
    if name in _DIRECTIONS:
        determined = _determined(golden[_DIRECTIONS[name]])
        cosines = np.abs(np.sum(ours * theirs, axis=0))[determined]
        return _largest(1 - cosines)
    if name == "procrustes_angular":
        return _largest(np.cos(ours) - np.cos(theirs))
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return UNMATCHED
    difference = np.nan_to_num(ours) - np.nan_to_num(theirs)
    return _largest(difference) / max(1.0, _largest(np.nan_to_num(theirs)))


def _determined(values: np.ndarray) -> np.ndarray:
    """Returns where a value is clearly above 0 and apart from both neighbours."""
    if values.size == 0:
        return np.zeros(0, bool)
    gaps = np.concatenate([[np.inf], values[:-1] - values[1:], [np.inf]])
    apart = np.minimum(gaps[:-1], gaps[1:]) > 1e-4 * values[0]
    return apart & (values > 1e-10 * values[0])


def _largest(array: np.ndarray) -> float:
    value = float(np.max(np.abs(array), initial=0.0))
    return value if np.isfinite(value) else UNMATCHED


def check_case(path: Path) -> dict[str, Any]:
    """Returns the line of one case.

    Raises:
      ValueError: If the file or its description cannot be read.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        description = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the case {path}: {error}") from error
    name = description["name"]
    skipped = set(description["not_unique"])
    golden = {
        key.removeprefix("out_"): value
        for key, value in arrays.items()
        if key.startswith("out_")
    }
    compared = [key for key in golden if key not in skipped]
    errors: dict[str, dict[str, float | None]] = {key: {} for key in compared}
    ok = bool(compared)
    for dtype, limit in _LIMITS.items():
        limit = _OTHER_LIMITS.get(name, {}).get(dtype, limit)
        if dtype == "float32" and description["min_dtype"] == "float64":
            for key in compared:
                errors[key][dtype] = None
            continue
        inputs = {
            key: value.astype(dtype)
            for key, value in arrays.items()
            if key.startswith("in_")
        }
        with jax.enable_x64(dtype == "float64"):
            ours = compute(inputs)
        for key in compared:
            error = measure_error(key, ours.get(key), golden)
            errors[key][dtype] = error
            ok = ok and error <= limit
    return {"case": name, "ok": ok, "errors": errors}


def main() -> None:
    """Prints one JSON line a case; exits with 1 unless all of them agree."""
    config = tyro.cli(Config, description=__doc__)
    if not config.cases:
        sys.exit("no case was given: nothing was compared")
    passed = True
    for path in config.cases:
        try:
            line = check_case(path)
        except (ValueError, KeyError) as error:
            line = {"case": path.stem, "ok": False, "error": repr(error), "errors": {}}
        print(json.dumps(line), flush=True)
        passed = passed and line["ok"]
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
