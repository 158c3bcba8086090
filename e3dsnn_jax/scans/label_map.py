"""Label ids of a data set to classes and back."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from e3dsnn_jax.scans.scan import IGNORED

# An id that the data set does not define, which is no class and not ignored either.
_UNKNOWN = -2
_MOST_IDS = 2**16
_LISTED = 5


class LabelMap(NamedTuple):
    """Which class each id of a data set stands for."""

    class_of_id: Int[np.ndarray, " ids"]
    """Class of each id, `IGNORED`, or -2 where the data set has no such id."""
    id_of_class: Int[np.ndarray, " classes"]
    """The id that is written for each class."""
    id_of_ignored: int
    """The id that is written for points without a class."""


def make_label_map(
    class_of_id: Mapping[int, int],
    id_of_class: tuple[int, ...],
    *,
    id_of_ignored: int = 0,
) -> LabelMap:
    """Tables from a dictionary.

    Args:
      class_of_id: Class of every id of the data set, `IGNORED` for those not learned.
      id_of_class: The id to write for each class.
      id_of_ignored: The id to write for points without a class.

    Raises:
      ValueError: If an id does not lie in [0, 65536).
    """
    for number in (*class_of_id, *id_of_class, id_of_ignored):
        if not 0 <= number < _MOST_IDS:
            raise ValueError(f"label id {number} is outside [0, {_MOST_IDS})")
    table = np.full(max(class_of_id) + 1, _UNKNOWN, np.int32)
    table[list(class_of_id)] = list(class_of_id.values())
    return LabelMap(table, np.array(id_of_class, np.int32), id_of_ignored)


def to_classes(
    ids: Int[np.ndarray, " points"], labels: LabelMap, *, name: str
) -> Int[np.ndarray, " points"]:
    """Class of each point, `IGNORED` where it has none.

    Args:
      ids: Label ids of the data set, at least 0.
      labels: The data set's map.
      name: What messages call the file.

    Raises:
      ValueError: If an id is not in the map, with the ids and how often they occur.
    """
    size = len(labels.class_of_id)
    known = int(ids.max(initial=0)) < size and int(ids.min(initial=0)) >= 0
    if known:
        classes = labels.class_of_id[ids]
        if classes.min(initial=0) > _UNKNOWN:
            return classes
    found, counts = np.unique(ids, return_counts=True)
    inside = (found >= 0) & (found < size)
    unknown = ~inside
    unknown[inside] = labels.class_of_id[found[inside]] == _UNKNOWN
    wrong = [
        f"{number} ({count})"
        for number, count in zip(found[unknown], counts[unknown], strict=True)
    ]
    more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
    raise ValueError(
        f"{name}: {int(counts[unknown].sum())} of {len(ids)} labels have ids that the "
        f"label map lacks: {', '.join(wrong[:_LISTED])}{more} (in brackets: points)"
    )


def to_ids(
    classes: Int[np.ndarray, " points"], labels: LabelMap
) -> Int[np.ndarray, " points"]:
    """The id to write for each point's class; ignored points get that of no class.

    Raises:
      ValueError: If a class is neither `IGNORED` nor one of the map's.
    """
    # Differs from reference: its inverse map writes -1 for points of no class, which
    # becomes another id in an unsigned file.
    number = len(labels.id_of_class)
    low, high = int(classes.min(initial=0)), int(classes.max(initial=0))
    if low < IGNORED or high >= number:
        wrong = low if low < IGNORED else high
        raise ValueError(
            f"class {wrong} is neither {IGNORED} (none) nor one of the {number} classes"
        )
    # The last entry of the table is also entry -1.
    table = np.append(labels.id_of_class, labels.id_of_ignored)
    return table[classes]
