"""Freeze training: what is frozen stays as it is, costs nothing, and resumes."""

import dataclasses
import functools
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from freeze_run import guided_config
from tiny_run import make_data, same_trees, share_compilations, tiny_config

from e3dsnn_jax.backbone import VARIANTS, Architecture
from e3dsnn_jax.classifier import Classifier
from e3dsnn_jax.data.clouds import CloudSubset
from e3dsnn_jax.data.loader import BatchLayout, BatchSource
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.data.plan import plan_capacities
from e3dsnn_jax.spike import Neuron
from e3dsnn_jax.training import freeze_guide
from e3dsnn_jax.training.config import Recipe, TrainConfig, check_config
from e3dsnn_jax.training.config_json import from_json, to_json
from e3dsnn_jax.training.evaluate import Evaluation
from e3dsnn_jax.training.freeze import (
    Frozen,
    GuidedFreeze,
    LinearFreeze,
    first_look,
    frozen_at,
    group_ends,
    is_look,
    join_parts,
    numbers_of_frozen_blocks,
    part_frozen,
    settle,
)
from e3dsnn_jax.training.freeze_guide import Guide, compare
from e3dsnn_jax.training.loop import TrainResult, train
from e3dsnn_jax.training.loss import cross_entropy
from e3dsnn_jax.training.optimizer import AdamW, MultiStep, make_optimizer
from e3dsnn_jax.training.run_folder import MetricsLog, read_config, read_metrics
from e3dsnn_jax.training.state import create_state, update_averages
from e3dsnn_jax.training.steps import (
    make_mesh,
    make_train_step,
    replicate,
    shard_batch,
)
from e3dsnn_jax.training.stopping import Interrupted
from experiments import freeze_products, freeze_training, smoke
from svcca_jax import svcca
from tests import test_processes
from tests.test_steps import (
    ARCHITECTURE,
    CONTINUOUS,
    SGD,
    make_batch,
    make_clouds,
    one_device,
)

BLOCKS = ("stem", "stage0/down", "stage0/block0")


def names_of(tree: Any) -> set[str]:
    return {"/".join(key.key for key in path) for path, _ in leaves_of(tree)}


def leaves_of(tree: Any) -> list[Any]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


# The schedules.


def test_blocks_are_named_from_the_input_upwards():
    assert ARCHITECTURE.block_names == BLOCKS
    assert VARIANTS["L"].block_names[:5] == (
        "stem",
        "stage0/down",
        "stage0/block0",
        "stage0/block1",
        "stage1/down",
    )
    assert len(VARIANTS["L"].block_names) == 1 + 4 * 3


@pytest.mark.parametrize(
    ("blocks", "groups", "ends"),
    [(9, 4, (2, 4, 6, 9)), (3, 3, (1, 2, 3)), (3, 1, (3,)), (5, 2, (2, 5))],
)
def test_groups_share_the_blocks_and_end_with_the_last(blocks, groups, ends):
    assert group_ends(blocks, groups) == ends
    freeze = LinearFreeze(groups=groups)
    assert numbers_of_frozen_blocks(freeze, blocks=blocks) == (0, *ends)
    assert numbers_of_frozen_blocks(None, blocks=blocks) == (0,)


def test_linear_schedule_freezes_at_evenly_spaced_steps():
    frozen = [
        frozen_at(LinearFreeze(0.25, 1.0, 4), step, total=8, blocks=9)
        for step in range(9)
    ]
    assert frozen == [0, 0, 2, 2, 4, 4, 6, 6, 9]
    early = [
        frozen_at(LinearFreeze(0.1, 0.5, 3), step, total=10, blocks=3)
        for step in range(10)
    ]
    assert early == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3]
    # However short the run: the first update is one of the whole network.
    assert frozen_at(LinearFreeze(0.01, 0.01, 1), 0, total=5, blocks=3) == 0
    assert frozen_at(LinearFreeze(0.01, 0.01, 1), 1, total=5, blocks=3) == 3


def test_guide_looks_every_few_steps_and_not_at_the_end():
    freeze = GuidedFreeze(every=3, start=0.4)
    assert first_look(freeze, total=10) == 6
    assert [s for s in range(11) if is_look(freeze, s, total=10)] == [6, 9]
    freeze = GuidedFreeze(every=5, start=0.0)
    assert [s for s in range(11) if is_look(freeze, s, total=10)] == [5]


def test_blocks_settle_from_below_after_some_patience():
    freeze = GuidedFreeze(threshold=0.9, patience=2, groups=3)
    frozen, seen = Frozen(), []
    for similarities in [
        (0.95, 0.95, 0.2),
        (0.95, 0.5, 0.95),  # the first is frozen; the others start anew
        (0.1, 0.95, 0.95),  # nothing thaws
        (float("nan"), 0.95, 0.95),  # one group at a time, though both have settled
        (0.95, 0.2, 0.95),
        (0.9, 0.9, 0.9),  # the threshold itself is not above it
        (1.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
    ]:
        frozen = settle(freeze, frozen, similarities)
        seen.append(frozen.blocks)
    assert seen == [0, 1, 1, 2, 2, 2, 2, 3, 3]
    assert frozen.streaks == (1, 1, 1)


def test_group_is_frozen_when_all_of_it_has_settled():
    freeze = GuidedFreeze(threshold=0.9, patience=1, groups=2)
    assert settle(freeze, Frozen(), (1.0, 1.0, 0.0, 1.0)).blocks == 2
    assert settle(freeze, Frozen(), (1.0, 0.0, 1.0, 1.0)).blocks == 0
    assert settle(freeze, Frozen(2), (1.0, 1.0, 1.0, 0.0)).blocks == 2
    assert settle(freeze, Frozen(2), (0.0, 0.0, 1.0, 1.0)).blocks == 4


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (LinearFreeze(start=0.8, end=0.5), "start=0.8 and end=0.5"),
        (LinearFreeze(start=0.0), "0 < start"),
        (LinearFreeze(end=1.5), "end=1.5"),
        (LinearFreeze(groups=10), r"groups must lie in 1..9, .* got 10"),
        (LinearFreeze(groups=0), r"groups .* got 0"),
        (LinearFreeze(start=float("nan")), "start=nan"),
        (GuidedFreeze(threshold=1.0), r"threshold .* got 1.0"),
        (GuidedFreeze(threshold=0.0), r"threshold .* got 0.0"),
        (GuidedFreeze(start=1.0), r"freeze.start .* got 1.0"),
        (GuidedFreeze(patience=0), "freeze.patience must be at least 1, got 0"),
        (GuidedFreeze(every=0), "freeze.every must be at least 1, got 0"),
        (GuidedFreeze(clouds=0), "freeze.clouds must be at least 1, got 0"),
    ],
)
def test_schedules_that_no_run_could_follow(freeze, message):
    with pytest.raises(ValueError, match=message):
        check_config(TrainConfig(recipe=Recipe(freeze=freeze)))


@pytest.mark.parametrize("freeze", [None, LinearFreeze(groups=2), GuidedFreeze()])
def test_configuration_is_read_back(freeze):
    config = TrainConfig(recipe=Recipe(freeze=freeze))
    stored = json.loads(json.dumps(to_json(config)))
    assert from_json(TrainConfig, stored, where="x") == config
    if freeze is None:  # as runs wrote it before there was the option
        del stored["recipe"]["freeze"]
        assert from_json(TrainConfig, stored, where="x") == config


def test_schedules_are_chosen_on_the_command_line():
    parse = lambda words: tyro.cli(
        tyro.conf.CascadeSubcommandArgs[TrainConfig], args=words.split()
    )
    assert parse("").recipe.freeze is None
    linear = parse("recipe.freeze:linear-freeze --recipe.freeze.start 0.5")
    assert linear.recipe.freeze == LinearFreeze(start=0.5)
    guided = parse("recipe.optimizer:adam-w recipe.freeze:guided-freeze")
    assert (guided.recipe.freeze, guided.recipe.optimizer) == (GuidedFreeze(), AdamW())


# One step.


@pytest.fixture(scope="module")
def initial():
    """A state whose statistics are not those of its batch, on the host."""
    example = one_device(make_batch(make_clouds(), 1))
    state = create_state(CONTINUOUS, SGD, example, jax.random.key(0), ema=True)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p * 8 if p.ndim > 1 else p, state.params)
    stats = jax.tree.map(
        lambda s: s + rng.uniform(0.1, 0.3, s.shape).astype("f4"), state.batch_stats
    )
    ema = {"params": params, "batch_stats": stats}
    state = state._replace(params=params, batch_stats=stats, ema=ema)
    return jax.device_get(state)


@functools.cache
def train_step(frozen, devices=1, *, accumulate=1, optimizer=SGD, default=False):
    mesh = make_mesh(devices)
    options = {} if default else {"frozen_blocks": frozen}
    step = make_train_step(
        CONTINUOUS,
        optimizer,
        mesh,
        label_smoothing=0.2,
        ema_decay=0.9,
        accumulate=accumulate,
        **options,
    )
    return step, mesh


def run_step(state, batch, frozen, devices=1, **options):
    step, mesh = train_step(frozen, devices, **options)
    return jax.device_get(step(replicate(state, mesh), shard_batch(batch, mesh)))


def loss_with_frozen_in_inference_mode(params, stats, batch, frozen):
    """The loss, with two networks sewn together: no stop_gradient, no part of trees."""
    variables = {"params": params, "batch_stats": stats}
    run = functools.partial(
        CONTINUOUS.apply,
        variables,
        jnp.asarray(batch.features),
        batch.levels,
        num_clouds=8,
    )
    _, calm = run(train=False)

    def replace(next_fun, args, kwargs, context):
        # The output of a frozen block is that of the network in inference mode.
        name = "/".join(context.module.path).removeprefix("backbone/")
        ours = context.method_name == "__call__" and name in BLOCKS[:frozen]
        answer = next_fun(*args, **kwargs)
        return (calm[name], answer[1]) if ours else answer

    with nn.intercept_methods(replace):
        (logits, _), updates = run(train=True, mutable=["batch_stats"])
    losses = cross_entropy(logits, jnp.asarray(batch.labels), label_smoothing=0.2)
    return jnp.sum(losses) / 8, updates["batch_stats"]


@pytest.mark.parametrize("frozen", [pytest.param(0, marks=pytest.mark.slow), 1, 3])
def test_gradient_is_that_of_the_network_with_frozen_blocks_in_inference_mode(
    initial, frozen
):
    batch = make_batch(make_clouds(), 1)
    state, metrics = run_step(initial, batch, frozen)
    # Differentiated by everything, frozen or not.
    differentiate = jax.jit(
        jax.value_and_grad(loss_with_frozen_in_inference_mode, has_aux=True),
        static_argnums=3,
    )
    (loss, stats), gradient = differentiate(
        initial.params, initial.batch_stats, one_device(batch), frozen
    )
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    _, expected = part_frozen(gradient, BLOCKS[:frozen])
    _, params = part_frozen(initial.params, BLOCKS[:frozen])
    # The momentum after the first update: gradient and weight decay.
    _, buffer = part_frozen(momentum_of(state), BLOCKS[:frozen])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(lambda b, g, p: close(b, g + 1e-3 * p), buffer, expected, params)
    norm = optax.tree.norm(expected)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    _, moved = part_frozen(state.batch_stats, BLOCKS[:frozen])
    jax.tree.map(close, moved, part_frozen(stats, BLOCKS[:frozen]).trained)


def momentum_of(state):
    """The momentum buffer, as `Sgd` keeps it."""
    found = [
        node
        for node in jax.tree.leaves(
            state.opt_state, is_leaf=lambda n: hasattr(n, "buffer")
        )
        if hasattr(node, "buffer")
    ]
    return found[0].buffer


@pytest.mark.parametrize(
    ("frozen", "optimizer"),
    [(1, "adam"), pytest.param(3, "sgd", marks=pytest.mark.slow)],
)
def test_frozen_blocks_keep_their_bits_and_all_else_moves(initial, frozen, optimizer):
    chosen = SGD if optimizer == "sgd" else adam()
    warm = initial
    if optimizer == "adam":
        warm = initial._replace(
            opt_state=jax.device_get(jax.jit(chosen.init)(initial.params))
        )
    # A step of the whole network first, so that momenta are not zero.
    warm, _ = run_step(warm, make_batch(make_clouds(), 1), 0, optimizer=chosen)
    after = warm
    for seed in (1, 2):
        batch = make_batch(make_clouds(seed), 1)
        after, _ = run_step(after, batch, frozen, optimizer=chosen)
    blocks = tuple(f"backbone/{name}/" for name in BLOCKS[:frozen])
    kept = lambda path: any(block in name_of(path) for block in blocks)
    checked = {True: 0, False: 0}
    for part in ("params", "batch_stats", "opt_state"):
        was, now = leaves_of(getattr(warm, part)), leaves_of(getattr(after, part))
        for (path, old), (_, new) in zip(was, now, strict=True):
            if old.ndim == 0:
                continue  # counts of updates
            same = np.array_equal(old, new)
            assert same == kept(path), name_of(path)
            checked[same] += 1
    assert min(checked.values()) >= 4
    assert after.step == 3
    # Averages of frozen blocks come ever closer to them.
    gap = lambda state: optax.tree.norm(
        jax.tree.map(
            np.subtract,
            part_frozen(state.ema["params"], BLOCKS[:frozen]).fixed,
            part_frozen(state.params, BLOCKS[:frozen]).fixed,
        )
    )
    assert 0 < gap(after) < 0.5 * gap(warm)


@functools.cache
def adam():
    return make_optimizer(
        AdamW(learning_rate=0.01), MultiStep(), total_steps=10, clip_norm=1.0
    )


def name_of(path):
    return "/".join(str(getattr(k, "key", getattr(k, "name", ""))) for k in path)


@pytest.mark.slow
def test_nothing_frozen_is_the_step_as_it_always_was(initial):
    batch = make_batch(make_clouds(), 1)
    mesh = make_mesh(1)

    def program(step):
        return step.lower(replicate(initial, mesh), shard_batch(batch, mesh)).as_text()

    assert program(train_step(0)[0]) == program(train_step(0, default=True)[0])

    # And as it would be written without any parts of trees.
    @jax.jit
    def plain(state):
        (_, stats), gradient = jax.value_and_grad(
            loss_with_frozen_in_inference_mode, has_aux=True
        )(state.params, state.batch_stats, one_device(batch), 0)
        updates, opt_state = SGD.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        current = {"params": params, "batch_stats": stats}
        ema = update_averages(state.ema, current, state.step, 0.9)
        return params, stats, opt_state, ema

    state, _ = run_step(initial, batch, 0)
    expected = jax.device_get(plain(initial))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(
        close, (state.params, state.batch_stats, state.opt_state, state.ema), expected
    )


@pytest.mark.parametrize(
    "options",
    [{"devices": 4}, pytest.param({"accumulate": 2}, marks=pytest.mark.slow)],
)
def test_devices_and_parts_of_a_batch_change_nothing(initial, options):
    clouds = make_clouds()
    one, one_metrics = run_step(initial, make_batch(clouds, 1), 2)
    parts = options.get("devices", 1) * options.get("accumulate", 1)
    other, metrics = run_step(initial, make_batch(clouds, parts), 2, **options)
    assert one_metrics.clouds == metrics.clouds == 8
    fixed = lambda state: (
        part_frozen(state.params, BLOCKS[:2]).fixed,
        part_frozen(state.batch_stats, BLOCKS[:2]).fixed,
        part_frozen(momentum_of(state), BLOCKS[:2]).fixed,
    )
    assert same_trees(fixed(one), fixed(other))
    if "devices" in options:
        close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)
        jax.tree.map(close, one.params, other.params)
        jax.tree.map(close, one.batch_stats, other.batch_stats)


def test_each_frozen_block_saves_operations_and_memory(initial):
    batch = make_batch(make_clouds(), 1)
    mesh = make_mesh(1)
    operations = []
    for frozen in range(4):
        step: Any = train_step(frozen)[0]
        lowered = step.lower(replicate(initial, mesh), shard_batch(batch, mesh))
        analysis: Any = lowered.compile().cost_analysis()
        operations.append(analysis["flops"])
    assert all(now < 0.95 * was for was, now in itertools.pairwise(operations))


def test_network_with_too_many_frozen_blocks_is_refused(initial):
    with pytest.raises(ValueError, match=r"0..3, the blocks of the network, got 4"):
        train_step(4)
    batch = one_device(make_batch(make_clouds(), 1))
    model = CONTINUOUS.clone(frozen_blocks=4)
    with pytest.raises(ValueError, match="frozen_blocks=4, but the network has 3"):
        jax.eval_shape(
            lambda key, features, levels: model.init(
                key, features, levels, num_clouds=8, train=False
            ),
            jax.random.key(0),
            batch.features,
            batch.levels,
        )


def test_parts_are_disjoint_and_make_the_whole(initial):
    parts = part_frozen(initial.params, BLOCKS[:2])
    fixed, trained = names_of(parts.fixed), names_of(parts.trained)
    assert fixed
    assert not fixed & trained
    assert all(
        name.startswith(("backbone/stem/", "backbone/stage0/down/")) for name in fixed
    )
    assert same_trees(join_parts(parts), initial.params)


# The guide.


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share_compilations(tmp_path_factory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("freeze"))


SMALL = Classifier(smoke.ARCHITECTURE, len(smoke.CLASS_NAMES), Neuron(time_steps=2))
LAYOUT = BatchLayout(4, 2, num_levels=2, voxel_size=smoke.VOXEL_SIZE)


@pytest.mark.parametrize("most", [pytest.param(2048, marks=pytest.mark.slow), 20])
def test_guide_sees_the_same_real_voxels_of_every_block(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, most: int
):
    monkeypatch.setattr(freeze_guide, "MOST_DATAPOINTS", most)
    dataset = open_dataset(folder / "data", "train")
    guide = Guide(SMALL, dataset, LAYOUT, clouds=6)
    # Six of the twelve clouds, evenly spaced, on one device.
    layout = dataclasses.replace(LAYOUT, num_devices=1)
    source = BatchSource(CloudSubset(dataset, (0, 2, 4, 6, 8, 11)), layout)
    capacities = plan_capacities(source, slacks=(2.0,))
    source = dataclasses.replace(source, capacities=capacities)
    batches = [one_device(source[0]), one_device(source[1])]
    init = jax.jit(
        lambda key, batch: SMALL.init(
            key, batch.features, batch.levels, num_clouds=4, train=False
        )
    )
    variables = init(jax.random.key(0), batches[0])
    variables = jax.tree.map(lambda v: v * 30 if v.ndim == 3 else v, variables)
    look = guide.look(variables)
    assert guide.datapoints == len(look[0]) <= most
    level_of = {"stem": 0, "stage0/down": 1, "stage0/block0": 1}
    for name, layer, blank in zip(BLOCKS, look, guide.blank(), strict=True):
        assert layer.shape == blank.shape
        rows = []
        for batch in batches:
            _, activations = SMALL.apply(
                variables,
                jnp.asarray(batch.features),
                batch.levels,
                num_clouds=len(batch.labels),
                train=False,
            )
            real = batch.levels[level_of[name]].coords[:, 0] >= 0
            rows.append(np.asarray(activations[name]).mean(axis=1)[real])
        rows = np.concatenate(rows)
        # Each is one of the true rows, and none is there more often.
        places = [np.abs(rows - row).max(axis=1).argmin() for row in layer]
        np.testing.assert_allclose(rows[places], layer, rtol=1e-5, atol=1e-6)
        assert np.ptp(layer) > 0
        if most == 2048:
            assert len(look[-1]) == len(rows) or level_of[name] == 0
    assert same_trees(guide.look(variables), look)


def test_guide_needs_more_voxels_than_neurons(folder: Path):
    dataset = open_dataset(folder / "data", "train")
    model = Classifier(Architecture(6, 2, (512,), (1,)), 3)
    with pytest.raises(
        ValueError, match="to compare 512 channels SVCCA needs 2048"
    ) as e:
        Guide(model, dataset, LAYOUT, clouds=6)
    assert "--recipe.freeze.clouds" in str(e.value)
    assert "of 12 training clouds" in str(e.value)


def test_similarity_is_that_of_svcca():
    rng = np.random.default_rng(0)
    before = tuple(rng.normal(size=(50, n)).astype("f4") for n in (2, 2, 5))
    turned = before[0] @ np.array([[1, 2], [3, -1]], "f4") + np.float32(3)
    mixed = before[2] + rng.normal(size=(50, 5)).astype("f4")
    now = (turned, np.zeros_like(before[1]), mixed)
    found = compare(before, now)
    np.testing.assert_allclose(found[:2], [1, 0], atol=1e-5)
    np.testing.assert_allclose(found[2], svcca(before[2], mixed).mean, atol=1e-5)
    assert 0.3 < found[2] < 0.95


# Whole runs.


def config_of(folder: Path, kind: str, run: str) -> TrainConfig:
    if kind == "guided":
        return guided_config(folder, run=f"{run}_guided")
    linear = LinearFreeze(start=1 / 3, end=0.85, groups=3)
    return tiny_config(folder, run=f"{run}_linear", freeze=linear)


@pytest.fixture(
    scope="module",
    params=["linear", pytest.param("guided", marks=pytest.mark.slow)],
)
def whole(request, folder: Path, cache: Path) -> tuple[str, TrainResult]:
    """A run that nothing interrupts, of either kind."""
    return request.param, train(config_of(folder, request.param, "whole"))


def lines_of(run: Path) -> list[dict[str, Any]]:
    times = ("clouds_per_second", "fetching_batches")
    return [
        {name: value for name, value in line.items() if name not in times}
        for line in read_metrics(run)
    ]


def test_run_freezes_and_says_so(whole):
    kind, result = whole
    lines = [line for line in read_metrics(result.run) if line["kind"] == "freeze"]
    told = tuple((line["step"], line["frozen_blocks"]) for line in lines)
    assert result.freezings == told
    if kind == "linear":
        assert told == ((2, 1), (4, 2), (5, 3))
    else:
        assert told
        looks = [line for line in read_metrics(result.run) if line["kind"] == "look"]
        assert [line["step"] for line in looks] == [2, 3, 4, 5]
        assert all(0 <= line[name] <= 1 for line in looks for name in BLOCKS)
    # Parameters, train step, eval step, each for the shapes that occur, as of any run;
    # a train step more for each freezing; and the guide's network and similarities.
    shapes = len(read_config(result.run).data.capacity_slacks)
    most = 2 + 2 * shapes + len(told) * shapes
    assert result.programs_compiled <= most + (14 if kind == "guided" else 0)


def test_run_that_is_stopped_between_freezings_ends_the_same(
    whole, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    kind, result = whole
    step = {"linear": 4, "guided": result.freezings[0][0]}[kind]
    write = MetricsLog.write

    def write_and_stop(log: MetricsLog, what: str, now: int, **numbers: Any) -> None:
        write(log, what, now, **numbers)
        if (what, now) == ("freeze", step):
            signal.raise_signal(signal.SIGINT)

    config = config_of(folder, kind, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_stop)
        with pytest.raises(Interrupted):
            train(config)
    again = train(config)
    assert "Resuming after step" in capsys.readouterr().err
    assert same_trees(again.variables, result.variables)
    assert again.freezings == result.freezings
    assert lines_of(again.run) == lines_of(result.run)


@pytest.mark.slow
def test_two_processes_freeze_as_one(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    script = Path(__file__).with_name("freeze_run.py")
    monkeypatch.setattr(test_processes, "SCRIPT", script)
    runs = []
    for processes in (1, 2):
        run = f"of_{processes}"
        begun = test_processes.started(
            folder, run, cache, processes=processes, devices=2
        )
        told = test_processes.ended(begun, within=600)
        assert test_processes.codes(begun) == [0] * processes, told
        lines = [line for line in read_metrics(folder / run) if "loss" not in line]
        runs.append(lines)
    alone, together = runs
    places = lambda lines: [(line["kind"], line["step"]) for line in lines]
    assert places(alone) == places(together)
    assert "freeze" in [line["kind"] for line in together]
    for one, other in zip(alone, together, strict=True):
        values = [
            [line[n] for n in sorted(line) if n != "kind"] for line in (one, other)
        ]
        np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_experiment(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--smoke", "--seeds", "1", "--rounds", "2", "--run", str(tmp_path / "f")]
    assert freeze_training.main(words) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["regime"]: row for row in answer["rows"]}
    assert rows["none"]["products"] == rows["none"]["backward_products"] == 1
    assert rows["linear"]["backward_products"] < rows["linear"]["products"] < 1
    assert rows["none"]["looks"] == rows["linear"]["looks"] == 0
    assert rows["guided"]["looks"] > 0
    assert [stage["frozen_blocks"] for stage in answer["stages"]] == [0, 1, 2, 3]
    table = (tmp_path / "f" / "freeze_training.md").read_text()
    assert "| linear | 1 |" in table
    # A second time it only reads what is there.
    trained = (tmp_path / "f" / "none_seed0" / "metrics.jsonl").stat().st_mtime_ns
    assert freeze_training.main([*words, "--rounds", "0"]) == 0
    again = (tmp_path / "f" / "none_seed0" / "metrics.jsonl").stat().st_mtime_ns
    assert again == trained


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Every configuration that the experiment trains; nothing is trained."""
    found = []

    def pretend(config: TrainConfig) -> TrainResult:
        found.append(config)
        (config.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        return TrainResult(config.run, 10, evaluation(right=3), {}, 3.0, 4, ((5, 2),))

    def evaluation(right: int) -> Evaluation:
        none: Any = np.zeros(0)
        return Evaluation((), none, none, none, right / 4, 0.0, none, 0.0, {}, 1)

    monkeypatch.setattr(freeze_training, "train", pretend)
    monkeypatch.setattr(freeze_training, "load_run", lambda run: run)
    monkeypatch.setattr(freeze_training, "open_dataset", lambda *given: given)
    monkeypatch.setattr(freeze_training, "evaluate_network", lambda *_: evaluation(4))
    return found


def test_rows_are_read_back_if_they_are_of_the_same_options(tmp_path: Path, trained):
    options = freeze_training.FreezeTraining(run=tmp_path)
    rows = [freeze_training.measure(options, kind, 0) for kind in ("none", "guided")]
    assert [(row["accuracy"], row["gap"]) for row in rows] == [(0.75, 0.25)] * 2
    assert (rows[0]["seconds"], rows[0]["programs_compiled"]) == (3, 4)
    assert freeze_training.measure(options, "none", 0)["options"] == rows[0]["options"]
    assert len(trained) == 2
    other = dataclasses.replace(options, epochs=9)
    with pytest.raises(
        ValueError, match=r"none_0.json is of other options: recipe.epochs is 6 there "
    ) as error:
        freeze_training.measure(other, "none", 0)
    assert "9 now. Give the same options, or name another folder" in str(error.value)
    other = dataclasses.replace(options, data=tmp_path / "clouds")
    with pytest.raises(ValueError, match=r"data.path is None there and '.*clouds' now"):
        freeze_training.measure(other, "none", 0)
    other = dataclasses.replace(options, guided=GuidedFreeze(threshold=0.8))
    assert freeze_training.measure(other, "none", 0)["seconds"] == 3
    with pytest.raises(ValueError, match=r"threshold is 0.9 there and 0.8 now"):
        freeze_training.measure(other, "guided", 0)
    assert len(trained) == 2


def test_rows_without_options_are_computed_again(tmp_path: Path, trained):
    options = freeze_training.FreezeTraining(run=tmp_path)
    row = freeze_training.measure(options, "linear", 1)
    stored = tmp_path / "rows" / "linear_1.json"
    del row["options"]
    stored.write_text(json.dumps(row | {"accuracy": 0.1}))
    again = freeze_training.measure(options, "linear", 1)
    assert len(trained) == 2
    assert again["accuracy"] == 0.75
    # The second call began with a checkpoint: what came before is in neither number.
    assert again["seconds"] is again["programs_compiled"] is None
    assert json.loads(stored.read_text())["options"] == again["options"]
    for text, message in (("{", "damaged"), ("[]", "no row of freeze training")):
        stored.write_text(text)
        with pytest.raises(ValueError, match=rf"linear_1.json: {message}.*remove it"):
            freeze_training.measure(options, "linear", 1)


def test_looks_of_a_guide_are_counted(folder: Path):
    config = guided_config(folder)
    dataset = open_dataset(folder / "data", "train")
    freeze = GuidedFreeze(clouds=5)
    recipe = dataclasses.replace(config.recipe, freeze=freeze)
    config = dataclasses.replace(config, recipe=recipe)
    found = freeze_products.count_look(config, dataset, LAYOUT)
    # The same clouds, each by itself.
    expected = 0
    alone = dataclasses.replace(LAYOUT, batch_size=1, num_devices=1)
    for cloud in (0, 2, 5, 8, 11):
        source = BatchSource(CloudSubset(dataset, (cloud,)), alone)
        capacities = plan_capacities(source, slacks=(1.5,))
        batch = one_device(dataclasses.replace(source, capacities=capacities)[0])
        products = freeze_products.count_products(config, batch, 3)
        expected += sum(
            forward
            for forward, block in zip(products.forward, products.blocks, strict=True)
            if block < len(BLOCKS)
        )
    assert found == expected > 0
    for other in (None, LinearFreeze()):
        recipe = dataclasses.replace(config.recipe, freeze=other)
        unguided = dataclasses.replace(config, recipe=recipe)
        assert freeze_products.count_look(unguided, dataset, LAYOUT) == 0


def test_looks_are_part_of_all_products_and_unknown_times_are_left_out():
    freeze = GuidedFreeze(every=25, start=0.1)
    # Steps 50, 75, 100 and so on; the first has nothing to compare with.
    assert freeze_products.count_looks(freeze, total=375) == 13
    assert freeze_products.count_looks(LinearFreeze(), total=375) == 0
    assert freeze_products.count_looks(None, total=375) == 0
    products = freeze_products.Products([10, 10, 10, 4], [0, 0, 1, 2])
    row = {"regime": "guided", "steps": 10, "freezings": [[5, 1]]}
    found = freeze_products.add_computation(row, products, looking=92)
    assert found["looks"] == pytest.approx(92 / 920)
    assert found["backward_products"] == pytest.approx((5 * 58 + 5 * 18) / 580)
    assert found["products"] == pytest.approx((340 + 380 + 92) / 920)
    numbers = {"accuracy": 0.5, "training_accuracy": 0.5, "gap": 0.0}
    times = (None, 10.0, 20.0)
    rows = [found | numbers | {"seconds": seconds} for seconds in times]
    assert freeze_training.format_rows(rows).endswith("| 15 (2 of 3) |")
    assert freeze_training.format_rows(rows[:1]).endswith("| unknown |")
    assert freeze_training.format_rows(rows[1:]).endswith("| 15 |")


def test_products_below_the_lowest_layer_that_learns_are_saved():
    # Three layers of two blocks, and the head: 10 products each but for the head's 4.
    products = freeze_products.Products([10, 10, 10, 4], [0, 0, 1, 2])
    assert products.of_step(0) == (34, 10 + 20 + 20 + 8)
    assert products.of_step(1) == (34, 10 + 8)
    assert products.of_step(2) == (34, 4)
