"""SemanticKITTI's labels: the maps, and the scores by both published rules."""

import numpy as np

from e3dsnn_jax.scans.label_map import to_classes, to_ids
from e3dsnn_jax.scans.scan import IGNORED
from e3dsnn_jax.scans.semantic_kitti import split_labels
from e3dsnn_jax.scans.semantic_kitti_classes import CLASS_NAMES, CLASS_WEIGHTS, LABELS
from e3dsnn_jax.training.iou import count_points, segmentation_scores
from experiments.evaluation.contract import Case


def compute_labels(case: Case) -> dict[str, np.ndarray]:
    """Label maps and scores of stored predictions for stored labels."""
    number = len(CLASS_NAMES)
    ids, _ = split_labels(case.inputs["raw"])
    classes = to_classes(ids, LABELS, name="raw")
    predictions = case.inputs["pred"].astype(np.int64)
    known = np.flatnonzero(LABELS.class_of_id >= IGNORED)
    every = np.arange(number)
    # Differs from reference: its inverse map sends -1 to -1, which no label file can
    # store; ours writes 0, unlabelled. The table is compared as it is published.
    pairs = np.stack([every, LABELS.id_of_class], axis=1)
    inverse = np.concatenate([np.full((1, 2), IGNORED), pairs])
    counts = count_points(classes, predictions, num_classes=number)
    # The server numbers classes from 1 and has 0 for none.
    gaps = count_points(
        classes,
        case.inputs["pred_api_with_unlabeled"].astype(np.int64) - 1,
        num_classes=number,
    )
    scores = segmentation_scores(counts)
    intersection = np.diagonal(counts)[1:]
    target, predicted = counts[1:].sum(axis=1), counts[1:, 1:].sum(axis=0)
    found = {
        "learning_map": np.stack([known, LABELS.class_of_id[known]], axis=1),
        "learning_map_inv": inverse,
        "class_weights": np.array(CLASS_WEIGHTS),
        "class_names": np.array(CLASS_NAMES),
        "segment": classes,
        "submit": to_ids(predictions, LABELS),
        "confusion": counts.T,
        "api2_confusion": gaps.T,
        "pc_intersection": intersection,
        "pc_union": target + predicted - intersection,
        "pc_target": target,
        "pc_iou": scores.iou,
        "pc_acc_class": scores.recall,
        "pc_miou": np.array(scores.mean_iou),
        "pc_macc": np.array(scores.mean_recall),
        "pc_allacc": np.array(scores.overall_accuracy),
    }
    for name, matrix in (("api", counts), ("api2", gaps)):
        scores = segmentation_scores(matrix)
        # Its entry 0 is 0 by construction and means nothing.
        found[f"{name}_iou"] = np.append(0.0, scores.iou)
        found[f"{name}_miou"] = np.array(scores.mean_iou)
        found[f"{name}_acc"] = np.array(scores.accuracy_of_predicted)
    ends = np.cumsum(case.inputs["lengths"])
    for scan, end in enumerate(ends):
        rows = slice(end - case.inputs["lengths"][scan], end)
        counts = count_points(classes[rows], predictions[rows], num_classes=number)
        found[f"scan{scan}_iou_present_mean"] = np.array(
            segmentation_scores(counts).mean_iou_present
        )
    return found
