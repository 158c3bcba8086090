"""The published calls: keys, shapes, correct numbers, and each known difference."""

import jax
import numpy as np
import pytest
from oracles import cca_by_qr, pwcca_by_definition

from svcca_jax import compat

# The hook of the tests is as strict within NumPy's types as the library's own calls.
pytestmark = pytest.mark.usefixtures("lenient_promotion")

COEFS = {
    *("coef_x", "invsqrt_xx", "full_coef_x", "full_invsqrt_xx", "neuron_means1"),
    *("coef_y", "invsqrt_yy", "full_coef_y", "full_invsqrt_yy", "neuron_means2"),
}
ALWAYS = {"cca_coef1", "cca_coef2", "x_idxs", "y_idxs", "mean", "sum"}


def make_acts(rng, first=7, second=5, datapoints=90):
    latent = rng.standard_normal((3, datapoints))
    return [
        rng.standard_normal((n, 3)) @ latent + rng.standard_normal((n, datapoints)) + 2
        for n in (first, second)
    ]


def test_cca_of_full_rank_layers(rng, capsys):
    acts = make_acts(rng)
    found = compat.get_cca_similarity(*acts, compute_dirns=True)
    assert set(found) == ALWAYS | COEFS | {"cca_dirns1", "cca_dirns2"}
    assert capsys.readouterr().out == ""
    expected = cca_by_qr(acts[0].T, acts[1].T)
    assert found["cca_coef1"].dtype == np.float64
    np.testing.assert_allclose(found["cca_coef1"], expected, atol=1e-12)
    np.testing.assert_allclose(found["sum"], expected.sum(), atol=1e-12)
    count = np.argmax(np.cumsum(expected) >= 0.98 * expected.sum()) + 1
    np.testing.assert_allclose(found["mean"], expected[:count].mean(), atol=1e-12)
    for name, n, layer, number in (("x", 7, acts[0], 1), ("y", 5, acts[1], 2)):
        rotation, whitening = found[f"coef_{name}"], found[f"invsqrt_{name}{name}"]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(n), atol=1e-12)
        covariance = np.cov(layer)
        scaled = covariance / np.abs(covariance).max()
        np.testing.assert_allclose(
            whitening @ scaled @ whitening, np.eye(n), atol=1e-10
        )
        directions = found[f"cca_dirns{number}"]
        assert directions.shape == (n, 90)
        centered = layer - found[f"neuron_means{number}"]
        np.testing.assert_allclose(rotation @ whitening @ centered, directions)
    both = np.corrcoef(found["cca_dirns1"][:5], found["cca_dirns2"])
    np.testing.assert_allclose(np.diag(both[:5, 5:]), expected, atol=1e-10)


def test_directions_need_no_coefficients_and_the_other_way_round(rng):
    acts = make_acts(rng)
    found = compat.get_cca_similarity(*acts, compute_coefs=False, compute_dirns=True)
    assert set(found) == ALWAYS | {"cca_dirns1", "cca_dirns2"}
    assert set(compat.get_cca_similarity(*acts)) == ALWAYS | COEFS


def test_epsilon_does_nothing_and_a_full_threshold_takes_all(rng):
    acts = make_acts(rng)
    first = compat.get_cca_similarity(*acts, epsilon=0.5, threshold=1.0)
    expected = cca_by_qr(acts[0].T, acts[1].T)
    np.testing.assert_allclose(first["mean"], expected.mean(), atol=1e-12)
    robust = compat.robust_cca_similarity(*acts, threshold=1.0)
    np.testing.assert_allclose(robust["mean"], expected.mean(), atol=1e-12)
    assert "cca_dirns1" in robust


def test_rank_deficient_layers_and_constant_neurons(rng):
    acts = make_acts(rng)
    acts[0][6] = acts[0][5]
    acts[0][2] = 3.0
    found = compat.get_cca_similarity(*acts, compute_dirns=True)
    assert found["x_idxs"].tolist() == [True, True, False, True, True, True, True]
    assert found["coef_x"].shape == found["invsqrt_xx"].shape == (6, 6)
    assert found["full_coef_x"].shape == (7, 7)
    assert not found["full_coef_x"][2].any()
    expected = cca_by_qr(acts[0].T, acts[1].T)
    np.testing.assert_allclose(found["cca_coef1"], expected, atol=1e-12)
    assert np.isfinite(found["cca_dirns1"]).all()


def test_fewer_datapoints_than_neurons(rng):
    acts = make_acts(rng, 12, 5, datapoints=9)
    found = compat.get_cca_similarity(*acts, compute_dirns=True)
    expected = cca_by_qr(acts[0].T, acts[1].T)
    np.testing.assert_allclose(found["cca_coef1"], expected, atol=1e-12)
    assert found["cca_dirns1"].shape == (12, 9)


def test_a_dead_layer_has_every_key_and_similarity_zero(rng):
    acts = make_acts(rng)
    acts[1][:] = 4.0
    found = compat.get_cca_similarity(*acts, compute_dirns=True)
    dirns = {"cca_dirns1", "cca_dirns2"}
    assert set(found) == ALWAYS | COEFS | dirns | {"idx1", "idx2"}
    assert found["mean"] == found["sum"] == (0, 0)
    assert found["cca_coef1"].tolist() == [0] * 5
    assert not found["cca_dirns2"].any()


@pytest.mark.parametrize(("first", "second"), [(7, 5), (5, 7), (6, 6)])
def test_pwcca(rng, first, second):
    acts = make_acts(rng, first, second)
    value, weights, coefficients = compat.compute_pwcca(*acts)
    by_x, by_y = pwcca_by_definition(acts[0].T, acts[1].T)
    np.testing.assert_allclose(value, by_x if first <= second else by_y, atol=1e-12)
    np.testing.assert_allclose(weights.sum(), 1)
    np.testing.assert_allclose((weights * coefficients).sum(), value)
    assert len(weights) == len(coefficients) == min(first, second)


def test_pca_is_centred_over_the_datapoints(rng):
    acts, _ = make_acts(rng)
    found = compat.get_pca(acts, compute_dirns=True)
    centered = acts - acts.mean(axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(found["eigenvals"], values)
    signs = np.sum(found["neuron_coefs"] * left.T, axis=1)
    np.testing.assert_allclose(np.abs(signs), 1)
    expected = signs[:, None] * (left.T @ centered)
    np.testing.assert_allclose(found["pca_dirns"], expected, atol=1e-10)
    assert set(compat.get_pca(acts)) == {"eigenvals", "neuron_coefs"}


def test_pls_of_different_widths(rng):
    acts = make_acts(rng)
    found = compat.get_pls_similarity(*acts)
    cross = np.cov(*acts)[:7, 7:]
    np.testing.assert_allclose(found["eigenvals"], np.linalg.svd(cross)[1])
    first, second = found["neuron_coeffs1"], found["neuron_coeffs2"]
    assert (first.shape, second.shape) == ((5, 7), (5, 5))
    np.testing.assert_allclose(
        first.T @ np.diag(found["eigenvals"]) @ second, cross, atol=1e-12
    )
    both = np.cov(found["pls_dirns1"], found["pls_dirns2"])
    np.testing.assert_allclose(np.diag(both[:5, 5:]), found["eigenvals"], atol=1e-12)


def test_fourier(rng):
    x, y = rng.standard_normal((30, 4, 3, 3)), rng.standard_normal((30, 2, 5, 2))
    rows = compat.fourier_ccas(x, y, return_coefs=True, compute_dirns=True)
    assert [row["location"] for row in rows] == list(np.ndindex(2, 3))
    for row in rows:
        first, second = row["cca_dirns1"], row["cca_dirns2"]
        assert (row["neuron_coeffs1"].shape, first.shape) == ((2, 3), (2, 30))
        found = np.diag(first.conj() @ second.T)
        np.testing.assert_allclose(found, row["cca_coef1"], atol=1e-10)
    assert set(compat.fourier_ccas(x, y)[0]) == {
        *("location", "cca_coef1", "cca_coef2", "mean", "sum")
    }


def test_float32_stays_and_the_callers_setting_too(rng):
    acts = [layer.astype(np.float32) for layer in make_acts(rng)]
    found = compat.get_cca_similarity(*acts)
    assert found["cca_coef1"].dtype == found["coef_x"].dtype == np.float32
    assert not jax.config.jax_enable_x64


def test_layers_that_do_not_match(rng):
    acts = make_acts(rng)
    with pytest.raises(ValueError, match="acts1 has 90 datapoints and acts2 has 5"):
        compat.get_cca_similarity(acts[0], acts[1].T)
    with pytest.raises(ValueError, match=r"acts1 must have 2 axes .* \(3,\)"):
        compat.get_pca(np.ones(3))
    acts[0][1, 2] = np.nan
    with pytest.raises(ValueError, match="x holds 1 values"):
        compat.compute_pwcca(*acts)


def test_means_of_float32_keep_their_digits(rng):
    exact = rng.standard_normal((3, 20_000)) + 1e4
    acts = exact.astype(np.float32)
    found = compat.get_cca_similarity(acts, acts[:2], compute_dirns=True)
    means = acts.mean(axis=1, dtype=np.float64, keepdims=True)
    np.testing.assert_allclose(found["neuron_means1"], means, rtol=1e-7)
    assert np.abs(found["cca_dirns1"].mean(axis=1)).max() < 1e-4
    with pytest.raises(ValueError, match="must be real, got complex128"):
        compat.get_cca_similarity(exact + 1j, exact)
