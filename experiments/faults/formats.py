"""What a format is to a campaign, and when two of its results are the same."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Refusal(ValueError):
    """A reader said no without an error: by a report on stderr, or by None."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format, and the way this project reads it."""

    write: Callable[[Path], list[Path]]
    """Writes a sample into an empty folder; returns the files to damage."""
    read: Callable[[Path], Any]
    """Reads the folder; returns a tree of arrays, numbers and strings."""
    checksummed: bool
    """Whether no damage may change the result in silence, as every byte that the result
    depends on is covered by a checksum."""
    is_whole: Callable[[Path], bool] = lambda path: True
    """Whether a file is as long as it says. A result of one that is not is wrong."""


def fingerprint(tree: Any) -> Any:
    """What two results must share to be the same: types, shapes and bits."""
    if isinstance(tree, dict):
        return {key: fingerprint(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [fingerprint(value) for value in tree]
    if hasattr(tree, "__array__"):
        array = np.asarray(tree)
        return array.dtype.str, array.shape, array.tobytes()
    return repr(tree)


def is_finite(tree: Any) -> bool:
    """Whether no number in a result is NaN or infinite."""
    if isinstance(tree, dict):
        return all(is_finite(value) for value in tree.values())
    if isinstance(tree, (tuple, list)):
        return all(is_finite(value) for value in tree)
    if hasattr(tree, "__array__"):
        array = np.asarray(tree)
        return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())
    return not isinstance(tree, float) or bool(np.isfinite(tree))
