"""The training loop: everything around the compiled step.

A run is a pure function of its configuration. Batches follow from (seed, step), so a
checkpoint needs the state and the step alone, and a run that was stopped anywhere ends
with the same parameters, bit for bit, as one that never was.
"""

import math
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from e3dsnn_jax.capacity import CapacityError
from e3dsnn_jax.data.clouds import labels_of
from e3dsnn_jax.data.loader import ShapeBatch
from e3dsnn_jax.pyramid import Level
from e3dsnn_jax.training.checkpoints import Checkpoints, Position
from e3dsnn_jax.training.compilations import programs_compiled
from e3dsnn_jax.training.config import TrainConfig, check_config
from e3dsnn_jax.training.datasets import open_data
from e3dsnn_jax.training.devices import use_all_cores
from e3dsnn_jax.training.evaluate import Evaluation, evaluate, write_evaluation
from e3dsnn_jax.training.feed import device_batches
from e3dsnn_jax.training.freezer import (
    Freezer,
    Freezings,
    read_freezings,
    tell_freezings,
)
from e3dsnn_jax.training.overflow import check_overflow
from e3dsnn_jax.training.processes import (
    broadcast,
    first_does,
    is_first,
    join_processes,
    say,
    told_by_first,
    wait_for_all,
    waiting_for_the_roll_call,
)
from e3dsnn_jax.training.roll_call import roll_call
from e3dsnn_jax.training.run_folder import MetricsLog, check_run, open_run, read_metrics
from e3dsnn_jax.training.setup import RunSetup, make_setup
from e3dsnn_jax.training.state import TrainState
from e3dsnn_jax.training.steps import StepMetrics, replicate
from e3dsnn_jax.training.stopping import Interrupted, StopRequest, stop_on_signals


class TrainingError(ValueError):
    """A run cannot go on; the message says at which step, why, and what to do."""


class TrainResult(NamedTuple):
    """How a run ended."""

    run: Path
    """Folder of the run."""
    step: int
    """Optimizer updates done."""
    evaluation: Evaluation
    """Evaluation of the last variables."""
    variables: dict[str, Any]
    """The variables that were evaluated: moving averages where there are."""
    seconds: float
    """Wall-clock time of this call."""
    programs_compiled: int
    """Programs that this call compiled."""
    freezings: Freezings = ()
    """When how many blocks were frozen."""


def train(config: TrainConfig) -> TrainResult:
    """Trains a classifier, or resumes and finishes a run that was stopped.

    Under a launcher that starts several processes (see `join_processes`) each calls
    this, with the same configuration and a run folder that all of them see.

    Args:
      config: The run. If its folder holds a run, the configurations must agree.

    Raises:
      Interrupted: After Ctrl-C or SIGTERM, when the state is saved.
      TrainingError: If the loss or its gradient is not finite, or a batch needs
        larger static shapes.
      ProcessError: If another process of the run has failed.
      ValueError: If the configuration or the data cannot be used.
    """
    started, compiled = time.monotonic(), programs_compiled()
    check_config(config)
    config = check_run(config)
    coordinator = join_processes()
    at_once = config.recipe.batch_size // config.recipe.accumulate
    use_all_cores(at_once, devices=config.devices)
    with roll_call(coordinator), waiting_for_the_roll_call():
        state, evaluation, setup = _train_to_the_end(config)
        run, total = setup.config.run, setup.total
        freezings = first_does(lambda: read_freezings(run))
        tell_freezings(freezings, setup)
        if is_first():
            write_evaluation(run, evaluation, step=total)
            _draw_curves(run)
        # Those that leave first wait for the others, but not for as long as it takes.
        wait_for_all("the end")
    return TrainResult(
        run=run,
        step=total,
        evaluation=evaluation,
        variables=jax.tree.map(np.asarray, _evaluated(state)),
        seconds=time.monotonic() - started,
        programs_compiled=programs_compiled() - compiled,
        freezings=freezings,
    )


def _train_to_the_end(
    config: TrainConfig,
) -> tuple[TrainState, Evaluation, RunSetup]:
    """Trains from wherever the run stands to its end, with all processes."""
    data = first_does(lambda: open_data(config.data))
    setup, state = make_setup(config, data)
    labels = {"training": labels_of(data.train), "test": labels_of(data.evaluation)}
    names, asked = data.train.class_names, config
    config = first_does(lambda: open_run(asked, names, labels))
    setup = setup._replace(config=config)
    keep = config.keep if config.checkpoints is None else sys.maxsize
    with Checkpoints(config.run, keep=keep) as checkpoints:
        position = Position(0, config.seed, setup.mesh.size, [])
        state, stored = _restore(checkpoints, state)
        if stored is not None:
            if stored.step > setup.total:
                raise TrainingError(
                    f"{config.run} is at step {stored.step}, but the run has only "
                    f"{setup.total} steps: were its files changed? Name another folder "
                    "with --run"
                )
            _announce(stored, position)
            position = stored._replace(devices=position.devices)
        state = replicate(state, setup.mesh)
        with (
            MetricsLog(config.run, step=position.step, silent=not is_first()) as log,
            stop_on_signals() as stop,
        ):
            run = _Run(setup, checkpoints, log, stop)
            state, evaluation = run.advance(state, position)
    return state, evaluation, setup


class _Run:
    """A run in progress: what changes beside the state."""

    def __init__(
        self,
        setup: RunSetup,
        checkpoints: Checkpoints,
        log: MetricsLog,
        stop: StopRequest,
    ):
        self.setup = setup
        self.checkpoints = checkpoints
        self.log = log
        self.stop = stop
        # Steps since the last line of metrics, and when the first of them started.
        self.window: list[list[float]] = []
        self.window_started = time.monotonic()
        # Seconds of that in which the next batch was fetched, while the devices worked
        # on the step before: they idle only if fetching takes longer than that step.
        self.fetching = 0.0

    def advance(
        self, state: TrainState, position: Position
    ) -> tuple[TrainState, Evaluation]:
        """Trains from a position to the end of the run."""
        setup, config = self.setup, self.setup.config
        step, self.window = position.step, [list(row) for row in position.window]
        freezer = Freezer(setup, self.log, position)
        evaluation, pending = None, None
        batches = self._batches(step)
        with tqdm(
            total=setup.total,
            initial=step,
            unit="step",
            file=sys.stderr,
            mininterval=0.5,
            disable=not is_first(),
        ) as bar:
            while True:
                due = step > 0 and setup.is_due(step, config.evaluate_every_epochs)
                if due and evaluation is None:
                    evaluation = self._evaluate(state, step, bar)
                if step == setup.total:
                    break
                asked = time.monotonic()
                batch = next(batches, None)
                self.fetching += time.monotonic() - asked
                if batch is None:
                    break  # somebody asked to stop
                train_step = setup.train_steps[freezer.frozen.blocks]
                state, metrics = train_step(state, batch)
                step, evaluation = step + 1, None
                # The numbers of a step are read while the next one computes.
                if pending is not None:
                    self._account(*pending, bar)
                pending = (step, metrics, batch.levels)
                # Before a checkpoint of this step, which a resumed run goes on from.
                state = freezer.after(state, step)
                position = freezer.place(position)
                if self._is_checkpoint(step):
                    self._account(*pending, bar)
                    pending = None
                    self._save(state, step, position)
            if pending is not None:
                self._account(*pending, bar)
        batches.close()
        if step < setup.total or evaluation is None:
            self._save(state, step, position)
            self.checkpoints.wait()
            raise self._interrupted(step)
        return state, evaluation

    def _is_checkpoint(self, step: int) -> bool:
        config, every = self.setup.config, self.setup.config.checkpoint_every_steps
        return (
            self._is_planned(step)
            # An evaluation that is interrupted starts again from a checkpoint.
            or self.setup.is_due(step, config.evaluate_every_epochs)
            or (every is not None and step % every == 0)
        )

    def _is_planned(self, step: int) -> bool:
        """Whether a checkpoint follows an update by epochs, or by an even spacing."""
        config, total = self.setup.config, self.setup.total
        if config.checkpoints is None:
            return self.setup.is_due(step, config.checkpoint_every_epochs)
        number, before = (at * config.checkpoints // total for at in (step, step - 1))
        return number > before

    def _save(self, state: TrainState, step: int, position: Position) -> None:
        rows = [list(row) for row in self.window]
        self.checkpoints.save(state, position._replace(step=step, window=rows))

    def _batches(self, step: int) -> Generator[ShapeBatch]:
        """Batches from an update on, on their devices."""
        config = self.setup.config
        try:
            yield from device_batches(
                self.setup.source,
                self.setup.mesh,
                start=step,
                workers=config.data.workers,
                prefetch=config.data.prefetch,
                stop=lambda: bool(self.stop),
            )
        except CapacityError as error:
            raise self._too_large(f"a batch after step {step}", error) from error
        except Exception:
            # A worker may have been ended by the same Ctrl-C.
            if not self.stop or jax.process_count() > 1:
                raise

    def _too_large(self, what: str, error: CapacityError) -> TrainingError:
        return TrainingError(
            f"{what} does not fit: {error}. Run again with larger numbers of "
            f"--data.capacity-slacks, now {self.setup.config.data.capacity_slacks}"
        )

    def _account(
        self, step: int, metrics: StepMetrics, levels: tuple[Level, ...], bar: tqdm
    ) -> None:
        """Checks the numbers of a step, and logs those of every window of steps."""
        try:
            check_overflow(metrics.needed, levels)
        except CapacityError as error:
            raise self._too_large(f"the batch of step {step}", error) from error
        loss = float(metrics.loss)
        grad_norm = float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"the loss of step {step} is {loss} and the norm of its gradient "
                f"{grad_norm}: lower the learning rate "
                f"(--recipe.optimizer.learning-rate, now "
                f"{self.setup.config.recipe.optimizer.learning_rate}), limit the "
                "gradient (--recipe.clip-norm 1), or train in float32. Nothing was "
                "saved after the checkpoint before this step"
            )
        row = [
            loss,
            int(metrics.correct),
            int(metrics.clouds),
            grad_norm,
        ]
        self.window.append(row)
        rows = np.array(self.window)
        loss, accuracy = rows[:, 0].mean(), rows[:, 1].sum() / rows[:, 2].sum()
        elapsed = max(time.monotonic() - self.window_started, 1e-9)
        # After a resumption the window holds steps of the process before.
        speed = rows[:, 2].sum() / elapsed
        bar.set_postfix_str(
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {speed:.0f} clouds/s",
            refresh=False,
        )
        bar.update()
        if step % self.setup.config.log_every_steps == 0 or step == self.setup.total:
            self.log.write(
                "train",
                step,
                epoch=step / self.setup.source.steps_per_epoch,
                loss=float(loss),
                accuracy=float(accuracy),
                grad_norm=float(rows[:, 3].mean()),
                clouds_per_second=float(speed),
                fetching_batches=self.fetching / elapsed,
            )
            self.window, self.window_started = [], time.monotonic()
            self.fetching = 0.0

    def _evaluate(self, state: TrainState, step: int, bar: tqdm) -> Evaluation:
        setup, began = self.setup, time.monotonic()

        def on_batch(done: int, total: int) -> None:
            # Of several processes none can leave alone: they stop after the evaluation.
            if self.stop and jax.process_count() == 1:
                self.checkpoints.wait()
                raise self._interrupted(step)
            bar.set_description(f"evaluating {done}/{total}", refresh=False)
            bar.update(0)  # redraws, but not too often

        variables = _evaluated(state)
        result = evaluate(
            setup.eval_step,
            variables,
            setup.evaluation,
            setup.mesh,
            workers=setup.config.data.workers,
            on_batch=on_batch,
        )
        bar.set_description("", refresh=False)
        self.checkpoints.save_best(variables, step=step, accuracy=result.accuracy)
        # A resumed run may stand at a step whose evaluation is already logged.
        if is_first() and not _is_logged(setup.config.run, "eval", step):
            self.log.write(
                "eval",
                step,
                epoch=setup.epochs_done(step),
                loss=result.loss,
                accuracy=result.accuracy,
                mean_class_accuracy=result.mean_class_accuracy,
            )
        if is_first():
            tqdm.write(
                f"epoch {setup.epochs_done(step)}: accuracy {result.accuracy:.2%}, "
                f"mean of the classes {result.mean_class_accuracy:.2%}, loss "
                f"{result.loss:.3f}",
                file=sys.stderr,
            )
        # Evaluating does not count as slow training.
        self.window_started += time.monotonic() - began
        return result

    def _interrupted(self, step: int) -> Interrupted:
        run = self.setup.config.run
        if not is_first():
            return Interrupted("", signal_number=self.stop.signal_number or 2)
        return Interrupted(
            f"Stopped at step {step} of {self.setup.total}; the state is saved in "
            f"{run}. Run the same command again to resume.",
            signal_number=self.stop.signal_number or 2,
        )


def _is_logged(run: Path, kind: str, step: int) -> bool:
    return any(
        line["kind"] == kind and line["step"] == step for line in read_metrics(run)
    )


def _evaluated(state: TrainState) -> dict[str, Any]:
    if state.ema is not None:
        return state.ema
    return {"params": state.params, "batch_stats": state.batch_stats}


def _restore(
    checkpoints: Checkpoints, initial: TrainState
) -> tuple[TrainState, Position | None]:
    """The state and position to go on from: process 0 reads, and tells the others."""
    found = []

    def read() -> dict[str, Any] | None:
        restored = checkpoints.restore(initial)
        found.append(initial if restored is None else restored[0])
        return None if restored is None else restored[1]._asdict()

    position = told_by_first(read)
    state = broadcast(found[0] if found else initial)
    return state, None if position is None else Position(**position)


def _announce(stored: Position, now: Position) -> None:
    say(f"Resuming after step {stored.step}.")
    if stored.devices != now.devices:
        say(
            f"The run used {stored.devices} devices and goes on with {now.devices}: "
            "sums are rounded differently, so its numbers will differ slightly from "
            "those of a run without a break."
        )


def _draw_curves(run: Path) -> None:
    from e3dsnn_jax import figures

    figures.draw_training(read_metrics(run), run / "figures" / "training.png")
