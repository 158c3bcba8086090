"""Counts and scores of segmentation against sets of points, and worked examples."""

import numpy as np
import pytest

from e3dsnn_jax.training.iou import count_points, segmentation_scores


def scores_by_sets(labels, predictions, num_classes):
    """IoU and recall of each class, from sets of labelled points."""
    kept = [i for i, label in enumerate(labels) if label >= 0]
    iou, recall, present = [], [], []
    for c in range(num_classes):
        actual = {i for i in kept if labels[i] == c}
        found = {i for i in kept if predictions[i] == c}
        union = actual | found
        present.append(bool(union))
        iou.append(len(actual & found) / len(union) if union else 0.0)
        recall.append(len(actual & found) / len(actual) if actual else 0.0)
    return np.array(iou), np.array(recall), np.array(present)


@pytest.mark.parametrize("num_classes", [1, 4, 19])
def test_scores_are_those_of_sets(rng, num_classes):
    labels = rng.integers(-1, num_classes, size=300)
    predictions = rng.integers(-1, num_classes, size=300)
    labels[labels == 2] = -1  # one class without points, though it is predicted
    counts = count_points(labels, predictions, num_classes=num_classes)
    scores = segmentation_scores(counts)
    iou, recall, present = scores_by_sets(labels, predictions, num_classes)
    np.testing.assert_allclose(scores.iou, iou)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_array_equal(scores.present, present)
    assert scores.mean_iou == pytest.approx(iou.mean())
    assert scores.mean_iou_present == pytest.approx(iou[present].mean())
    assert scores.mean_recall == pytest.approx(recall.mean())
    real = labels >= 0
    hit = labels[real] == predictions[real]
    assert scores.overall_accuracy == pytest.approx(hit.mean())
    predicted = predictions[real] >= 0
    assert scores.accuracy_of_predicted == pytest.approx(hit[predicted].mean())
    assert scores.num_points == real.sum()


def test_a_worked_example():
    labels = np.array([0, 0, 0, 1, 1, -1, -1])
    predictions = np.array([0, 0, 1, 1, -1, 3, 2])
    counts = count_points(labels, predictions, num_classes=4)
    expected = [
        [0, 0, 0, 1, 1],  # no class: what is predicted here counts nowhere
        [0, 2, 1, 0, 0],
        [1, 0, 1, 0, 0],  # one point of class 1 has no prediction
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(counts, expected)
    scores = segmentation_scores(counts)
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 3, 0, 0])
    assert scores.mean_iou == pytest.approx(1 / 4)
    assert scores.mean_iou_present == pytest.approx(1 / 2)
    assert scores.overall_accuracy == 3 / 5
    assert scores.accuracy_of_predicted == 3 / 4


def test_counts_of_scans_add_up_and_their_scores_do_not(rng):
    labels, predictions = rng.integers(-1, 5, size=(2, 200))
    whole = count_points(labels, predictions, num_classes=5)
    parts = [
        count_points(labels[rows], predictions[rows], num_classes=5)
        for rows in (slice(0, 20), slice(20, 200))
    ]
    np.testing.assert_array_equal(whole, parts[0] + parts[1])
    means = [segmentation_scores(part).mean_iou for part in parts]
    assert np.mean(means) != pytest.approx(segmentation_scores(whole).mean_iou)


def test_small_integers_do_not_overflow():
    labels = np.full(70_000, 18, np.int8)
    counts = count_points(labels, labels, num_classes=19)
    assert counts[19, 19] == 70_000
    assert segmentation_scores(counts).iou[18] == 1


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 4], [0, 1], "label 4 is neither -1 .* one of 4 classes"),
        ([0, -2], [0, 1], "label -2 is neither"),
        ([0, 3], [0, 7], "prediction 7 is neither"),
        ([0, 3, 1], [0, 3], "3 labels but 2 predictions"),
    ],
)
def test_unknown_classes_and_lengths_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        count_points(np.array(labels), np.array(predictions), num_classes=4)


def test_no_score_without_labelled_points():
    none = np.full(6, -1)
    counts = count_points(none, np.arange(6), num_classes=6)
    with pytest.raises(ValueError, match="6 points were counted and none has a class"):
        segmentation_scores(counts)


def test_nothing_predicted_is_a_score_of_zero():
    counts = count_points(np.array([0, 1]), np.array([-1, -1]), num_classes=2)
    scores = segmentation_scores(counts)
    assert (scores.mean_iou, scores.overall_accuracy) == (0, 0)
    assert scores.accuracy_of_predicted == 0
