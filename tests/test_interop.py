from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.interop import (
    convert,
    export_state,
    import_published,
    import_state,
    load_published,
    read_weights,
    to_published,
    write_weights,
)
from e3dsnn_jax.parameter_names import architecture_of, flatten_variables, list_entries
from e3dsnn_jax.pth import read_pth

GOLDEN = Path(__file__).parent / "golden"
TINY = Architecture(6, 4, (4, 6, 8, 8), (1, 2, 1, 1))
# Two stages of equal width: a matrix that is not transposed would fit as well.
DECODER = Architecture(3, 4, (6, 8), (1, 2), (7, 7))


def make_state(rng, architecture) -> dict[str, np.ndarray]:
    """A published state dict of a small network, counters included."""
    found: dict[str, np.ndarray] = {}
    for entry in list_entries(architecture, 5):
        found[entry.published] = rng.normal(size=entry.published_shape).astype("f4")
        if entry.published.endswith("running_var"):
            counter = entry.published.replace("running_var", "num_batches_tracked")
            found[counter] = np.array(17)
    return found


@pytest.fixture
def state(rng):
    return make_state(rng, Architecture(3, 4, (6, 8), (1, 2)))


@pytest.fixture
def decoder_state(rng):
    return make_state(rng, DECODER)


def equal_trees(first, second) -> bool:
    first, second = flatten_variables(first), flatten_variables(second)
    return first.keys() == second.keys() and all(
        np.array_equal(array, second[name]) and array.dtype == second[name].dtype
        for name, array in first.items()
    )


def test_a_published_checkpoint_matches_completely():
    variables, report = import_published(GOLDEN / "cls_tiny_seed0.pth")
    assert report.complete
    assert (report.architecture, report.num_classes) == (TINY, 5)
    assert len(report.matched) == 112
    assert len(report.ignored) == 22
    assert all(name.endswith("num_batches_tracked") for name in report.ignored)
    assert report.notes == ()
    assert architecture_of(variables) == (TINY, 5)
    lines = str(report).splitlines()
    assert lines[0].endswith(
        "cls_tiny_seed0.pth: 112 of 112 arrays matched, an unnamed variant (6 input "
        "channels, embed 4, stages 4-6-8-8, depths 1-2-1-1; 5 classes)"
    )
    assert lines[1].startswith("  ignored 22: stem.1.num_batches_tracked, ")
    assert lines[1].endswith(" and 16 more")
    assert len(lines) == 2


def test_round_trip_of_a_state_dict_is_bit_exact(state):
    variables, _ = import_state(state)
    exported = export_state(variables, num_batches_tracked=17)
    assert list(exported) == list(state)  # torch's order, counters after variances
    for name, array in state.items():
        assert exported[name].dtype == array.dtype
        np.testing.assert_array_equal(exported[name], array)
    assert export_state(variables)["stem.1.num_batches_tracked"] == 0


def test_imported_arrays_are_our_own(state):
    variables, _ = import_state(state)
    for array in flatten_variables(variables).values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not any(np.shares_memory(array, theirs) for theirs in state.values())


def test_part_of_a_tree_is_renamed(state):
    variables, report = import_state(state)
    size, classes = report.architecture, report.num_classes
    params = to_published({"params": variables["params"]}, size, num_classes=classes)
    assert params.keys() == {
        name
        for name in state
        if not name.rsplit(".")[-1].startswith(("running", "num"))
    }
    stats = {"batch_stats": variables["batch_stats"]}
    stats = to_published(stats, size, num_classes=classes)
    assert {name.rsplit(".")[-1] for name in stats} == {"running_mean", "running_var"}


def test_another_variant_is_refused_by_name(state):
    with pytest.raises(ValueError, match="was asked for") as error:
        import_state(state, VARIANTS["S"], source="a.pth")
    assert str(error.value) == (
        "a.pth: holds an unnamed variant (3 input channels, embed 4, stages 6-8, "
        "depths 1-2; 5 classes), but variant S (6 input channels, embed 24, stages "
        "24-48-96-160, depths 1-1-1-1) was asked for"
    )


def test_missing_left_over_and_misshapen_arrays_are_reported(state):
    del state["stem.4.bias"]
    state["seg_head.weight"] = np.zeros((2, 2), np.float32)
    state["enc.0.down.2.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="do not fit the network") as error:
        import_state(state, source="a.pth")
    lines = str(error.value).splitlines()
    assert "a.pth: 70 of 72 arrays matched" in lines[1]
    assert lines[2] == "  missing 1: stem.4.bias"
    assert lines[3] == "  left over 1: seg_head.weight"
    assert lines[5] == "  shape: enc.0.down.2.weight is (7,) but (6,) is needed"


def test_a_head_of_another_size_keeps_that_of_the_target(state, rng):
    target, _ = import_state(state)
    smaller = {name: rng.normal(size=a.shape).astype("f4") for name, a in state.items()}
    smaller["final.weight"] = np.ones((2, 1, 1, 1, 8), np.float32)
    smaller["final.bias"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"final\.bias is \(2,\) but \(5,\) is needed"):
        import_state(smaller, target)
    result, report = import_state(smaller, target, strict=False)
    assert [item.name for item in report.mismatched] == ["final.weight", "final.bias"]
    assert equal_trees(result["params"]["head"], target["params"]["head"])
    smaller["final.weight"], smaller["final.bias"] = (
        state["final.weight"],
        state["final.bias"],
    )
    expected, _ = import_state(smaller)
    assert equal_trees(result["params"]["backbone"], expected["params"]["backbone"])
    assert equal_trees(result["batch_stats"], expected["batch_stats"])
    for target in (None, report.architecture):
        with pytest.raises(ValueError, match="needs variables as its target"):
            import_state(state, target, strict=False)


def test_the_order_of_spconv1_is_converted_with_a_note(state):
    expected, _ = import_state(state)
    old = {
        name: array.transpose(1, 2, 3, 4, 0) if array.ndim == 5 else array
        for name, array in state.items()
    }
    old["final.weight"] = state["final.weight"].reshape(1, 1, 1, 8, 5)
    variables, report = import_state(old)
    assert equal_trees(variables, expected)
    assert report.notes == ("kernels converted from the weight order of spconv 1.x",)
    assert str(report).endswith("\n  note: " + report.notes[0])


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_real_types_become_float32_with_a_note(state, dtype):
    state["stem.0.weight"] = state["stem.0.weight"].astype(dtype)
    variables, report = import_state(state)
    assert report.notes == (f"converted to float32 from {np.dtype(dtype).name}",)
    exported = export_state(variables)["stem.0.weight"]
    np.testing.assert_array_equal(exported, state["stem.0.weight"].astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.array([1, np.nan, np.inf, 0], "f4"),
            "holds 2 values of 4 that are not fin",
        ),
        (np.full(4, 1e300), "holds 4 values of 4 that are not finite"),
        (np.zeros(4, np.int64), "holds int64, no real numbers"),
    ],
)
def test_values_that_are_no_weights(state, array, message):
    state["stem.1.bias"] = array
    with pytest.raises(ValueError, match=rf"a\.pth: stem\.1\.bias {message}"):
        import_state(state, source="a.pth")


def test_weights_files_are_converted_both_ways(tmp_path):
    source = GOLDEN / "cls_tiny_seed0.pth"
    variables = read_weights(source)
    report = convert(source, tmp_path / "a.npz")
    assert report.source == str(source)
    assert equal_trees(read_weights(tmp_path / "a.npz"), variables)
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive.files) == set(flatten_variables(variables))
    report = convert(tmp_path / "a.npz", tmp_path / "b.pth")
    assert (report.source, report.complete) == (str(tmp_path / "a.npz"), True)
    assert equal_trees(read_weights(tmp_path / "b.pth"), variables)
    content = read_pth(tmp_path / "b.pth")
    assert content["epoch"] == 0
    assert list(content["state_dict"]) == list(read_pth(source)["state_dict"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.pth"]


def test_device_arrays_are_written(tmp_path, state):
    variables, _ = import_state(state)
    on_device = {
        name: jnp.asarray(array) for name, array in flatten_variables(variables).items()
    }
    on_device = traverse_util.unflatten_dict(on_device, sep="/")
    for name in ("a.npz", "a.pth"):
        write_weights(on_device, tmp_path / name)
        assert equal_trees(read_weights(tmp_path / name), variables)


def test_weights_files_that_are_refused(tmp_path, state):
    variables, _ = import_state(state)
    with pytest.raises(
        ValueError, match=r"is named \.pth .* or \.npz .*, not '\.ckpt'"
    ):
        write_weights(variables, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.h5: a weights file is named"):
        read_weights(tmp_path / "a.h5")
    for name in ("a.npz", "a.pth"):
        with pytest.raises(FileNotFoundError, match=name):
            read_weights(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            write_weights(variables, tmp_path / "none" / name)
        write_weights(variables, tmp_path / name)
        with pytest.raises(ValueError, match="would be overwritten; name another"):
            convert(tmp_path / name, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros(3)}, "stem/unit0/conv/kernel must have 3 axes, got None"),
        ({"params/x": np.zeros(3, int)}, "params/x holds int64, no real numbers"),
        ({"params/x": np.full(3, np.nan)}, "params/x holds 3 values of 3 that are not"),
        ({"x": np.array([None])}, "Object arrays cannot be loaded"),
        ({"x": np.zeros(1), "x/y": np.zeros(1)}, "kernel must have 3 axes"),
    ],
)
def test_arrays_that_are_no_classifier(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(path)
    assert str(error.value).startswith(f"{path}: no weights of a network: ")


def test_a_published_segmentation_checkpoint_matches_completely():
    path = GOLDEN / "seg_tiny_seed0.pth"
    variables, report = import_published(path)
    assert report.complete
    size = Architecture(4, 4, (4, 6, 8, 8), (1, 2, 1, 1), (6, 6, 8, 8))
    assert (report.architecture, report.num_classes) == (size, 5)
    assert architecture_of(variables) == (size, 5)
    assert len(report.matched) + len(report.ignored) == len(load_published(path))
    first_line = str(report).splitlines()[0]
    assert first_line.endswith(
        "180 of 180 arrays matched, a segmentation network (4 input channels, embed 4, "
        "stages 4-6-8-8, depths 1-2-1-1, decoder 6-6-8-8; 5 classes)"
    )
    parameters = flatten_variables(variables["params"]).values()
    assert sum(array.size for array in parameters) == 22_791


def test_round_trip_of_a_segmentation_network_is_bit_exact(tmp_path, decoder_state):
    variables, report = import_state(decoder_state)
    assert report.architecture == DECODER
    exported = export_state(variables, num_batches_tracked=17)
    assert list(exported) == list(decoder_state)
    for name, array in decoder_state.items():
        np.testing.assert_array_equal(exported[name], array)
    for name in ("a.npz", "a.pth"):
        write_weights(variables, tmp_path / name)
        assert equal_trees(read_weights(tmp_path / name), variables)
    # Torch's linear layer multiplies by the transpose of what it keeps.
    linear = variables["params"]["decoder"]["stage1"]["fuse1"]["conv"]["kernel"]
    np.testing.assert_array_equal(linear, decoder_state["dec.1.fuse.4.weight"].T)
    head = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(
        head, decoder_state["final.weight"].ravel().reshape(7, 5)
    )


def test_the_order_of_the_published_segmentation_file_is_kept(tmp_path):
    path = GOLDEN / "seg_tiny_seed0.pth"
    write_weights(read_weights(path), tmp_path / "a.pth")
    ours, theirs = (read_pth(name)["state_dict"] for name in (tmp_path / "a.pth", path))
    assert list(ours) == list(theirs)


def test_a_segmentation_network_in_the_order_of_spconv1_is_converted(decoder_state):
    expected, _ = import_state(decoder_state)
    old = {
        name: array.transpose(1, 2, 3, 4, 0) if array.ndim == 5 else array
        for name, array in decoder_state.items()
    }
    old["final.weight"] = decoder_state["final.weight"].reshape(1, 1, 1, 7, 5)
    variables, report = import_state(old)
    assert equal_trees(variables, expected)
    assert report.notes == ("kernels converted from the weight order of spconv 1.x",)


def test_decoders_that_do_not_fit_are_named(decoder_state):
    variables, _ = import_state(decoder_state)
    with pytest.raises(ValueError, match=r"holds a segmentation network .* variant T"):
        import_state(decoder_state, VARIANTS["T"])
    cut = dict(decoder_state)
    del cut["dec.1.up.1.weight"]
    with pytest.raises(ValueError, match=r"a\.pth: dec\.1\.up\.1\.weight is missing"):
        import_state(cut, source="a.pth")
    cut = decoder_state | {"dec.0.fuse.1.weight": np.zeros((7, 14), np.float32)}
    message = r"shape: dec\.0\.fuse\.1\.weight is \(7, 14\) but \(7, 11\) is needed"
    with pytest.raises(ValueError, match=message):
        import_state(cut)
    del variables["params"]["decoder"]["stage1"]
    with pytest.raises(ValueError, match="stage1/up/conv/kernel must have 3 axes"):
        architecture_of(variables)
    more = decoder_state | {"dec.2.up.1.weight": np.zeros((7, 2, 2, 2, 7), np.float32)}
    with pytest.raises(ValueError, match=r"left over 1: dec\.2\.up\.1\.weight"):
        import_state(more)
