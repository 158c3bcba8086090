"""The sparse convolution against a dense one in float64, forward and backward."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from e3dsnn_jax.executors import BATCHED, BLOCKS, GATHERED
from e3dsnn_jax.kernel_map import (
    KernelMap,
    Pairs,
    blocks_needed,
    invert,
    make_kernel,
    pack_pairs,
)
from e3dsnn_jax.kernel_pairs import strided_pairs, submanifold_pairs
from e3dsnn_jax.kernel_runs import add_runs
from e3dsnn_jax.run_executor import RUNS
from e3dsnn_jax.sparse_conv import sparse_conv
from tests import oracles
from tests.clouds_of_voxels import hard_coords, random_coords
from tests.programs import has_float_scatter_add

# The package re-exports the function under the module's own name.
module = importlib.import_module("e3dsnn_jax.sparse_conv")
EXTENT = (6, 7, 9)
CASES = list(hard_coords(np.random.default_rng(0)).items())
SUBMANIFOLD = [make_kernel(1), make_kernel(3), make_kernel(3, dilation=2)]
STRIDED = [
    make_kernel(2, stride=2),
    make_kernel(3, stride=2, padding=1),
    make_kernel((3, 1, 1), stride=(2, 1, 1)),
]
EXECUTORS = {
    "blocks": BLOCKS,
    "gathered": GATHERED,
    "batched": BATCHED,
    "runs": RUNS,
}
# Every kernel with the executor of this machine; the others read the same maps.
SUBMANIFOLD_CASES = [("blocks", kernel) for kernel in SUBMANIFOLD]
OTHERS = ("gathered", "batched", "runs")
SUBMANIFOLD_CASES += [(name, SUBMANIFOLD[1]) for name in OTHERS]
SUBMANIFOLD_CASES += [("runs", SUBMANIFOLD[0])]
STRIDED_CASES = [("blocks", kernel) for kernel in STRIDED]
STRIDED_CASES += [(name, STRIDED[1]) for name in OTHERS]
STRIDED_CASES += [("runs", STRIDED[0])]
OPTIONS = {"runs": False}


@pytest.fixture(params=EXECUTORS)
def executor(request, monkeypatch):
    """Runs a test with each executor, whatever the platform would choose."""
    forward, backward = EXECUTORS[request.param]
    monkeypatch.setitem(OPTIONS, "runs", request.param == "runs")

    def pick(*operands, cpu, **others):
        assert ("tpu" in others) == (request.param == "runs")
        keywords = cpu.keywords
        chosen = forward if "num_out" in keywords else backward
        return chosen(*operands, **keywords)

    monkeypatch.setattr(module.jax.lax, "platform_dependent", pick)
    return request.param


def pack(pairs, num_in, num_out, *, size=16, spare=2) -> KernelMap:
    blocks = blocks_needed(pairs, pairs_per_block=size) + spare
    packed = pack_pairs(
        pairs,
        num_in=num_in,
        num_out=num_out,
        pairs_per_block=size,
        blocks_capacity=blocks,
    )
    if not OPTIONS["runs"]:
        return packed
    return add_runs(packed, num_offsets=len(pairs.counts), submanifold=False)


def padded(rng, rows, capacity, channels):
    """Features of the real rows, and rubbish in the padding rows."""
    features = rng.normal(size=(capacity, channels)).astype(np.float32)
    features[rows:] = np.nan
    features[rows + 1 :] = np.inf
    return features


def expected_gradients(coords, out_coords, features, weights, cotangent, kernel, shift):
    """Gradients of the dense convolution, one tap at a time."""
    d_features, d_weights = np.zeros(features.shape), np.zeros(weights.shape)
    rows = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    for number, offset in enumerate(kernel.offsets()):
        for out_row, (batch, *cell) in enumerate(out_coords.tolist()):
            at = tuple(
                o * s - p + k * d
                for o, s, p, k, d in zip(
                    cell,
                    kernel.stride,
                    shift,
                    offset,
                    kernel.dilation,
                    strict=True,
                )
            )
            row = rows.get((batch, *at))
            if row is not None:
                d_features[row] += weights[number] @ cotangent[out_row]
                d_weights[number] += np.outer(features[row], cotangent[out_row])
    return d_features, d_weights


def check(rng, coords, out_coords, pairs, kernel, shift, dense_out, c_in, c_out):
    rows, out_rows = len(coords), len(out_coords)
    num_in, num_out = rows + 3, out_rows + 2
    kernel_map = pack(pairs, num_in, num_out)
    features = padded(rng, rows, num_in, c_in)
    weights = rng.normal(size=(kernel.num_offsets, c_in, c_out)).astype(np.float32)
    cotangent = padded(rng, out_rows, num_out, c_out)
    outputs, pull = jax.vjp(
        lambda x, w: sparse_conv(x, w, kernel_map, num_out=num_out), features, weights
    )
    d_features, d_weights = pull(jnp.asarray(cotangent))
    expected = dense_out(features[:rows].astype(np.float64), weights)
    np.testing.assert_allclose(outputs[:out_rows], expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_array_equal(outputs[out_rows:], 0)
    dx, dw = expected_gradients(
        coords,
        out_coords,
        features[:rows].astype(np.float64),
        weights.astype(np.float64),
        cotangent[:out_rows].astype(np.float64),
        kernel,
        shift,
    )
    np.testing.assert_allclose(d_features[:rows], dx, atol=5e-5, rtol=1e-5)
    np.testing.assert_array_equal(d_features[rows:], 0)
    np.testing.assert_allclose(d_weights, dw, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("executor", "kernel"), SUBMANIFOLD_CASES, indirect=["executor"]
)
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_submanifold_is_the_dense_convolution_on_its_own_sites(
    rng, executor, name, coords, kernel
):
    shift = tuple(k // 2 * d for k, d in zip(kernel.size, kernel.dilation, strict=True))
    dense_kernel = kernel._replace(padding=shift)
    pairs = submanifold_pairs(coords, kernel)

    def dense_out(features, weights):
        grid = oracles.dense_grid(coords, features, 2, EXTENT)
        return oracles.dense_conv(grid, weights, dense_kernel)[tuple(coords.T)]

    check(rng, coords, coords, pairs, kernel, shift, dense_out, 3, 5)


@pytest.mark.parametrize(("executor", "kernel"), STRIDED_CASES, indirect=["executor"])
@pytest.mark.parametrize(("name", "coords"), CASES)
def test_strided_is_the_dense_convolution_on_reached_sites(
    rng, executor, name, coords, kernel
):
    out_coords, pairs = strided_pairs(coords, kernel, extent=EXTENT)

    def dense_out(features, weights):
        grid = oracles.dense_grid(coords, features, 2, EXTENT)
        return oracles.dense_conv(grid, weights, kernel)[tuple(out_coords.T)]

    check(rng, coords, out_coords, pairs, kernel, kernel.padding, dense_out, 4, 3)


@pytest.mark.parametrize("c_in", [20, 40])
def test_wide_layers_are_the_dense_convolution(rng, executor, c_in):
    """More channels than are multiplied elementwise, or transposed, on a CPU."""
    kernel = make_kernel(3)
    coords = random_coords(rng, extent=(4, 4, 4))
    pairs = submanifold_pairs(coords, kernel)

    def dense_out(features, weights):
        grid = oracles.dense_grid(coords, features, 2, (4, 4, 4))
        dense_kernel = kernel._replace(padding=(1, 1, 1))
        return oracles.dense_conv(grid, weights, dense_kernel)[tuple(coords.T)]

    check(rng, coords, coords, pairs, kernel, (1, 1, 1), dense_out, c_in, 3)


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_accelerator_adds_in_order_where_that_is_asked_for(rng, deterministic):
    features, weights, kernel_map = make_case(rng)

    def loss(x, w):
        conv = functools.partial(
            sparse_conv, num_out=len(features), deterministic=deterministic
        )
        return conv(x, w, kernel_map).sum()

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    exported = export.export(step, platforms=("cuda",))(features, weights)
    assert has_float_scatter_add(exported.mlir_module()) != deterministic


def test_a_tpu_follows_the_runs_of_a_map_and_others_its_pairs(rng):
    features, weights, kernel_map = make_case(rng)
    with_runs = add_runs(kernel_map, num_offsets=27, submanifold=True)
    step = jax.jit(
        jax.grad(
            lambda x, w, pairs: sparse_conv(x, w, pairs, num_out=len(features)).sum(),
            argnums=(0, 1),
        )
    )
    for platform, carried, scatters in (
        ("tpu", with_runs, False),
        ("tpu", kernel_map, True),
        ("cuda", with_runs, True),
    ):
        exported = export.export(step, platforms=(platform,))(
            features, weights, carried
        )
        assert ("stablehlo.scatter" in exported.mlir_module()) == scatters
    for plain, other in zip(
        step(features, weights, kernel_map),
        step(features, weights, with_runs),
        strict=True,
    ):
        np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize("value", [200.0, np.inf, -np.inf])
def test_spikes_that_a_byte_cannot_hold_are_no_numbers_afterwards(rng, value):
    _, weights, kernel_map = make_case(rng)
    rows = int(kernel_map.rows[0])
    spikes = jnp.ones((rows, 12)).at[2, 3].set(value)
    outputs = sparse_conv(
        spikes, weights, kernel_map, num_out=rows, integer_inputs=True
    )
    assert np.isnan(outputs).all()


def test_a_map_for_other_rows_is_refused(rng):
    features, weights, kernel_map = make_case(rng)
    rows = len(features)
    more = jnp.concatenate([features, features[:3]])
    for inputs, num_out in ((more, rows), (features[:-5], rows), (features, rows - 5)):
        conv = functools.partial(sparse_conv, num_out=num_out)
        message = (
            rf"joins {rows} input rows with {rows} output rows, but the inputs have "
            rf"{len(inputs)} rows and num_out is {num_out}"
        )
        with pytest.raises(ValueError, match=message):
            conv(inputs, weights, kernel_map)
        # Under jit the map's own numbers are not known before it runs.
        assert np.isnan(jax.jit(conv)(inputs, weights, kernel_map)).all()
    good = jax.jit(functools.partial(sparse_conv, num_out=rows))
    assert np.isfinite(good(features, weights, kernel_map)).all()


def make_case(rng, *, c_in=12, c_out=7, density=0.4, size=16, spare=2, kernel=None):
    kernel = make_kernel(3) if kernel is None else kernel
    coords = random_coords(rng, density=density)
    rows = len(coords)
    kernel_map = pack(
        submanifold_pairs(coords, kernel), rows, rows, size=size, spare=spare
    )
    features = jnp.asarray(rng.normal(size=(rows, c_in)), jnp.float32)
    weights = rng.normal(size=(kernel.num_offsets, c_in, c_out))
    return features, jnp.asarray(weights, jnp.float32), kernel_map


def test_inverse_is_the_adjoint(rng):
    coords = random_coords(rng)
    kernel = make_kernel(2, stride=2)
    out_coords, pairs = strided_pairs(coords, kernel)
    rows, out_rows = len(coords), len(out_coords)
    down = pack(pairs, rows, out_rows)
    x = jnp.asarray(rng.normal(size=(rows, 4)), jnp.float32)
    z = jnp.asarray(rng.normal(size=(out_rows, 6)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(8, 4, 6)), jnp.float32)
    forward = sparse_conv(x, weights, down, num_out=out_rows)
    back = sparse_conv(z, weights.swapaxes(1, 2), invert(down), num_out=rows)
    np.testing.assert_allclose(jnp.vdot(forward, z), jnp.vdot(x, back), rtol=1e-4)


@pytest.mark.parametrize("time", [(), (1,), (3,), (2, 2)])
def test_time_steps_are_independent(rng, executor, time):
    _, weights, kernel_map = make_case(rng)
    rows = int(kernel_map.senders.max())
    x = jnp.asarray(rng.normal(size=(rows, *time, 12)), jnp.float32)
    outputs = sparse_conv(x, weights, kernel_map, num_out=rows)
    assert outputs.shape == (rows, *time, 7)
    flat = x.reshape(rows, -1, 12)
    for step in range(flat.shape[1]):
        alone = sparse_conv(flat[:, step], weights, kernel_map, num_out=rows)
        np.testing.assert_allclose(
            outputs.reshape(rows, -1, 7)[:, step], alone, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("c_in", [4, 16])
def test_integer_inputs_change_nothing(rng, executor, c_in):
    _, weights, kernel_map = make_case(rng, c_in=c_in)
    rows = int(kernel_map.senders.max())
    spikes = jnp.asarray(rng.integers(0, 5, (rows, c_in)), jnp.float32)
    results = []
    for integer in (False, True):
        conv = functools.partial(
            sparse_conv, kernel_map=kernel_map, num_out=rows, integer_inputs=integer
        )
        outputs, pull = jax.vjp(conv, spikes, weights)
        results.append((outputs, *pull(jnp.ones_like(outputs))))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize("c_in", [4, 16])
def test_a_nan_among_spikes_is_no_number_afterwards(rng, executor, c_in):
    _, weights, kernel_map = make_case(rng, c_in=c_in)
    rows = int(kernel_map.senders.max())
    spikes = jnp.asarray(rng.integers(0, 5, (rows, c_in)), jnp.float32)
    conv = functools.partial(
        sparse_conv, kernel_map=kernel_map, num_out=rows, integer_inputs=True
    )
    for value in (np.nan, 1):
        outputs, pull = jax.vjp(conv, spikes.at[3, 1].set(value), weights)
        d_kernel = pull(jnp.ones_like(outputs))[1]
        assert np.isnan(outputs).all() == np.isnan(value)
        assert np.isnan(d_kernel).all() == np.isnan(value)


def test_without_input_gradient_it_is_zero_and_the_kernels_the_same(rng, executor):
    features, weights, kernel_map = make_case(rng)
    rows = len(features)
    grads = []
    for wanted in (True, False):
        conv = functools.partial(
            sparse_conv, kernel_map=kernel_map, num_out=rows, input_gradient=wanted
        )
        outputs, pull = jax.vjp(conv, features, weights)
        grads.append(pull(jnp.ones_like(outputs)))
    np.testing.assert_array_equal(grads[0][1], grads[1][1])
    np.testing.assert_array_equal(grads[1][0], 0)
    assert np.abs(grads[0][0]).max() > 0


def test_capacity_does_not_change_the_result(rng, executor):
    results = []
    for spare in (0, 40):
        features, weights, kernel_map = make_case(np.random.default_rng(3), spare=spare)
        results.append(
            sparse_conv(features, weights, kernel_map, num_out=len(features))
        )
    np.testing.assert_array_equal(*results)


def test_a_truncated_map_gives_nan_everywhere(rng, executor):
    features, weights, kernel_map = make_case(rng, spare=-3)
    rows = len(features)
    outputs, pull = jax.vjp(
        lambda x, w: sparse_conv(x, w, kernel_map, num_out=rows), features, weights
    )
    assert np.isnan(outputs).all()
    assert all(np.isnan(g).all() for g in pull(jnp.ones((rows, 7))))


def test_row_order_within_the_batch_only_moves_rows(rng):
    coords = random_coords(rng)
    swapped = coords.copy()
    swapped[:, 0] = 1 - swapped[:, 0]
    order = np.lexsort(swapped.T[::-1])
    weights = jnp.asarray(rng.normal(size=(27, 3, 4)), jnp.float32)
    features = jnp.asarray(rng.normal(size=(len(coords), 3)), jnp.float32)
    results = []
    for cells, rows in ((coords, features), (swapped[order], features[order])):
        kernel_map = pack(
            submanifold_pairs(cells, make_kernel(3)), len(rows), len(rows)
        )
        results.append(sparse_conv(rows, weights, kernel_map, num_out=len(rows)))
    np.testing.assert_allclose(results[0][order], results[1], atol=1e-5, rtol=1e-5)


def test_bfloat16_keeps_float32_sums(rng, executor):
    _, weights, kernel_map = make_case(rng, c_in=16)
    rows = int(kernel_map.senders.max())
    spikes = jnp.asarray(rng.integers(0, 5, (rows, 16)), jnp.float32)
    coarse = weights.astype(jnp.bfloat16)
    outputs = sparse_conv(spikes.astype(jnp.bfloat16), coarse, kernel_map, num_out=rows)
    exact = sparse_conv(spikes, coarse.astype(jnp.float32), kernel_map, num_out=rows)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs.astype(np.float32), exact, rtol=2**-8, atol=1e-5)


def test_bad_shapes_are_named(rng):
    features, weights, kernel_map = make_case(rng)
    with pytest.raises(ValueError, match=r"inputs have 11 channels but .* takes 12"):
        sparse_conv(features[:, :11], weights, kernel_map, num_out=5)
    with pytest.raises(ValueError, match=r"at least one block .* blocks_capacity=0"):
        pack(Pairs(*(np.zeros(n, np.int64) for n in (0, 0, 27))), 4, 4, spare=0)
    stacked = jax.tree.map(lambda leaf: leaf[None], kernel_map)
    with pytest.raises(ValueError, match=r"senders \[blocks, pairs\], got \(1,"):
        sparse_conv(features, weights, stacked, num_out=5)
