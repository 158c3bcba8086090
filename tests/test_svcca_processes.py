"""Grids and moments over two processes equal those of one device.

This file is also the program of each process: `python FILE ADDRESS PROCESS FOLDER`.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import svcca_jax as sv

ROOT = Path(__file__).resolve().parents[1]
# Of the first process and of the second: other numbers of batches and of datapoints.
PARTS = ([(0, 37), (37, 38)], [(38, 41), (41, 60), (60, 60 + 9)])
SECONDS = 100


def make_layers(seed: int, widths: tuple[int, ...] = (5, 3, 5)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((69, 3))
    layers = [
        latent @ rng.standard_normal((3, w)) + rng.standard_normal((69, w))
        for w in widths
    ]
    return [layer.astype(np.float32) for layer in layers]


def read(
    layers: list[np.ndarray], parts: list[tuple[int, int]]
) -> Iterator[list[np.ndarray]]:
    for start, end in parts:
        yield [layer[start:end] for layer in layers]


def compute_grids(mesh: Mesh | None) -> dict[str, np.ndarray]:
    layers, others = make_layers(0), make_layers(1, (4, 5))
    mask = np.arange(69) % 5 > 0
    earlier = [0.5 * a + b for a, b in zip(layers, make_layers(2), strict=True)]
    # Without a program for each number of kept directions: they would cost minutes.
    measure = sv.MeanSVCCA(one_at_a_time=False)
    return {
        "square": np.asarray(sv.pairwise(layers, measure=measure, mesh=mesh)),
        "rectangle": np.asarray(
            sv.pairwise(layers, others, measure=sv.CKA(), mask=mask, mesh=mesh)
        ),
        "checkpoints": sv.over_checkpoints(
            [earlier, layers], layers, measure=measure, mesh=mesh
        ),
    }


def refusals(process: int, mesh: Mesh) -> Iterator[tuple[str, Callable[[], object]]]:
    """What the processes do not agree on, and the words that they refuse it with."""
    layers = make_layers(0)
    own = make_layers(process)
    yield "layer 0 of process 1 differs", lambda: sv.pairwise(own, mesh=mesh)
    several = layers[process:]
    yield "3 layers .* process 1 has 2", lambda: sv.pairwise(several, mesh=mesh)
    measure = (sv.CKA(), sv.MeanSVCCA())[process]
    yield (
        "settings of process 1 differs",
        lambda: sv.pairwise(layers, measure=measure, mesh=mesh),
    )
    yield (
        "3 layers .* process 1 has 0",
        lambda: sv.over_checkpoints(
            [layers] * (2 - process), layers, measure=sv.CKA(), mesh=mesh
        ),
    )
    yield (
        r"process 0 .* widths \[5\] and process 1 of widths \[3\]",
        lambda: sv.accumulate([layers[process : process + 1]], mesh=mesh),
    )
    yield "no batch", lambda: sv.accumulate([], mesh=mesh)
    alone = Mesh(np.asarray(jax.devices()[:1]), ("devices",))
    if process == 1:
        yield "process 1 has no device", lambda: sv.pairwise(layers, mesh=alone)


def work(address: str, process: int, folder: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(address, num_processes=2, process_id=process)
    mesh = jax.make_mesh((4,), ("devices",))
    found = compute_grids(mesh)
    layers = make_layers(0)
    moments = sv.accumulate(read(layers, PARTS[process]), mesh=mesh)
    # They are arrays of this process: one of them may go on alone.
    if process == 1:
        found["cca"] = np.asarray(sv.cca_from_moments(moments, 0, 1).coefficients)
    all_of_them = [*PARTS[0], *PARTS[1]] if process == 0 else []
    idle = sv.accumulate(read(layers, all_of_them), mesh=mesh)
    for name, each in (("moments", moments), ("idle", idle)):
        for i, leaf in enumerate(jax.tree.leaves(each)):
            found[f"{name} {i}"] = np.asarray(leaf)
    for words, call in refusals(process, mesh):
        with pytest.raises(ValueError, match=words):
            call()
    np.savez(folder / f"{process}.npz", **found)
    jax.distributed.shutdown()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What two processes of two devices each have computed."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, address, str(i), str(folder)],
            env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        told = [process.communicate(timeout=SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, words in zip(started, told, strict=True):
        assert process.returncode == 0, words
    results = []
    for i in range(2):
        with np.load(folder / f"{i}.npz") as file:
            results.append(dict(file))
    return results


def test_every_process_has_the_grids_of_one_device(found):
    for name, expected in compute_grids(None).items():
        for each in found:
            # To rounding: the compiler may fuse a sum with what is around it or not.
            np.testing.assert_allclose(each[name], expected, rtol=5e-7, atol=5e-7)
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_every_process_has_the_moments_of_all(found):
    layers = make_layers(0)
    one = jax.tree.leaves(sv.accumulate(read(layers, [*PARTS[0], *PARTS[1]])))
    assert one[0] == 69
    for name in ("moments", "idle"):
        for i in range(len(one)):
            np.testing.assert_array_equal(
                found[0][f"{name} {i}"], found[1][f"{name} {i}"]
            )
    structure = jax.tree.structure(sv.init_moments([5, 3, 5]))
    for name in ("moments", "idle"):
        leaves = [jnp.asarray(found[0][f"{name} {i}"]) for i in range(len(one))]
        moments = jax.tree.unflatten(structure, leaves)
        for i, x in enumerate(layers):
            np.testing.assert_allclose(moments.mean(i), x.mean(axis=0), atol=1e-6)
            for j, y in enumerate(layers):
                exact = [a.astype(np.float64) - a.mean(axis=0) for a in (x, y)]
                expected = exact[0].T @ exact[1]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(
                    moments.comoment(i, j), expected, atol=2e-6 * scale
                )


def test_one_process_goes_on_alone_with_the_moments(found):
    layers = make_layers(0)
    expected = sv.cca(layers[0], layers[1]).coefficients
    np.testing.assert_allclose(found[1]["cca"], expected, atol=1e-5)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
