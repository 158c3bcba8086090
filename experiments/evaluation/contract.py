"""How the cases of an evaluation are told apart and compared: the contract's rules.

The contract is a JSON file with one entry a kind: `recognise` (patterns that a case has
keys for), `inputs`, `compare` (pattern -> tolerance, measure, and perhaps `rows` or
`except_at`), `reference_only` (what keeps a defect of the published code: reported and
never failed on), `feed` (stored results that may be fed in) and `constants`.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Stands for an infinite error, which JSON cannot spell: a quantity that is missing, not
# finite or of another shape.
UNMATCHED = 1e9

Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """What a computation may see of a case: never the results it is compared with."""

    inputs: dict[str, np.ndarray]
    """Inputs, and the results that the contract feeds in."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of every stored array, since some sizes are stored nowhere else."""
    constants: dict[str, Any]
    """The contract's constants of this kind."""


def load_contract(path: Path) -> dict[str, Any]:
    """The entries of a contract, by kind.

    Raises:
      ValueError: If the file is missing or no contract.
    """
    try:
        contract = json.loads(path.read_text())
        for kind, entry in contract.items():
            missing = {"recognise", "inputs", "compare"} - entry.keys()
            if missing:
                raise ValueError(f"{kind} lacks {sorted(missing)}")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read the contract {path}: {error}") from error
    return contract


def match(patterns: Iterable[str], name: str) -> str | None:
    """The first pattern that a key fits; `*` also stands for slashes."""
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern):
            return pattern
    return None


def find_kind(names: Iterable[str], contract: Mapping[str, Any]) -> str:
    """The kind of a case, told by its keys alone.

    Raises:
      ValueError: If the keys fit no kind, or several.
    """
    names = list(names)
    kinds = [
        kind
        for kind, entry in contract.items()
        if all(fnmatch.filter(names, pattern) for pattern in entry["recognise"])
    ]
    if len(kinds) != 1:
        raise ValueError(
            f"its {len(names)} keys fit {', '.join(kinds) or 'none'} of the "
            f"{len(contract)} kinds: {', '.join(contract)}"
        )
    return kinds[0]


def make_case(arrays: Arrays, entry: Mapping[str, Any]) -> Case:
    """The inputs of a case, without what it is compared with.

    Raises:
      ValueError: If a key is neither input nor result.
    """
    kinds = ("inputs", "compare", "reference_only")
    for name in arrays:
        if all(match(entry.get(kind, ()), name) is None for kind in kinds):
            raise ValueError(f"the contract does not say what {name} is")
    fed = [name for names in entry.get("feed", {}).values() for name in names]
    fed = [re.sub(r"<\w+>", "*", name) for name in fed]
    inputs = {
        name: array
        for name, array in arrays.items()
        if match(entry["inputs"], name) or match(fed, name)
    }
    shapes = {name: array.shape for name, array in arrays.items()}
    return Case(inputs, shapes, entry.get("constants", {}))


def compare(
    computed: Arrays, arrays: Arrays, entry: Mapping[str, Any]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Errors of every quantity of a case, and of what is only reported.

    Returns:
      `{"error", "tolerance"}` by quantity, and the error of each reference-only one.
    """
    quantities, reference = {}, {}
    for name, theirs in arrays.items():
        pattern = match(entry["compare"], name)
        ours = computed.get(name)
        if pattern is not None:
            rule = entry["compare"][pattern]
            kept = _kept(name, theirs, rule, arrays)
            error = measure_error(ours, theirs, rule["measure"], kept=kept)
            quantities[name] = {"error": error, "tolerance": float(rule["tolerance"])}
        elif match(entry.get("reference_only", {}), name):
            exact = theirs.dtype.kind not in "fc"
            reference[name] = measure_error(
                ours, theirs, "exact" if exact else "relative"
            )
    return quantities, reference


def measure_error(
    ours: np.ndarray | None,
    theirs: np.ndarray,
    measure: str,
    *,
    kept: np.ndarray | None = None,
) -> float:
    """The error of one quantity.

    Args:
      ours: What we compute; None where we do not.
      theirs: What is stored.
      measure: "exact" counts the entries that differ, "absolute" takes the largest
        difference, "relative" divides that by the largest stored value.
      kept: Mask of the leading axes: only those entries are compared.

    Raises:
      ValueError: If there is no such measure.
    """
    if ours is None or ours.shape != theirs.shape:
        return UNMATCHED
    if kept is not None:
        ours, theirs = ours[kept], theirs[kept]
    if measure == "exact":
        return float(np.count_nonzero(ours != theirs))
    if measure not in ("absolute", "relative"):
        raise ValueError(f"the contract asks for an unknown measure {measure!r}")
    theirs = theirs.astype(np.float64)
    # What is not finite has to be the same, and differs by nothing then.
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return UNMATCHED
    error = np.max(np.abs(ours[finite] - theirs[finite]), initial=0.0)
    if measure == "relative" and error > 0:
        scale = np.max(np.abs(theirs[finite]), initial=0.0)
        error = error / scale if scale > 0 else UNMATCHED
    return float(error) if np.isfinite(error) else UNMATCHED


def _kept(
    name: str, theirs: np.ndarray, rule: Mapping[str, Any], arrays: Arrays
) -> np.ndarray | None:
    """Entries to compare, by the stored mask or the stored exceptions of a rule."""
    if "rows" in rule:
        return arrays[_beside(name, rule["rows"])].astype(bool)
    if "except_at" in rule:
        exceptions = arrays[_beside(name, rule["except_at"])]
        exceptions = exceptions.reshape(len(exceptions), -1)
        kept = np.ones(theirs.shape[: exceptions.shape[1]], bool)
        kept[tuple(exceptions.T)] = False
        return kept
    return None


def _beside(name: str, pattern: str) -> str:
    """The key that a pattern such as `<frame>/fov` means beside `000007/uv`."""
    return re.sub(r"<\w+>", name.split("/")[0], pattern)
