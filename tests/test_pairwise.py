"""Grids equal loops over pairs, for every measure, on one device and on four."""

import functools
import importlib

import jax
import numpy as np
import pytest

import svcca_jax as sv
from svcca_jax import grid, sharing

# The package has a function of this name as well.
MODULE = importlib.import_module("svcca_jax.pairwise")


def make_layers(rng, widths=(6, 4, 6), datapoints=60):
    latent = rng.standard_normal((datapoints, 3))
    layers = [
        latent @ rng.standard_normal((3, w)) + rng.standard_normal((datapoints, w))
        for w in widths
    ]
    return [layer.astype(np.float32) for layer in layers]


def make_mesh(devices):
    return jax.make_mesh((devices,), ("devices",), devices=jax.devices()[:devices])


def assert_equal_to_rounding(found, expected):
    # Four units in the last place: the compiler of a CPU may fuse the centring under a
    # mask, or a sum, with what is around it or not.
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=5e-7)


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
    whole = sv.pairwise(layers, measure=measure)
    single = jax.jit(SINGLE[measure])
    expected = [[single(x, y) for y in layers] for x in layers]
    np.testing.assert_allclose(whole, expected, rtol=2e-5, atol=1e-5)
    shared = sv.pairwise(layers, measure=measure, mesh=make_mesh(3))
    assert_equal_to_rounding(shared, whole)


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
    monkeypatch.setattr(grid, "CROSS_BYTES", 0)
    MODULE._grid.clear_cache()
    found = sv.pairwise(layers, measure=sv.MeanSVCCA())
    MODULE._grid.clear_cache()
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_share_layers_and_pairs(rng, devices):
    # One layer of three of the widths: fewer layers, and pairs, than devices.
    layers = make_layers(rng, widths=(5, 7, 5, 3, 4))
    measure = sv.MeanSVCCA(one_at_a_time=False)
    found = sv.pairwise(layers, measure=measure, mesh=make_mesh(devices))
    # Decompositions come out bit for bit.
    np.testing.assert_array_equal(found, sv.pairwise(layers, measure=measure))
    assert found.sharding.device_set == {jax.devices()[0]}


def test_devices_share_a_rectangle_under_a_mask(rng):
    layers, others = make_layers(rng), make_layers(rng, widths=(4,))
    for measure in (sv.MeanPWCCA(), sv.CKA()):
        for mask in (None, np.arange(60) % 3 > 0):
            compute = functools.partial(
                sv.pairwise, layers, others, measure=measure, mask=mask
            )
            assert_equal_to_rounding(compute(mesh=make_mesh(4)), compute())


def test_devices_compare_blocks_of_pairs(rng):
    layers = make_layers(rng, widths=(5, 5, 5))
    measure = sv.MeanSVCCA(one_at_a_time=False)
    for pairs in (2, 7):
        compute = functools.partial(
            sv.pairwise, layers, measure=measure, pairs_per_block=pairs
        )
        np.testing.assert_allclose(compute(mesh=make_mesh(4)), compute(), atol=1e-6)


def test_devices_without_the_products_of_all_pairs(rng, monkeypatch):
    layers = make_layers(rng)
    expected = sv.pairwise(layers, measure=sv.MeanCCA())
    monkeypatch.setattr(grid, "CROSS_BYTES", 0)
    MODULE._grid.clear_cache()
    found = sv.pairwise(layers, measure=sv.MeanCCA(), mesh=make_mesh(2))
    MODULE._grid.clear_cache()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_devices_inside_a_callers_program(rng):
    layers = make_layers(rng)
    mesh, measure = make_mesh(4), sv.CKA()

    @jax.jit
    def total(layers):
        return jax.numpy.sum(sv.pairwise(layers, measure=measure, mesh=mesh))

    layers = [jax.numpy.asarray(layer) for layer in layers]
    expected = sv.pairwise(layers, measure=measure)
    np.testing.assert_allclose(total(layers), np.asarray(expected).sum(), rtol=1e-6)
    gradient = jax.jit(jax.grad(total))(layers)
    alone = jax.jit(jax.grad(lambda x: sv.pairwise(x, measure=measure).sum()))(layers)
    for found, one in zip(gradient, alone, strict=True):
        np.testing.assert_allclose(found, one, atol=1e-6)


def test_the_work_is_dealt_by_its_cost():
    mesh = make_mesh(3)
    # One costly entry is worth all others: it has a device to itself.
    hands = sharing.deal([1, 4, 2], [10.0, 2.0, 3.0], mesh)
    loads = sum(
        hand.counts * cost for hand, cost in zip(hands, (10, 2, 3), strict=True)
    )
    assert sorted(loads) == [7, 7, 10]
    for hand, size in zip(hands, (1, 4, 2), strict=True):
        assert hand.counts.sum() == size
        # Every entry is computed once, and found where the results are gathered.
        np.testing.assert_array_equal(hand.entries.ravel()[hand.places], range(size))
        assert len(set(hand.places.tolist())) == size


@pytest.mark.parametrize("all_pairs", [False, True])
def test_devices_share_the_work_of_a_checkpoint(rng, all_pairs):
    final = make_layers(rng, widths=(5, 3, 5))
    checkpoints = [make_layers(rng, widths=(5, 4, 3)) for _ in range(2)]
    mesh = make_mesh(4)
    for measure in (sv.MeanSVCCA(one_at_a_time=False), sv.CKA()):
        compute = functools.partial(
            sv.over_checkpoints,
            checkpoints,
            final,
            measure=measure,
            all_pairs=all_pairs,
        )
        before = MODULE._row._cache_size()
        found = compute(mesh=mesh)
        assert MODULE._row._cache_size() == before + 1
        assert_equal_to_rounding(found, compute())


def test_maps_of_different_sizes(rng):
    maps = [
        rng.standard_normal((30, h, w, c)).astype(np.float32)
        for h, w, c in ((4, 4, 3), (2, 3, 2), (4, 4, 3))
    ]
    whole = np.asarray(sv.pairwise(maps, measure=sv.MeanFourierCCA()))
    np.testing.assert_allclose(np.diag(whole), 1, atol=1e-5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected = sv.fourier_cca(maps[i], maps[j]).mean
        np.testing.assert_allclose([whole[i, j], whole[j, i]], expected, atol=1e-5)


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
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    with pytest.raises(ValueError, match="one axis, got"):
        sv.pairwise([layer], mesh=mesh)
    with pytest.raises(ValueError, match="one axis, got"):
        sv.over_checkpoints([[layer]], [layer], mesh=mesh)
