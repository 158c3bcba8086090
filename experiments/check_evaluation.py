"""Compares losses, schedules, labels and grids with what the published code computed.

    python -m experiments.check_evaluation CASE.npz [...]

One JSON line a case, `{"case", "kind", "ok", "quantities": {name: {"error",
"tolerance"}}, "reference_only": {name: error}}`. The kind is found from the keys of the
case, and what is compared how closely from the contract, `tests/golden/compare.json`.
Exact quantities have as their error the number of entries that differ; 1e9 stands for
one that is missing or has another shape. Expected: `"ok": true`. A kind that is not
covered has `"ok": null` and a `reason`, and does not count as compared. The exit status
is 1 if any case fails or nothing was compared.
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

from experiments.evaluation.contract import (
    Case,
    compare,
    find_kind,
    load_contract,
    make_case,
)
from experiments.evaluation.grids import compute_grids
from experiments.evaluation.labels import compute_labels
from experiments.evaluation.losses import compute_losses
from experiments.evaluation.schedules import compute_schedules

CONTRACT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "compare.json"

COMPUTE: dict[str, Callable[[Case], dict[str, np.ndarray]]] = {
    "seg_losses": compute_losses,
    "schedules": compute_schedules,
    "semkitti": compute_labels,
    "grid_sample": compute_grids,
}
"""How each kind of case is computed; kinds that are not here are not covered."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Check our code against cases of the published pipelines."""

    cases: tyro.conf.Positional[tuple[Path, ...]]
    """Cases (.npz)."""
    contract: Path = CONTRACT
    """What the keys of each kind mean and how closely they are compared (.json)."""


def check_case(path: Path, contract: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the line of one case.

    Args:
      path: The case.
      contract: The entries of the contract, by kind.

    Returns:
      What the module describes; `kind` is None where the keys fit no kind, and `reason`
      says why nothing could be compared.
    """
    result: dict[str, Any] = {"case": str(path), "kind": None, "ok": False}
    result |= {"quantities": {}, "reference_only": {}}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        kind = result["kind"] = find_kind(arrays, contract)
        entry, compute = contract[kind], COMPUTE.get(kind)
        if compute is None:
            reason = f"kind {kind} is not covered; covered are {', '.join(COMPUTE)}"
            return result | {"ok": None, "reason": reason}
        # Accelerators would otherwise round the factors of products to fewer digits.
        with jax.default_matmul_precision("highest"):
            computed = compute(make_case(arrays, entry))
        quantities, reference = compare(computed, arrays, entry)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return result | {"reason": f"{type(error).__name__}: {error}"}
    within = all(q["error"] <= q["tolerance"] for q in quantities.values())
    result |= {"quantities": quantities, "reference_only": reference}
    return result | {"ok": bool(quantities) and within}


def main(arguments: list[str] | None = None) -> int:
    """Prints one line a case and returns the exit status."""
    config = tyro.cli(Config, args=arguments, description=__doc__)
    try:
        contract = load_contract(config.contract)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    verdicts = []
    for path in config.cases:
        result = check_case(path, contract)
        print(json.dumps(result), flush=True)
        verdicts.append(result["ok"])
    if not any(verdict is not None for verdict in verdicts):
        print("nothing was compared", file=sys.stderr)
        return 1
    return int(False in verdicts)


if __name__ == "__main__":
    sys.exit(main())
