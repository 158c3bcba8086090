import pickle

import numpy as np
import pytest

from e3dsnn_jax.data.clouds import (
    PointCloud,
    ShapeDataset,
    check_cloud,
    check_index,
    labels_of,
    shuffle_labels,
    take_fraction,
    unit_normals,
)


class ListOfClouds:
    """The least that a dataset has to be: no `labels`."""

    class_names = ("a", "b", "c")

    def __init__(self, labels):
        self.clouds = [cloud(label=label, name=f"c{i}") for i, label in labels]

    def __len__(self):
        return len(self.clouds)

    def __getitem__(self, index):
        return self.clouds[index]


def cloud(points=None, normals=None, label=0, name="shelf/3.off"):
    if points is None:
        points = np.zeros((4, 3), np.float32)
    return PointCloud(np.asarray(points, np.float32), normals, label, name)


def dataset(*labels):
    return ListOfClouds(enumerate(labels))


def test_sound_clouds_pass():
    check_cloud(cloud())
    check_cloud(cloud(label=-1))
    check_cloud(cloud(normals=np.ones((4, 3), np.float32), label=2), num_classes=3)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (cloud(np.zeros((0, 3))), r"shelf/3.off: the cloud is empty"),
        (cloud(np.zeros((5, 2))), r"shelf/3.off: points have shape \(5, 2\)"),
        (cloud(np.zeros(6)), r"points have shape \(6,\), expected \(points, 3\)"),
        (
            cloud([[0, 0, 0], [1, np.nan, 0], [np.inf, 0, 0]]),
            r"shelf/3.off: 2 of 3 points are NaN or infinite, the first is point 1",
        ),
        (
            cloud(normals=np.zeros((3, 3), np.float32)),
            r"normals have shape \(3, 3\) but points have shape \(4, 3\)",
        ),
        (
            cloud(normals=np.full((4, 3), -np.inf, np.float32)),
            r"4 of 4 normals are NaN or infinite",
        ),
        (cloud(label=3), r"shelf/3.off: label 3 is outside \[0, 3\)"),
        (cloud(label=-1), r"label -1 is outside \[0, 3\), the range of the 3 classes"),
    ],
)
def test_broken_clouds_are_named(broken, message):
    with pytest.raises(ValueError, match=message):
        check_cloud(broken, num_classes=3)


def test_index_follows_sequences():
    assert check_index(np.int64(2), 3) == 2
    assert check_index(-1, 3) == 2
    for outside in (3, -4):
        with pytest.raises(IndexError, match=f"cloud {outside} of a dataset of 3"):
            check_index(outside, 3)


def test_unit_normals_scale_and_keep_zeros():
    normals = np.array([[0, 0, 0.99], [0.6, 0.82, 0], [0, 0, 0]], np.float32)
    unit = unit_normals(normals, "cup")
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(unit[0], [0, 0, 1])


def test_colours_are_not_taken_for_normals():
    for colour, length in ((128, 222), (0.5, 0.866)):
        colours = np.full((9, 3), colour, np.float32)
        colours[0] = 0, 0, 1
        with pytest.raises(ValueError, match=f"cup: 8 of 9 normals .* but {length}"):
            unit_normals(colours, "cup")


def test_labels_are_read_from_clouds_where_need_be():
    assert isinstance(dataset(0), ShapeDataset)
    np.testing.assert_array_equal(labels_of(dataset(2, 0, 1)), [2, 0, 1])


def test_fraction_keeps_the_share_of_every_class():
    whole = dataset(*[0] * 40, *[1] * 20, *[2] * 3)
    part = take_fraction(whole, 0.1, seed=5)
    assert part.class_names == whole.class_names
    np.testing.assert_array_equal(np.bincount(part.labels), [4, 2, 1])
    assert [c.label for c in part] == part.labels.tolist()
    assert list(part.indices) == sorted(set(part.indices))
    assert pickle.loads(pickle.dumps(part))[6].label == 2
    with pytest.raises(IndexError):
        part[len(part)]


def test_fractions_nest_repeat_and_depend_on_the_seed():
    whole = dataset(*[0, 1] * 100)
    small, large = take_fraction(whole, 0.1), take_fraction(whole, 0.5)
    assert set(small.indices) < set(large.indices)
    assert small.indices == take_fraction(whole, 0.1).indices
    assert small.indices != take_fraction(whole, 0.1, seed=1).indices
    assert take_fraction(whole, 1.0).indices == tuple(range(200))


def test_fraction_of_unlabelled_clouds():
    assert len(take_fraction(dataset(*[-1] * 10), 0.5)) == 5


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_fraction_outside_its_range(fraction):
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\]"):
        take_fraction(dataset(0), fraction)


def test_shuffled_labels_are_dealt_to_other_clouds_and_stay_the_same():
    before = np.repeat([0, 1, 2], 20)
    dataset = ListOfClouds(list(enumerate(before.tolist())))
    one, again, other = (shuffle_labels(dataset, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(labels_of(one), labels_of(again))
    assert (labels_of(one) != labels_of(other)).any()
    assert (labels_of(one) != before).mean() > 0.5
    np.testing.assert_array_equal(np.sort(labels_of(one)), before)
    assert one[7].label == labels_of(one)[7]
    assert one[-1].label == labels_of(one)[-1]
    np.testing.assert_array_equal(one[7].points, dataset[7].points)
    assert one.class_names == dataset.class_names
    with pytest.raises(IndexError):
        one[len(one)]
