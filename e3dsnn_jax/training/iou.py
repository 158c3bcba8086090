"""Scores of segmentation: intersection over union as the SemanticKITTI server counts.

Everything comes from one matrix of counts, which adds up over scans, so that a class is
scored over all its points and not scan by scan.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class SegmentationScores(NamedTuple):
    """Scores over all the points that were counted; fractions, not percent."""

    iou: Float[np.ndarray, " classes"]
    """Intersection over union of each class; 0 where the class occurs nowhere."""
    mean_iou: float
    """Mean over all classes, absent ones as 0: the number of the benchmark."""
    present: Bool[np.ndarray, " classes"]
    """Classes that occur among the labels or the predictions of labelled points."""
    mean_iou_present: float
    """Mean over the classes that are present."""
    recall: Float[np.ndarray, " classes"]
    """Share of each class's points that are found; 0 where the class has none."""
    mean_recall: float
    """Mean over all classes, those without points as 0."""
    overall_accuracy: float
    """Share of the labelled points whose predicted class is the true one."""
    accuracy_of_predicted: float
    """The same among points for which a class was predicted, the server's accuracy."""
    num_points: int
    """Labelled points that were counted."""


def count_points(
    labels: Int[np.ndarray, " points"],
    predictions: Int[np.ndarray, " predictions"],
    *,
    num_classes: int,
) -> Int[np.ndarray, "ids ids"]:
    """Counts of (true, predicted), with points that have no class in row and column 0.

    Args:
      labels: True classes from 0; -1 where a point has none.
      predictions: Predicted classes from 0; -1 where none is predicted.
      num_classes: Number of classes.

    Returns:
      A matrix with a row for each true class; class c is row and column c + 1.

    Raises:
      ValueError: If the two differ in length, or a class is not in [-1, num_classes).
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    for name, values in (("label", labels), ("prediction", predictions)):
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < -1 or high >= num_classes:
            raise ValueError(
                f"{name} {low if low < -1 else high} is neither -1 (none) nor one of "
                f"{num_classes} classes: was the model trained on another list of them?"
            )
    ids = num_classes + 1
    pairs = (labels.astype(np.int64) + 1) * ids + (predictions + 1)
    return np.bincount(pairs, minlength=ids**2).reshape(ids, ids)


def segmentation_scores(counts: Int[np.ndarray, "ids ids"]) -> SegmentationScores:
    """Scores by the rules of the official evaluation, and others beside them.

    Points without a label count nowhere, whatever was predicted for them. A labelled
    point for which nothing was predicted is missed by its class, and is no false
    positive of any.

    Args:
      counts: `count_points`, summed over all scans.

    Raises:
      ValueError: If no point has a label.

    Source: `np_ioueval` of semantic-kitti-api, whose accuracy divides by the points
    with a predicted class; the other numbers as Pointcept logs them.
    """
    labelled = counts[1:]
    hits = np.diagonal(labelled[:, 1:])
    actual, predicted = labelled.sum(axis=1), labelled[:, 1:].sum(axis=0)
    number = int(actual.sum())
    if number == 0:
        raise ValueError(
            f"no score without labelled points: {int(counts.sum())} points were "
            "counted and none has a class"
        )
    union = actual + predicted - hits
    iou, recall = _ratio(hits, union), _ratio(hits, actual)
    present = union > 0
    return SegmentationScores(
        iou=iou,
        mean_iou=float(iou.mean()),
        present=present,
        mean_iou_present=float(iou[present].mean()),
        recall=recall,
        mean_recall=float(recall.mean()),
        overall_accuracy=float(hits.sum() / number),
        accuracy_of_predicted=float(hits.sum() / max(1, int(predicted.sum()))),
        num_points=number,
    )


def _ratio(
    part: Int[np.ndarray, " classes"], whole: Int[np.ndarray, " classes"]
) -> Float[np.ndarray, " classes"]:
    """Part over whole, 0 where the whole is 0."""
    return part / np.maximum(whole, 1)
