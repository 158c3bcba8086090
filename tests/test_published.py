from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from e3dsnn_jax.pth import write_pth
from e3dsnn_jax.published import (
    check_is_network,
    from_spconv1,
    has_decoder,
    load_published,
)

GOLDEN = Path(__file__).parent / "golden"


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    named = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return {name: np.zeros(shape, np.float32) for name, shape in named.items()}


CLASSIFIER = zeros(
    stem__0__weight=(4, 3, 3, 3, 6),
    enc__0__down__1__weight=(4, 2, 2, 2, 4),
    final__weight=(5, 1, 1, 1, 4),
)
# The public kitti.pth: conv, BatchNorm, ReLU, in the weight order of spconv 1.x.
KITTI = zeros(
    global_step=(1,),
    backbone_3d__conv_input__0__weight=(3, 3, 3, 4, 16),
    backbone_3d__conv_input__1__weight=(16,),
    backbone_3d__conv1__0__0__weight=(3, 3, 3, 16, 16),
    backbone_3d__conv1__0__1__weight=(16,),
    backbone_3d__conv2__0__0__weight=(3, 3, 3, 16, 32),
    backbone_3d__conv_out__0__weight=(3, 1, 1, 64, 128),
    backbone_2d__blocks__0__1__weight=(64, 256, 3, 3),
    dense_head__conv_cls__weight=(2, 256, 1, 1),
)


@pytest.mark.parametrize("key", ["state_dict", "model_state", None])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_containers_and_prefixes(tmp_path, key, prefix):
    state = OrderedDict((prefix + name, array) for name, array in CLASSIFIER.items())
    content = state if key is None else {"epoch": 2, key: state, "optimizer": {}}
    write_pth(content, tmp_path / "a.pth")
    loaded = load_published(tmp_path / "a.pth")
    assert list(loaded) == list(CLASSIFIER)
    for name, array in CLASSIFIER.items():
        np.testing.assert_array_equal(loaded[name], array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, no state dict"),
        ({}, "is no dict of arrays, or an empty one"),
        ({"state_dict": 3}, "its 'state_dict' is no dict of arrays"),
        (
            {"epoch": 1, "model": {}},
            r"the file \(no 'state_dict', 'model_state'\) is no state dict: 2 of its 2 "
            r"entries are not arrays \('epoch', 'model'\)",
        ),
        (
            {"model_state": {str(number): number for number in range(9)}},
            "its 'model_state' is no state dict: 9 of its 9 .*'4', \\.\\.\\.",
        ),
        (
            {"module.a": np.zeros(1), "a": np.ones(1)},
            "'a' is there with and without 'module.'",
        ),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    write_pth(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_published(path)
    assert str(path) in str(error.value)


def test_our_networks_are_recognised():
    check_is_network(CLASSIFIER, source="a.pth")
    segmenter = CLASSIFIER | zeros(dec__0__up__1__weight=(4, 2, 2, 2, 4))
    check_is_network(segmenter, source="a.pth")
    assert has_decoder(segmenter)
    assert not has_decoder(CLASSIFIER)


def test_the_public_detector_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="non-spiking detector") as error:
        check_is_network(KITTI, source="a.pth")
    message = str(error.value)
    assert message.startswith("a.pth: ")
    assert "as in the public kitti.pth" in message
    assert "backbone_3d.conv1.0.0.weight (3, 3, 3, 16, 16)" in message
    assert "weight order of spconv 1.x" in message
    modern = dict(KITTI)
    for name, array in modern.items():
        if array.ndim == 5:
            modern[name] = array.transpose(4, 0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"non-spiking detector.*order of spconv 2\.x"):
        check_is_network(modern, source="a.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            zeros(backbone_3d__conv1__0__1__weight=(16, 3, 3, 3, 16)),
            r"weights of a detector \(backbone_3d\.conv1\.0\.1\.weight",
        ),
        (
            zeros(roi_head__shared_fc_layer__1__weight=(8, 8)),
            r"weights of a detector \(roi_head\.",
        ),
        (
            zeros(conv__weight=(3, 3)),
            r"no stem\.0\.weight among its 1 arrays \('conv\.weight'\)",
        ),
    ],
)
def test_other_networks_are_named(state, message):
    with pytest.raises(ValueError, match=message):
        check_is_network(state, source="a.pth")


@pytest.mark.parametrize("name", ["bev_backbone_small", "roi_head_small"])
def test_published_detectors_are_named(shared, name):
    state = load_published(shared / "fixtures" / f"{name}_seed0.pth")
    with pytest.raises(ValueError, match="weights of a detector"):
        check_is_network(state, source="a.pth")


def test_spconv1_order_is_converted(rng):
    new = {
        "stem.0.weight": rng.normal(size=(4, 3, 3, 3, 6)),
        "stem.3.weight": rng.normal(size=(3, 3, 3, 3, 3)),
        "enc.0.down.1.weight": rng.normal(size=(5, 2, 2, 2, 4)),
        "stem.1.bias": rng.normal(size=4),
    }
    old = {
        name: array.transpose(1, 2, 3, 4, 0) if array.ndim == 5 else array
        for name, array in new.items()
    }
    # spconv 1.x multiplied by its 1x1x1 kernel as [in, out]; 2.x views the buffer so.
    head = rng.normal(size=(5, 7))
    old["final.weight"] = head.reshape(1, 1, 1, 5, 7)
    result, converted = from_spconv1(old, source="a.pth")
    assert converted
    for name, array in new.items():
        np.testing.assert_array_equal(result[name], array)
    assert result["final.weight"].shape == (7, 1, 1, 1, 5)
    np.testing.assert_array_equal(result["final.weight"].reshape(5, 7), head)


def test_the_present_order_is_left_alone():
    result, converted = from_spconv1(CLASSIFIER, source="a.pth")
    assert not converted
    assert all(result[name] is array for name, array in CLASSIFIER.items())


def test_a_mixture_of_orders_is_refused():
    state = CLASSIFIER | zeros(enc__0__down__1__weight=(2, 2, 2, 4, 5))
    with pytest.raises(ValueError, match=r"1 kernels are in the order of spconv 1\.x"):
        from_spconv1(state, source="a.pth")
