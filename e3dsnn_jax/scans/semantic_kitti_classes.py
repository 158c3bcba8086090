"""The classes, label ids, class weights and splits of SemanticKITTI.

Ids that cannot be told apart in one scan are merged, moving things with standing ones;
`other-structure`, `other-object`, `outlier` and unlabelled points are not learned.

Source: the benchmark's own configuration, `semantic-kitti.yaml` of semantic-kitti-api;
classes are counted from 0 here, where that file has 0 for what is not learned.
"""

from typing import Literal

from e3dsnn_jax.scans.label_map import make_label_map
from e3dsnn_jax.scans.scan import IGNORED

SequenceSplit = Literal["train", "valid", "test"]

# Name of each class, the id written for it, and other ids that count as it.
_CLASSES: tuple[tuple[str, int, tuple[int, ...]], ...] = (
    ("car", 10, (252,)),
    ("bicycle", 11, ()),
    ("motorcycle", 15, ()),
    ("truck", 18, (258,)),
    ("other-vehicle", 20, (13, 16, 256, 257, 259)),
    ("person", 30, (254,)),
    ("bicyclist", 31, (253,)),
    ("motorcyclist", 32, (255,)),
    ("road", 40, (60,)),
    ("parking", 44, ()),
    ("sidewalk", 48, ()),
    ("other-ground", 49, ()),
    ("building", 50, ()),
    ("fence", 51, ()),
    ("vegetation", 70, ()),
    ("trunk", 71, ()),
    ("terrain", 72, ()),
    ("pole", 80, ()),
    ("traffic-sign", 81, ()),
)
_IGNORED_IDS = (0, 1, 52, 99)

CLASS_NAMES: tuple[str, ...] = tuple(name for name, _, _ in _CLASSES)
"""The 19 classes of the single-scan benchmark."""

LABELS = make_label_map(
    {
        **dict.fromkeys(_IGNORED_IDS, IGNORED),
        **{
            number: index
            for index, (_, own, merged) in enumerate(_CLASSES)
            for number in (own, *merged)
        },
    },
    tuple(own for _, own, _ in _CLASSES),
)
"""The official label map and its inverse."""

CLASS_WEIGHTS: tuple[float, ...] = (
    *(3.1557, 8.7029, 7.8281, 6.1354, 6.3161),  # vehicles
    *(7.9937, 8.9704, 10.1922),  # people
    *(1.6155, 4.2187, 1.9385, 5.5455),  # ground
    *(2.0198, 2.6261, 1.3212, 5.1102, 2.5492, 5.8585, 7.3929),  # what stands on it
)
"""Weight of each class in the cross-entropy of the published configuration."""

SPLITS: dict[SequenceSplit, tuple[int, ...]] = {
    "train": (0, 1, 2, 3, 4, 5, 6, 7, 9, 10),
    "valid": (8,),
    "test": tuple(range(11, 22)),
}
"""The official sequences of each split; the labels of the test split are not public."""
