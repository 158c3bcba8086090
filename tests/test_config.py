"""Configurations: their JSON, their checks and the command line made of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tyro

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.data.augment import Augment
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training.config import (
    FREE_FIELDS,
    PAPER_RECIPE,
    DataConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    check_config,
)
from e3dsnn_jax.training.config_json import (
    ConfigError,
    differing_fields,
    from_json,
    to_json,
)
from e3dsnn_jax.training.optimizer import AdamW, Sgd
from e3dsnn_jax.training.schedule import Cosine, MultiStep

UNUSUAL = TrainConfig(
    run=Path("runs/unusual"),
    data=DataConfig(path=Path("somewhere"), normals=False, hold_out="train_1.npz"),
    model=ModelConfig(
        variant="L",
        neuron=Neuron(levels=2, time_steps=3),
        compute_dtype="bfloat16",
        rematerialise=True,
        architecture=Architecture(3, 8, (8, 16), (1, 2)),
    ),
    recipe=Recipe(
        optimizer=AdamW(learning_rate=1e-3),
        schedule=Cosine(warmup=0.1),
        augment=Augment(scale=(0.8, 1.25), rotate_z_degrees=180.0),
        ema_decay=0.99,
        clip_norm=1.0,
    ),
    devices=2,
)


def stored(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(to_json(config)))


@pytest.mark.parametrize("config", [TrainConfig(), UNUSUAL])
def test_json_gives_the_configuration_back(config: TrainConfig):
    assert from_json(TrainConfig, stored(config), where="config.json") == config


def test_paper_recipe_is_the_published_one():
    assert PAPER_RECIPE.optimizer == Sgd(0.1, 0.9, 1e-3, nesterov=True)
    assert PAPER_RECIPE.schedule == MultiStep((0.6, 0.8), 0.1)
    assert (PAPER_RECIPE.epochs, PAPER_RECIPE.batch_size) == (300, 16)
    assert PAPER_RECIPE.label_smoothing == 0.2
    assert PAPER_RECIPE.augment == Augment(scale=(0.9, 1.1), shift=0.2, shuffle=True)
    assert PAPER_RECIPE.votes == 1
    assert PAPER_RECIPE.ema_decay is None


def broken(path: str, value: Any) -> dict[str, Any]:
    """Default configuration as JSON with one value replaced; None removes it."""
    content = stored(TrainConfig())
    *parents, name = path.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "recipe.warmth",
            3,
            "unknown field recipe.warmth; the fields there are epochs",
        ),
        ("seed", None, "the field seed is missing"),
        ("recipe.augment.shift", None, "the field recipe.augment.shift is missing"),
        ("recipe.epochs", "ten", "recipe.epochs is 'ten', expected int"),
        ("recipe.epochs", True, "recipe.epochs is True, expected int"),
        ("data.normals", 1, "data.normals is 1, expected bool"),
        ("model.variant", "XL", "model.variant is 'XL', expected 'T' or 'S'"),
        ("recipe.augment.scale", [1.0], "expected a list of 2"),
        ("recipe.augment.scale", [0.9, "x"], r"scale\[1\] is 'x', expected float"),
        ("recipe.optimizer", {"kind": "Lion"}, '"kind": Sgd or AdamW'),
        ("model.neuron.levels", 0, "model.neuron: levels must lie in 1..127"),
        ("data", [], "data is .., expected the fields of DataConfig"),
    ],
)
def test_stored_configuration_that_cannot_be_used(path: str, value: Any, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        from_json(TrainConfig, broken(path, value), where="run/config.json")
    assert str(error.value).startswith("run/config.json: ")


def test_whole_numbers_are_read_as_floats():
    read = from_json(TrainConfig, broken("data.voxel_size", 1), where="x")
    assert read.data.voxel_size == 1.0
    assert isinstance(read.data.voxel_size, float)


def test_differing_fields_are_named_with_both_values():
    other = dataclasses.replace(
        TrainConfig(),
        seed=3,
        recipe=Recipe(optimizer=AdamW(), schedule=MultiStep(factor=0.5)),
    )
    assert differing_fields(to_json(TrainConfig()), to_json(other)) == [
        ("recipe.optimizer", "Sgd", "AdamW"),
        ("recipe.schedule.factor", 0.1, 0.5),
        ("seed", 0, 3),
    ]


def test_free_fields_exist():
    content = stored(TrainConfig())
    for name in FREE_FIELDS:
        place: Any = content
        for part in name.split("."):
            place = place[part]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(data=DataConfig(voxel_size=0.0)), "data.voxel_size must be pos"),
        (TrainConfig(data=DataConfig(fraction=1.5)), "data.fraction .* got 1.5"),
        (TrainConfig(data=DataConfig(workers=-1)), "data.workers .* got -1"),
        (TrainConfig(data=DataConfig(hold_out="a.npz")), "data.hold_out=a.npz needs"),
        (
            TrainConfig(data=DataConfig(capacity_slacks=(1.6, 1.1))),
            r"rising numbers from 1 on, got \(1.6, 1.1\)",
        ),
        (TrainConfig(recipe=Recipe(epochs=0)), "recipe.epochs must be positive, got 0"),
        (TrainConfig(recipe=Recipe(clip_norm=-1.0)), "recipe.clip_norm .* got -1"),
        (TrainConfig(recipe=Recipe(label_smoothing=1.0)), "label_smoothing .* got 1.0"),
        (TrainConfig(recipe=Recipe(ema_decay=1.0)), "recipe.ema_decay .* got 1.0"),
        (TrainConfig(devices=3), "batch_size=16 must be a multiple of devices=3"),
        (TrainConfig(recipe=Recipe(accumulate=5)), "recipe.accumulate=5"),
        (TrainConfig(seed=-1), "seed must be 0 or more, got -1"),
    ],
)
def test_values_that_no_run_could_use(config: TrainConfig, message: str):
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_architecture_follows_the_variant_and_the_normals():
    assert ModelConfig().resolve_architecture(normals=True).in_channels == 6
    without = ModelConfig(variant="S").resolve_architecture(normals=False)
    assert (without.in_channels, without.embed_channels) == (3, 24)
    with pytest.raises(
        ValueError, match=r"in_channels=3 but data\.normals=True gives 6"
    ):
        UNUSUAL.model.resolve_architecture(normals=True)


def test_every_field_is_an_option_of_the_command_line():
    words = "--recipe.epochs 3 --model.neuron.levels 2 --data.voxel-size 0.1"
    words += " recipe.optimizer:adam-w recipe.schedule:cosine"
    words += " --recipe.optimizer.learning-rate 0.5"
    config = tyro.cli(tyro.conf.CascadeSubcommandArgs[TrainConfig], args=words.split())
    assert config.recipe.optimizer == AdamW(learning_rate=0.5)
    assert config.recipe.schedule == Cosine()
    assert config.recipe.epochs == 3
    assert config.model.neuron.levels == 2
    assert config.data.voxel_size == 0.1
