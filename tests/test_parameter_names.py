import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.parameter_names import (
    architecture_of,
    describe,
    flatten_variables,
    infer_architecture,
    list_entries,
    to_our_layout,
    to_published_layout,
)
from e3dsnn_jax.pyramid import build_pyramid

SMALL = Architecture(5, 4, (6, 8), (2, 0))


def published_shapes(architecture: Architecture, num_classes: int):
    # Views of one zero: shapes without memory, so that the largest variant is cheap.
    return {
        entry.published: np.broadcast_to(np.float32(0), entry.published_shape)
        for entry in list_entries(architecture, num_classes)
    }


@pytest.mark.parametrize("architecture", [SMALL, VARIANTS["T"]])
def test_entries_are_the_arrays_of_the_network(architecture):
    levels = build_pyramid(
        np.array([[0, 1, 2, 3]], np.int32), num_levels=architecture.num_levels
    )
    levels = jax.tree.map(jnp.asarray, levels)
    model = Classifier(architecture, 40)
    features = jnp.zeros((len(levels[0].coords), architecture.in_channels))
    variables = jax.eval_shape(
        lambda key: model.init(key, features, levels, num_clouds=1, train=False),
        jax.random.key(0),
    )
    found = {name: leaf.shape for name, leaf in flatten_variables(variables).items()}
    entries = list_entries(architecture, 40)
    assert found == {entry.ours: entry.our_shape for entry in entries}
    assert architecture_of(variables) == (architecture, 40)


def test_names_of_each_kind():
    names = {entry.published: entry.ours for entry in list_entries(SMALL, 3)}
    block = "params/backbone/stage0/block1"
    assert names["stem.3.weight"] == "params/backbone/stem/unit1/conv/kernel"
    assert names["stem.7.bias"] == "params/backbone/stem/unit2/norm/bias"
    assert names["enc.1.down.1.weight"] == "params/backbone/stage1/down/conv/kernel"
    assert names["enc.0.blocks.1.block.2.weight"] == f"{block}/unit0/norm/scale"
    assert names["enc.0.blocks.1.voxel_block.1.weight"] == f"{block}/unit1/conv/kernel"
    assert (
        names["enc.0.blocks.1.voxel_block.5.running_var"]
        == "batch_stats/backbone/stage0/block1/unit2/norm/var"
    )
    assert names["final.weight"] == "params/head/kernel"
    assert not any(name.startswith("enc.1.blocks") for name in names)


def test_layouts():
    entries = {entry.published: entry for entry in list_entries(SMALL, 3)}
    kernel = entries["enc.0.down.1.weight"]
    theirs = np.arange(6 * 8 * 4, dtype=np.float32).reshape(6, 2, 2, 2, 4)
    ours = to_our_layout(theirs, kernel)
    for k0, k1, k2 in np.ndindex(2, 2, 2):
        offset = (k0 * 2 + k1) * 2 + k2
        np.testing.assert_array_equal(ours[offset], theirs[:, k0, k1, k2].T)
    np.testing.assert_array_equal(to_published_layout(ours, kernel), theirs)
    # The head is read from the same buffer as [in, classes], without a transposition.
    head = entries["final.weight"]
    theirs = np.arange(24, dtype=np.float32).reshape(3, 1, 1, 1, 8)
    ours = to_our_layout(theirs, head)
    np.testing.assert_array_equal(ours, np.arange(24).reshape(8, 3))
    np.testing.assert_array_equal(to_published_layout(ours, head), theirs)


@pytest.mark.parametrize("architecture", [SMALL, *VARIANTS.values()])
def test_shapes_tell_the_architecture(architecture):
    state = published_shapes(architecture, 40)
    assert infer_architecture(state, source="a.pth") == (architecture, 40)
    del state["final.weight"]
    assert infer_architecture(state, source="a.pth") == (architecture, None)


def test_a_width_that_cannot_be_told():
    state = published_shapes(SMALL, 3)
    del state["enc.0.down.1.weight"]
    with pytest.raises(ValueError, match=r"a\.pth: enc\.0\.down\.1\.weight is missing"):
        infer_architecture(state, source="a.pth")
    state["enc.0.down.1.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"down\.1\.weight has shape \(3,\), and only"):
        infer_architecture(state, source="a.pth")
    state = published_shapes(SMALL, 3) | {"enc.99999999999.blocks.8.x": np.zeros(1)}
    with pytest.raises(ValueError, match=r"enc\.2\.down\.1\.weight is missing"):
        infer_architecture(state, source="a.pth")


def test_descriptions():
    assert describe(VARIANTS["S"], 40) == (
        "variant S (6 input channels, embed 24, stages 24-48-96-160, depths 1-1-1-1; "
        "40 classes)"
    )
    assert describe(SMALL) == (
        "an unnamed variant (5 input channels, embed 4, stages 6-8, depths 2-0)"
    )


def variables_like(architecture: Architecture, num_classes: int):
    flat = {
        e.ours: np.zeros(e.our_shape) for e in list_entries(architecture, num_classes)
    }
    tree: dict = {}
    for name, array in flat.items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    return tree


def test_variables_tell_the_architecture_or_what_is_wrong():
    variables = variables_like(SMALL, 3)
    assert architecture_of(variables) == (SMALL, 3)
    variables["params"]["head"]["bias"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"head/bias has shape \(4,\), but .* \(3,\)"):
        architecture_of(variables)
    variables = variables_like(SMALL, 3)
    del variables["batch_stats"]["backbone"]["stem"]["unit1"]["norm"]["var"]
    with pytest.raises(ValueError, match=r"unit1/norm/var has shape None, but an unn"):
        architecture_of(variables)
    variables = variables_like(SMALL, 3)
    variables["params"]["extra"] = np.zeros(2)
    with pytest.raises(ValueError, match=r"params/extra has shape \(2,\), but .* None"):
        architecture_of(variables)
    with pytest.raises(ValueError, match="kernel must have 3 axes, got None"):
        architecture_of({"params": {}})
