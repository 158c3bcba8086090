"""The SVCCA tutorial: its files, its numbers against brute force, and the command."""

import gzip
import json
import pickle
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import activations, mnist, svcca_tutorial
from experiments.activations import Pair
from tests.layers_of_activations import related
from tests.oracles import cca_by_qr, centered, pwcca_by_definition


class Executed:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_mnist(path: Path, rng: np.random.Generator, images: int = 100) -> Path:
    """Writes an mnist.npz of images whose brightness tells the digit."""
    labels = rng.integers(0, 10, (2, images), dtype=np.uint8)
    pixels = rng.integers(0, 20, (2, images, 3, 4)) + 25 * labels[..., None, None]
    pixels = pixels.astype(np.uint8)
    np.savez(
        path,
        x_train=pixels[0],
        y_train=labels[0],
        x_test=pixels[1],
        y_test=labels[1],
    )
    return path


def test_measures_are_those_of_brute_force(rng):
    x, y = related(rng, datapoints=200, x=24, y=22)
    found, coefficients = svcca_tutorial.measure(Pair("made up", x, y))
    expected = cca_by_qr(x, y)
    np.testing.assert_allclose(coefficients, expected, atol=1e-9)
    assert found["mean_cca"] == pytest.approx(expected.mean())
    assert found["top_20"] == pytest.approx(expected[:20].mean())
    # The layer with fewer neurons weighs.
    assert found["pwcca"] == pytest.approx(pwcca_by_definition(x, y)[1])
    cut, shares = {"20": [], "99": []}, []
    for layer in (x, y):
        left, values, _ = np.linalg.svd(centered(layer), full_matrices=False)
        enough = np.cumsum(values**2) >= 0.99 * (values**2).sum()
        for name, count in (("20", 20), ("99", int(enough.argmax()) + 1)):
            cut[name].append(left[:, :count] * values[:count])
        shares.append([(values**p)[:20].sum() / (values**p).sum() for p in (2, 1)])
    assert cut["99"][0].shape[1] != 20
    assert found["svcca_20"] == pytest.approx(cca_by_qr(*cut["20"]).mean())
    assert found["svcca_99"] == pytest.approx(cca_by_qr(*cut["99"]).mean())
    assert [found["explained_20"], found["singular_sum_20"]] == pytest.approx(shares[0])


def test_a_constant_layer_is_similar_to_nothing(rng):
    x, y = related(rng, datapoints=100, x=10, y=10)
    found, _ = svcca_tutorial.measure(Pair("constant", np.ones_like(x), y))
    assert set(found.values()) == {0.0}


def test_the_baseline_is_that_of_the_oracle_on_random_layers(rng):
    shape = 100, 10
    found, samples = svcca_tutorial.measure_baseline(shape, shape, 0)
    draws = [cca_by_qr(*rng.standard_normal((2, *shape))) for _ in range(20)]
    assert found["mean_cca"] == pytest.approx(np.mean(draws), abs=0.04)
    assert found["top_20"] == pytest.approx(np.mean(draws), abs=0.04)
    assert found["pwcca"] == pytest.approx(np.mean(draws), abs=0.06)
    np.testing.assert_allclose(samples.mean(axis=0), np.mean(draws, axis=0), atol=0.12)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_activations_are_read(tmp_path, rng, protocol, zipped, order):
    array = np.asarray(rng.standard_normal((30, 4)), np.float32, order=order)
    path = tmp_path / "layer.p"
    for stored in (array, array.T):
        data = pickle.dumps(stored, protocol=protocol)
        path.write_bytes(gzip.compress(data) if zipped else data)
        np.testing.assert_array_equal(activations.read_activations(path), array)


def damaged(tmp_path: Path) -> dict[str, bytes]:
    whole = pickle.dumps(np.ones((30, 4), np.float32), protocol=3)
    return {
        "no bytes": b"",
        "cut": whole[:-200],
        "cut but ended": whole[:-200] + b"b.",
        "cut gzip": gzip.compress(whole)[:-9],
        "calls": pickle.dumps(Executed(tmp_path / "executed"), protocol=3),
        "calls and builds": pickle.dumps(Executed(tmp_path / "executed"), 3)[:-1]
        + b"Nb.",
        "not an array": pickle.dumps([1, 2, 3], protocol=3),
        "no matrix": pickle.dumps(np.ones(3, np.float32), protocol=3),
        "objects": pickle.dumps(np.array([[None]]), protocol=3),
        "big-endian": pickle.dumps(np.ones((3, 2), ">f4"), protocol=3),
        "not finite": pickle.dumps(np.full((3, 2), np.nan), protocol=3),
        "negative": whole.replace(b"K\x1eK\x04\x86", b"J\xff\xff\xff\xffK\x04\x86"),
    }


@pytest.mark.parametrize("kind", damaged(Path()))
def test_other_files_are_refused_by_name_and_not_executed(tmp_path, kind):
    path = tmp_path / "model_0_lay00.p"
    path.write_bytes(damaged(tmp_path)[kind])
    with pytest.raises(ValueError, match=path.name):
        activations.read_activations(path)
    assert list(tmp_path.iterdir()) == [path]


def test_pairs_need_both_networks_and_the_same_datapoints(tmp_path, rng):
    with pytest.raises(ValueError, match="nothing is no folder"):
        activations.read_pairs(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no model_0"):
        activations.read_pairs(tmp_path)
    first, second = tmp_path / "model_0_fc.p", tmp_path / "model_1_fc.p"
    first.write_bytes(pickle.dumps(rng.standard_normal((30, 4)), protocol=3))
    with pytest.raises(ValueError, match=second.name):
        activations.read_pairs(tmp_path)
    second.write_bytes(pickle.dumps(rng.standard_normal((29, 4)), protocol=3))
    with pytest.raises(ValueError, match=r"30 datapoints and .*model_1_fc.p has 29"):
        activations.read_pairs(tmp_path)


def idx(array: np.ndarray) -> bytes:
    magic = {3: 2051, 1: 2049}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def test_idx_files_are_read_and_damage_is_named(tmp_path, rng):
    images = rng.integers(0, 255, (5, 3, 4), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    for split in ("train", "t10k"):
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        path = tmp_path / f"{split}-labels-idx1-ubyte.gz"
        path.write_bytes(gzip.compress(idx(labels)))
    digits = mnist.read_mnist(tmp_path)
    np.testing.assert_allclose(digits.test_images, images.reshape(5, 12) / 255, 1e-6)
    np.testing.assert_array_equal(digits.train_labels, labels)

    whole = path.read_bytes()
    for data in (b"", whole[:-9], gzip.compress(idx(labels)[:-1]), b"\0" * 16):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=path.name):
            mnist.read_mnist(tmp_path)
    path.write_bytes(gzip.compress(idx(labels[:-1])))
    with pytest.raises(ValueError, match=r"labels \(4,\) do not match"):
        mnist.read_mnist(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="holds no t10k-labels"):
        mnist.read_mnist(tmp_path)


def test_npz_files_that_are_not_mnist_are_named(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"mnist\.npz is no readable"):
        mnist.read_mnist(path)
    images, labels = np.zeros((2, 3, 3), np.uint8), np.array([3, 10])
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(ValueError, match="not digits from 0 to 9"):
        mnist.read_mnist(path)
    np.save(tmp_path / "mnist.npy", images)
    with pytest.raises(ValueError, match=r"mnist\.npy is no readable"):
        mnist.read_mnist(tmp_path / "mnist.npy")


def test_without_mnist_and_scikit_learn_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"--mnist DIR, or pip install -e"):
        mnist.read_small_digits()


@pytest.mark.usefixtures("lenient_promotion")  # of Adam
def test_networks_learn_and_are_repeatable(tmp_path, rng):
    digits = mnist.read_mnist(write_mnist(tmp_path / "mnist.npz", rng))

    def train():
        key = jax.random.key(0)
        return mnist.train_network(digits, width=10, steps=300, key=key)

    parameters = train()
    layers = mnist.forward(parameters, digits.test_images)
    assert [layer.shape for layer in layers] == [(100, 10)] * 4
    right = np.asarray(layers[-1]).argmax(axis=1) == digits.test_labels
    assert right.mean() > 0.4
    np.testing.assert_array_equal(parameters[-1][0], train()[-1][0])


@pytest.mark.usefixtures("lenient_promotion")  # of Adam
def test_the_command_prints_a_table_and_one_json_object(tmp_path, rng, capsys):
    x, y = related(rng, datapoints=100, x=10, y=10)
    folder = tmp_path / "activations" / "made_up"
    folder.mkdir(parents=True)
    (folder / "model_0_fc.p").write_bytes(pickle.dumps(x.T, protocol=3))
    (folder / "model_1_fc.p").write_bytes(pickle.dumps(y, protocol=3))
    data = write_mnist(tmp_path / "mnist.npz", rng)
    arguments = ["--activations", str(folder.parent), "--mnist", str(data)]
    arguments += ["--out", str(tmp_path / "out"), "--steps", "300"]
    assert svcca_tutorial.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    names = ["made_up fc", *(f"MNIST dense {number}" for number in range(1, 5))]
    assert [pair["name"] for pair in summary["pairs"]] == names
    first = summary["pairs"][0]
    assert (first["datapoints"], first["neurons"]) == (100, [10, 10])
    assert first["mean_cca"] == pytest.approx(cca_by_qr(x, y).mean())
    assert first["pwcca"] == pytest.approx(pwcca_by_definition(x, y)[0])
    (row,) = (line for line in table if line.startswith("made_up fc"))
    columns = [f"{first[key]:.4f}" for key in svcca_tutorial._COLUMNS]
    assert row.split()[2:] == ["100", "x", "10|10", *columns]
    random = table[table.index(row) + 1].split()
    assert random[:2] == ["random", f"{first['baseline']['mean_cca']:.4f}"]
    assert summary["published"]["mean_cca"] == pytest.approx(0.4068, abs=5e-5)
    for path in {summary["figure"], *(pair["figure"] for pair in summary["pairs"])}:
        assert Path(path).read_bytes().startswith(b"\x89PNG")


def test_a_wrong_path_is_an_error_and_not_a_trace(tmp_path, capsys):
    assert svcca_tutorial.main(["--activations", str(tmp_path / "nothing")]) == 2
    assert "nothing is no folder" in capsys.readouterr().err


def test_published_activations_are_read_and_related(shared):
    folder = shared / "data" / "svcca_activations"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    pairs = {pair.name: pair for pair in activations.read_pairs(folder)}
    logits, rectified = pairs["MNIST lay04"], pairs["SVHN lay06"]
    assert logits.x.shape == (10_000, 10)
    assert rectified.y.shape == (1_000, 200)
    assert rectified.x.min() == 0
    found, coefficients = svcca_tutorial.measure(logits)
    expected = cca_by_qr(logits.x, logits.y)
    np.testing.assert_allclose(coefficients, expected, atol=1e-9)
    assert found["mean_cca"] == pytest.approx(0.70573, abs=1e-5)
