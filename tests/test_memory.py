"""Memory of a compiled step: the plan, what is free, and what is said of the two."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from e3dsnn_jax.training import memory
from e3dsnn_jax.training.memory import (
    AnnouncedStep,
    StepMemory,
    describe_memory,
    free_memory,
    step_memory,
)

FLOATS = 250_000  # a megabyte


def test_a_donated_argument_is_not_counted_again():
    rows = jnp.zeros(FLOATS)
    add = lambda x: x + 1
    fresh = step_memory(jax.jit(add).lower(rows).compile())
    donated = step_memory(jax.jit(add, donate_argnums=0).lower(rows).compile())
    assert fresh is not None
    assert donated is not None
    assert (fresh.arguments, fresh.working) == (4 * FLOATS, 4 * FLOATS)
    assert (donated.arguments, donated.working) == (4 * FLOATS, 0)


def test_intermediate_results_are_counted():
    def twice(x):
        return jnp.sort(jnp.sort(x) * x).sum()

    plan = step_memory(jax.jit(twice).lower(jnp.zeros(FLOATS)).compile())
    assert plan is not None
    assert plan.working >= 4 * FLOATS


def test_free_memory_is_that_of_the_machine():
    free = free_memory(jax.devices()[0])
    assert free is None or 10**6 < free < 10**14


def test_a_container_limits_what_is_free(tmp_path, monkeypatch):
    if free_memory(jax.devices()[0]) is None:
        pytest.skip("free memory is unknown on this system")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    whole = free_memory(jax.devices()[0])
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(free_memory(jax.devices()[0]) - whole) < 0.2 * whole
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert free_memory(jax.devices()[0]) == 3_000_000
    # Files that the kernel keeps in memory count as used there, and are free.
    stat = "anon 1000\ninactive_file 700000\nactive_file 200000\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert free_memory(jax.devices()[0]) == 3_900_000


def test_lines_have_both_numbers_and_say_what_to_do():
    step = StepMemory(arguments=10**9, working=3 * 10**9)
    line = describe_memory(step, None, sharing=1)
    assert line == "A training step takes 3.00 GB beside 1.00 GB of state and batch."
    assert describe_memory(step, 8 * 10**9, sharing=2).endswith("; 8.0 GB are free.")
    line = describe_memory(step, 4 * 10**9, sharing=2)
    assert line.startswith("WARNING: A training step takes 6.00 GB")
    assert "only 4.00 GB are free" in line
    for option in ("--recipe.batch-size", "--recipe.accumulate", "rematerialise"):
        assert option in line


def test_a_step_is_compiled_once_a_shape_and_announced_before_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    said: list[str] = []

    def step(state: Any, batch: Any) -> Any:
        jax.debug.callback(lambda: said.append(capsys.readouterr().err))
        return state + batch.sum(), jnp.sort(batch)

    announced = AnnouncedStep(jax.jit(step, donate_argnums=0), jax.devices()[:1])
    state = jnp.float32(0)
    for rows in (4, 4, 6):
        state, largest = announced(state, jnp.arange(float(rows)))
        assert float(largest[-1]) == rows - 1
    jax.effects_barrier()
    assert float(state) == 6 + 6 + 15
    # The first program is described before its first run, those that fit are not.
    assert said[0].startswith("A training step takes 0.00 GB")
    assert said[1:] == ["", ""]
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    announced(state, jnp.arange(1000.0))
    jax.effects_barrier()
    assert said[3].startswith("WARNING")
