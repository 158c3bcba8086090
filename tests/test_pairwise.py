"""Grids equal loops over pairs, for every measure, on one device and on four."""

import importlib

import jax
import numpy as np
import pytest

import svcca_jax as sv

# The package has a function of this name as well.
MODULE = importlib.import_module("svcca_jax.pairwise")


def make_layers(rng, widths=(6, 4, 6), datapoints=60):
    latent = rng.standard_normal((datapoints, 3))
    layers = [
        latent @ rng.standard_normal((3, w)) + rng.standard_normal((datapoints, w))
        for w in widths
    ]
    return [layer.astype(np.float32) for layer in layers]


SINGLE = {
    sv.MeanCCA(): lambda x, y: sv.cca(x, y).mean,
    sv.MeanCCA(fast=True): lambda x, y: sv.cca(x, y).mean,
    sv.MeanSVCCA(): lambda x, y: sv.svcca(x, y).mean,
    sv.MeanSVCCA(keep=sv.FixedCount(3), fast=True): lambda x, y: (
        sv.svcca(x, y, keep=sv.FixedCount(3)).mean
    ),
    sv.MeanSVCCA(one_at_a_time=False): lambda x, y: sv.svcca(x, y).mean,
    sv.MeanPWCCA(): lambda x, y: sv.pwcca(x, y).value,
    sv.CKA(): lambda x, y: sv.linear_cka(x, y).value,
    sv.CKA(debiased=True): lambda x, y: sv.linear_cka(x, y).debiased,
    sv.ProcrustesSimilarity(): lambda x, y: sv.procrustes_distance(x, y).similarity,
    sv.TotalPLS(): lambda x, y: sv.pls(x, y).values.sum(),
}


@pytest.mark.parametrize("measure", SINGLE, ids=str)
def test_a_grid_equals_a_loop(rng, measure):
    layers = make_layers(rng)
    grid = sv.pairwise(layers, measure=measure)
    single = jax.jit(SINGLE[measure])
    expected = [[single(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(grid, expected, rtol=2e-5, atol=1e-5)


def test_a_rectangle_and_blocks_of_pairs(rng):
    layers = make_layers(rng)
    whole = np.asarray(sv.pairwise(layers, measure=sv.MeanPWCCA()))
    part = sv.pairwise(layers[:2], layers[1:], measure=sv.MeanPWCCA())
    np.testing.assert_allclose(part, whole[:2, 1:], atol=1e-6)
    blocks = sv.pairwise(layers, measure=sv.MeanPWCCA(), pairs_per_block=2)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)


def test_without_the_products_of_all_pairs(rng, monkeypatch):
    layers = make_layers(rng)
    expected = sv.pairwise(layers, measure=sv.MeanSVCCA())
    monkeypatch.setattr(MODULE, "CROSS_BYTES", 0)
    MODULE._grid.clear_cache()
    found = sv.pairwise(layers, measure=sv.MeanSVCCA())
    MODULE._grid.clear_cache()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_devices_share_the_pairs(rng):
    layers = make_layers(rng)
    mesh = jax.make_mesh((4,), ("devices",))
    found = sv.pairwise(layers, mesh=mesh)
    np.testing.assert_allclose(found, sv.pairwise(layers), atol=1e-6)


def test_maps_of_different_sizes(rng):
    maps = [
        rng.standard_normal((30, h, w, c)).astype(np.float32)
        for h, w, c in ((4, 4, 3), (2, 3, 2), (4, 4, 3))
    ]
    grid = np.asarray(sv.pairwise(maps, measure=sv.MeanFourierCCA()))
    np.testing.assert_allclose(np.diag(grid), 1, atol=1e-5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = sv.fourier_cca(maps[i], maps[j]).mean
        np.testing.assert_allclose([grid[i, j], grid[j, i]], expected, atol=1e-5)


def test_the_mask(rng):
    layers = make_layers(rng)
    mask = np.arange(60) < 40
    found = sv.pairwise(layers, mask=mask)
    expected = sv.pairwise([layer[:40] for layer in layers])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_checkpoints_are_read_one_at_a_time_by_one_program(rng):
    final = make_layers(rng)
    before = MODULE._row._cache_size()
    read = []

    def checkpoints():
        for step in range(4):
            read.append(step)
            noise = (3 - step) / 3
            yield [
                layer + noise * rng.standard_normal(layer.shape).astype(np.float32)
                for layer in final
            ]

    values = sv.over_checkpoints(checkpoints(), final)
    assert values.shape == (4, 3)
    np.testing.assert_allclose(values[-1], 1, atol=1e-5)
    assert (np.diff(values.mean(axis=1)) > 0).all()
    assert read == [0, 1, 2, 3]
    assert MODULE._row._cache_size() == before + 1


def test_from_moments(rng):
    layers = make_layers(rng)
    moments = sv.accumulate(
        [[layer[:25] for layer in layers], [layer[25:] for layer in layers]]
    )
    for measure in (sv.MeanSVCCA(), sv.CKA()):
        found = sv.pairwise_from_moments(moments, measure=measure)
        expected = sv.pairwise(layers, measure=measure)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(ValueError, match="debiased"):
        sv.pairwise_from_moments(moments, measure=sv.CKA(debiased=True))
    with pytest.raises(ValueError, match="frequencies"):
        sv.pairwise_from_moments(moments, measure=sv.MeanFourierCCA())


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_export_of_a_grid(platform):
    shapes = [jax.ShapeDtypeStruct((32, n), np.float32) for n in (4, 6, 4)]
    for measure in (sv.MeanSVCCA(fast=True), sv.MeanPWCCA(), sv.CKA()):
        function = jax.jit(lambda *a, m=measure: sv.pairwise(a, measure=m))
        exported = jax.export.export(function, platforms=[platform])(*shapes)
        assert exported.platforms == (platform,)


def test_errors_name_the_layer(rng):
    layers = make_layers(rng)
    with pytest.raises(ValueError, match="there is no layer"):
        sv.pairwise([])
    with pytest.raises(ValueError, match=r"60 datapoints and layer 1 has 59"):
        sv.pairwise([layers[0], layers[1][:59]])
    layers[2][5, 1] = np.inf
    with pytest.raises(ValueError, match=r"layer 2 holds 1 .*datapoints=5"):
        sv.pairwise(layers)
    with pytest.raises(ValueError, match="checkpoint 0 has 2 layers"):
        sv.over_checkpoints([layers[:2]], layers[:1])


@pytest.mark.parametrize("measure", [sv.MeanSVCCA(), sv.CKA()])
def test_checkpoints_against_every_reference(rng, measure):
    layers, final = make_layers(rng), make_layers(rng)
    found = sv.over_checkpoints([layers, final], final, measure=measure, all_pairs=True)
    expected = [sv.pairwise(each, final, measure=measure) for each in (layers, final)]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    matched = sv.over_checkpoints([layers], final, measure=measure)
    np.testing.assert_allclose(matched[0], np.diag(found[0]), atol=1e-5)
    empty = sv.over_checkpoints([], final, measure=measure, all_pairs=True)
    assert empty.shape == (0, len(final), len(final))


def test_a_wider_checkpoint_is_not_rounded_to_its_reference(rng):
    x = rng.standard_normal((50, 4)).astype(np.float32)
    with jax.enable_x64(True):
        found = sv.over_checkpoints([[x.astype(np.float64) + 1e7]], [x])
    np.testing.assert_allclose(found, 1, atol=1e-5)


def test_axes_and_blocks_are_checked(rng):
    maps, layer = rng.standard_normal((9, 2, 2, 3)), rng.standard_normal((9, 3))
    with pytest.raises(ValueError, match=r"layer 1 must have 2 axes .* got 4"):
        sv.pairwise([layer, maps])
    with pytest.raises(ValueError, match=r"layer 0 must have 4 axes .* got 2"):
        sv.pairwise([layer], measure=sv.MeanFourierCCA())
    with pytest.raises(ValueError, match="at least 1 pair, got 0"):
        sv.pairwise([layer], pairs_per_block=0)
