"""The bfloat16 comparison: its counts, and the command on a small trained run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.training.config import ModelConfig, TrainConfig
from e3dsnn_jax.training.loop import train
from experiments import precision, smoke
from experiments.kicad40 import KiCad40, make_config
from tests.test_classifier import TINY, make_batch


def test_flips_are_counted_over_real_voxels(rng):
    features, levels = make_batch(rng, slack=1.5)
    model = Classifier(TINY, 5)
    init = jax.jit(lambda key: model.init(key, *inputs, num_clouds=2, train=False))
    inputs = (features, levels)
    variables = init(jax.random.key(0, impl="rbg"))
    # Initial kernels of 0.02 leave every membrane silent.
    variables = jax.tree.map(lambda leaf: leaf * 20, variables)
    labels = np.array([0, 1], np.int32)
    batch = ShapeBatch(features, levels, labels, labels)
    result = jax.jit(lambda v, b: precision.compare(model, v, b))(variables, batch)
    voxels = [int(level.voxels_needed) for level in levels]
    assert int(result.spikes["stem/unit1/spikes"]) == voxels[0] * 4
    assert int(result.spikes["stage1/down/spikes"]) == voxels[1] * 4
    assert int(result.spikes["stage1/block1/unit2/spikes"]) == voxels[2] * 6
    for name, counts in result.flipped.items():
        assert (counts >= 0).all()
        assert (counts <= result.spikes[name]).all()
    # The first spikes differ by the rounding of one real-valued layer alone.
    first = result.flipped["stem/unit1/spikes"] / (voxels[0] * 4)
    flipped, split = np.asarray(sum(result.flipped.values()))
    assert flipped > 0
    assert first[0] < 0.05
    # Real inputs are not rounded under the second policy, so no spike of theirs is.
    assert first[1] == 0
    assert split < flipped / 4


@pytest.mark.slow
def test_the_command_prints_one_json_object(tmp_path, capsys):
    data = smoke.write_shards(tmp_path / "data")
    config: TrainConfig = make_config(
        KiCad40(data=data, epochs=1, recipe="paper", run=tmp_path / "run")
    )
    train(
        dataclasses.replace(
            config,
            model=ModelConfig(architecture=smoke.ARCHITECTURE),
            data=dataclasses.replace(config.data, voxel_size=smoke.VOXEL_SIZE),
            recipe=dataclasses.replace(config.recipe, batch_size=smoke.BATCH_SIZE),
        )
    )
    assert precision.main([str(tmp_path / "run")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    for policy in precision.POLICIES:
        assert 0 <= summary[policy]["flipped"] < 0.5
        assert set(summary[policy]["layers"]) > {"stem/unit1/spikes"}


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert precision.main([str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
