"""Compares our networks with numbers that the published code computed.

    python -m experiments.check_reference tests/golden/cls_tiny_seed0.npz
    python -m experiments.check_reference tests/golden/seg_tiny_seed0.npz
    python -m experiments.check_reference FIXTURE.npz --weights FIXTURE.pth

One JSON line a fixture: every stage in inference and in training, the outputs, the
loss, every gradient and the running statistics after one training step, each with its
relative error max|ours - theirs| / max|theirs|. Expected: `"ok": true`, that is at
most 1e-5, for gradients 1e-4, and coordinates exactly equal. The exit status is 1 if
any fixture fails or is of a kind that is not covered.
"""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from e3dsnn_jax.published import load_published
from experiments.reference.classifier import compute_classifier
from experiments.reference.segmenter import compute_segmenter

LIMIT = 1e-5
GRADIENT_LIMIT = 1e-4
# Stands for an infinite error, which JSON cannot spell: a quantity that is missing,
# not finite or of another shape, or integers that differ.
UNMATCHED = 1e9

# The array, of inputs, weights or gradients, that a fixture of each kind has and the
# other kinds lack, most specific first.
_SIGNATURES = {
    "seg": "dec.0.up.1.weight",
    "cls": "input/grid_coord",
    "det": "input/voxel_coords",
    "anchor": "input/spatial_features_2d",
    "bev": "input/spatial_features",
    "roi": "input/rois",
}
_COMPUTE: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "cls": compute_classifier,
    "seg": compute_segmenter,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Check our code against reference fixtures."""

    fixtures: tyro.conf.Positional[tuple[Path, ...]]
    """Files of reference numbers (.npz)."""
    weights: Path | None = None
    """Take the weights from this published checkpoint (.pth), not from the fixtures."""


def find_kind(names: list[str]) -> str:
    """Returns the kind of a fixture, told by the names of its arrays.

    Raises:
      ValueError: If no kind has such arrays.
    """
    for kind, signature in _SIGNATURES.items():
        if any(name == signature or name.endswith(f"/{signature}") for name in names):
            return kind
    raise ValueError(
        f"not a reference fixture: none of {sorted(_SIGNATURES.values())} is among its "
        f"{len(names)} arrays"
    )


def relative_error(ours: np.ndarray | None, theirs: np.ndarray) -> float:
    """Returns max|ours - theirs| / max|theirs|; integers must be equal."""
    if ours is None or ours.shape != theirs.shape:
        return UNMATCHED
    if np.issubdtype(theirs.dtype, np.integer):
        return 0.0 if np.array_equal(ours, theirs) else UNMATCHED
    return _finite(_largest(ours - theirs.astype(np.float64)), _largest(theirs))


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array), initial=0.0))


def _finite(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    error = difference / scale if scale > 0 else UNMATCHED
    return error if np.isfinite(error) else UNMATCHED


def compare(
    fixture: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], bool]:
    """Returns the error of every quantity of a fixture, and whether all are in bounds.

    A gradient whose largest value is below 1e-4 of the median of all gradients'
    largest values is zero in truth, such as that of a bias ahead of batch statistics:
    its difference is measured against that median instead.
    """
    expected = {name: a for name, a in fixture.items() if _is_result(name)}
    gradients = {n: _largest(a) for n, a in expected.items() if n.startswith("grad/")}
    median = float(np.median(list(gradients.values()))) if gradients else 0.0
    errors = {}
    for name, theirs in expected.items():
        ours = computed.get(name)
        errors[name] = relative_error(ours, theirs)
        is_zero = gradients.get(name, median) < GRADIENT_LIMIT * median
        if is_zero and ours is not None and ours.shape == theirs.shape:
            errors[name] = _finite(_largest(ours - theirs.astype(np.float64)), median)
    within = all(
        error <= (GRADIENT_LIMIT if name in gradients else LIMIT)
        for name, error in errors.items()
    )
    return errors, bool(errors) and within


def _is_result(name: str) -> bool:
    # Batch counters are no numbers of the network; see `interop.export_state`.
    return name.startswith(("eval/", "train/", "loss", "grad/", "after_train/")) and (
        not name.endswith("num_batches_tracked")
    )


def check_fixture(path: Path, *, weights: Path | None = None) -> dict[str, Any]:
    """Returns the result line of one fixture.

    Args:
      path: The fixture.
      weights: A published checkpoint to use instead of the weights in the fixture.

    Returns:
      `fixture`, `kind` (None if unknown), `ok`, `worst` (the largest error, None if
      nothing was compared), `errors` by quantity, and, where nothing could be
      compared, the `reason`.
    """
    result: dict[str, Any] = {"fixture": str(path), "kind": None, "ok": False}
    result |= {"worst": None, "errors": {}}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            fixture = {name: archive[name] for name in archive.files}
        result["kind"] = find_kind(list(fixture))
        compute = _COMPUTE.get(result["kind"])
        if compute is None:
            return result | {"reason": f"kind {result['kind']!r} is not covered"}
        if weights is None:
            source = str(path)
            state = {
                name.removeprefix("state/"): array
                for name, array in fixture.items()
                if name.startswith("state/")
            }
        else:
            source, state = str(weights), load_published(weights)
        # Accelerators would otherwise round the factors of products to fewer digits.
        with jax.default_matmul_precision("highest"):
            computed = compute(fixture, state, source=source)
        errors, ok = compare(fixture, computed)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return result | {"reason": f"{type(error).__name__}: {error}"}
    return result | {"ok": ok, "worst": max(errors.values()), "errors": errors}


def main(arguments: list[str] | None = None) -> int:
    """Prints one line a fixture and returns the exit status."""
    config = tyro.cli(Config, args=arguments)
    failed = not config.fixtures
    for path in config.fixtures:
        result = check_fixture(path, weights=config.weights)
        print(json.dumps(result), flush=True)
        failed |= not result["ok"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
