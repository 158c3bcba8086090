"""Checkpoints of a run: written in the background, verified when read.

`checkpoints/<step>` holds the latest states, `best/<step>` the variables with the
highest accuracy so far. Arrays are stored as host arrays, so a checkpoint does not
depend on the devices that wrote it, and with a checksum, so that a file that was cut
off or zeroed is noticed whatever its format makes of it. A folder appears under its
final name only when it is complete.
"""

import json
import sys
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from e3dsnn_jax.training.processes import told_by_first
from e3dsnn_jax.training.state import TrainState
from e3dsnn_jax.whole_file import naming

Which = Literal["last", "best"]
LATEST, BEST = "checkpoints", "best"


class CheckpointError(ValueError):
    """No usable checkpoint; the message names the folder and what was tried."""


class Position(NamedTuple):
    """Where a run stands beside its arrays; all that a resumed run must know."""

    step: int
    """Optimizer updates done, which also tells the next batch."""
    seed: int
    """Seed of the run, from which every batch follows."""
    devices: int
    """Devices that shared each batch."""
    window: list[list[float]]
    """Loss, correct clouds, clouds and gradient norm of the steps since the last line
    of metrics."""
    frozen_blocks: int = 0
    """Blocks that are frozen."""
    streaks: list[int] | None = None
    """Of each block, if a guide decides which are frozen; see `freeze.Frozen`."""


class Checkpoints:
    """Saves and restores the states of one run; use it as a context manager."""

    def __init__(self, run: Path, *, keep: int):
        self._run = run
        self._keep = {LATEST: keep, BEST: 1}
        self._writers: dict[str, ocp.CheckpointManager] = {}

    def _writer(self, name: str) -> ocp.CheckpointManager:
        """The manager that all processes write with; made when they first do."""
        if name not in self._writers:
            self._writers[name] = _manager(self._run / name, keep=self._keep[name])
        return self._writers[name]

    def save(self, state: TrainState, position: Position) -> None:
        """Starts writing a state; returns as soon as its arrays are copied.

        A step that is already there is left as it is.
        """
        items = {
            "model": {"params": state.params, "batch_stats": state.batch_stats},
            "optimizer": {"step": state.step, "opt_state": state.opt_state},
        }
        if state.ema is not None:
            items["averages"] = state.ema
        if state.last_look is not None:
            items["last_look"] = state.last_look
        with naming(self._run / LATEST):
            writer = self._writer(LATEST)
            writer.wait_until_finished()
            if position.step not in writer.all_steps():
                _save(writer, position.step, items, position._asdict())

    def save_best(
        self, variables: dict[str, Any], *, step: int, accuracy: float
    ) -> bool:
        """Keeps these variables if they are better than the best so far.

        Returns:
          Whether they were.
        """
        with naming(self._run / BEST):
            self._writer(BEST).wait_until_finished()
            if told_by_first(lambda: self._best_is(accuracy, step)):
                return False
            self._writer(BEST).reload()
            meta = {"accuracy": accuracy}
            _save(self._writer(BEST), step, {"model": variables}, meta)
        return True

    def _best_is(self, accuracy: float, step: int) -> bool:
        """Whether a readable checkpoint is at least as good; sets others aside.

        One of the same step holds the same variables, whatever rounding has made of
        their accuracy since.
        """
        folder = self._run / BEST
        for kept in _steps(folder):
            try:
                with _manager(folder, keep=None) as reader:
                    _, meta = _load(reader, kept, {})
                if meta["accuracy"] >= accuracy or kept == step:
                    return True
            except Exception as error:
                _report(kept, folder, error, "is set aside")
                self._set_aside(folder, kept)
        return False

    def restore(self, template: TrainState) -> tuple[TrainState, Position] | None:
        """The latest state that can be read, or None in a run without checkpoints.

        A checkpoint that cannot be read is moved to `unreadable/`, with a message on
        stderr, and the one before it is used.

        Args:
          template: State of the same shapes; its values do not matter.

        Raises:
          CheckpointError: If there are checkpoints but none can be read.
        """
        templates = {
            "model": {"params": template.params, "batch_stats": template.batch_stats},
            "optimizer": {"step": template.step, "opt_state": template.opt_state},
        }
        if template.ema is not None:
            templates["averages"] = template.ema
        if template.last_look is not None:
            templates["last_look"] = template.last_look
        folder = self._run / LATEST
        steps = _steps(folder)
        for step in steps:
            try:
                with _manager(folder, keep=None) as reader:
                    items, meta = _load(reader, step, templates)
                position = Position(**meta)
            except Exception as error:
                _report(step, folder, error)
                self._set_aside(folder, step)
                continue
            optimizer = items["optimizer"]
            state = TrainState(
                step=optimizer["step"],
                params=items["model"]["params"],
                batch_stats=items["model"]["batch_stats"],
                opt_state=optimizer["opt_state"],
                ema=items.get("averages"),
                last_look=items.get("last_look"),
            )
            return state, position
        if steps:
            raise CheckpointError(
                f"{self._run}: none of the checkpoints of the steps {steps} can be "
                "read; they were moved to the folder 'unreadable' there. Running the "
                "same command again starts from the beginning"
            )
        return None

    def _set_aside(self, folder: Path, step: int) -> None:
        """Makes room for the step to be written again, without deleting anything."""
        aside = self._run / "unreadable"
        aside.mkdir(exist_ok=True)
        target, copies = aside / f"{folder.name}_{step}", 1
        while target.exists():
            target, copies = target.with_suffix(f".{copies}"), copies + 1
        (folder / str(step)).rename(target)

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises what went wrong there."""
        for name, writer in self._writers.items():
            with naming(self._run / name):
                writer.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, writer in self._writers.items():
            with naming(self._run / name):
                writer.close()


class Restored(NamedTuple):
    """Variables of a network from a run's checkpoint."""

    variables: dict[str, Any]
    """`{"params": ..., "batch_stats": ...}`, the moving averages where there are."""
    step: int
    """Optimizer updates behind them."""


def restore_variables(run: Path, *, which: Which = "last") -> Restored:
    """Reads the variables to evaluate, changing nothing in the run folder.

    A checkpoint that cannot be read is reported on stderr and the one before it is
    used; in place of a best one that is missing or cannot be read, the latest.

    Args:
      run: Folder of the run.
      which: The latest checkpoint, or the one with the highest accuracy.

    Raises:
      CheckpointError: If no checkpoint can be read.
    """
    folders = [LATEST] if which == "last" else [BEST, LATEST]
    tried = []
    for folder in folders:
        path = run / folder
        if not path.is_dir():
            continue
        with _manager(path, keep=None) as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                tried.append(f"{folder}/{step}")
                averaged = (path / str(step) / "averages").is_dir()
                name = "averages" if averaged else "model"
                try:
                    items, _ = _load(manager, step, {name: None})
                except Exception as error:
                    _report(step, path, error)
                    continue
                if which == "best" and folder == LATEST:
                    print(
                        f"{run} has no best checkpoint that can be read: the latest, "
                        f"of step {step}, is used",
                        file=sys.stderr,
                    )
                return Restored(items[name], step)
    what = f"none of {', '.join(tried)} can be read" if tried else "there is none yet"
    raise CheckpointError(f"{run}: no checkpoint to restore: {what}")


def saved_steps(run: Path) -> list[int]:
    """Steps of a run's checkpoints, in the order of training; empty without any."""
    return _steps(run / LATEST)[::-1]


def restore_step(run: Path, step: int) -> dict[str, Any]:
    """Reads the variables to evaluate of one step; changes nothing in the run folder.

    Args:
      run: Folder of the run.
      step: One of `saved_steps`.

    Raises:
      CheckpointError: If that checkpoint cannot be read.
    """
    path = run / LATEST
    averaged = (path / str(step) / "averages").is_dir()
    name = "averages" if averaged else "model"
    with _manager(path, keep=None) as manager:
        try:
            items, _ = _load(manager, step, {name: None})
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} in {path} cannot be read: {error}"
            ) from error
    return items[name]


def _steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, latest first."""
    if not folder.is_dir():
        return []
    with _manager(folder, keep=None) as reader:
        return sorted(reader.all_steps(), reverse=True)


def _manager(folder: Path, *, keep: int | None) -> ocp.CheckpointManager:
    """A manager that keeps the latest checkpoints, or only reads (`keep` is None).

    All processes of a run write together; whoever reads does so alone.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=keep is not None,
        # What a killed process left half-written.
        cleanup_tmp_directories=keep is not None,
    )
    if keep is None and jax.process_count() > 1:
        this = jax.process_index()
        options.multiprocessing_options = ocp.options.MultiprocessingOptions(
            primary_host=this,
            active_processes={this},
            barrier_sync_key_prefix=f"{this}",
        )
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except (ValueError, OverflowError) as error:  # it reads every step's time
        raise CheckpointError(
            f"{folder}: the list of checkpoints cannot be read: {error}. One of the "
            "files _CHECKPOINT_METADATA there is damaged; move its folder away"
        ) from error


def _save(
    manager: ocp.CheckpointManager,
    step: int,
    items: dict[str, Any],
    meta: dict[str, Any],
) -> None:
    # Copies: the next train step reuses the memory of the state while these are being
    # written. Host arrays, which orbax lets process 0 write while the others wait: what
    # every process writes a part of can be read in the same processes alone.
    arrays = jax.tree.map(lambda leaf: np.array(leaf, copy=True), items)
    checksums = {name: _checksum(tree) for name, tree in arrays.items()}
    checksums["position"] = _checksum_of_json(meta)
    saves: dict[str, Any] = {
        name: ocp.args.StandardSave(tree) for name, tree in arrays.items()
    }
    saves["meta"] = ocp.args.JsonSave({"position": meta, "checksums": checksums})
    manager.save(step, args=ocp.args.Composite(**saves), force=True)


def _load(
    manager: ocp.CheckpointManager, step: int, templates: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Items and metadata of a checkpoint, verified; without a template, as dicts."""
    restores: dict[str, Any] = {"meta": ocp.args.JsonRestore()}
    for name, template in templates.items():
        arrays = None
        if template is not None:
            arrays = jax.tree.map(
                lambda leaf: np.empty(leaf.shape, leaf.dtype), template
            )
        restores[name] = ocp.args.StandardRestore(arrays)
    found = manager.restore(step, args=ocp.args.Composite(**restores))
    meta = found["meta"]
    for name in templates:
        stored, actual = meta["checksums"][name], _checksum(found[name])
        if stored != actual:
            raise CheckpointError(
                f"the arrays of {name!r} have the checksum {actual}, saved as {stored}"
            )
    if meta["checksums"].get("position") != _checksum_of_json(meta["position"]):
        raise CheckpointError("its position does not have the checksum saved with it")
    return {name: found[name] for name in templates}, meta["position"]


def _checksum_of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _checksum(tree: Any) -> int:
    """CRC-32 of all arrays, in the order of the tree."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
    return value


def _report(
    step: int, folder: Path, error: Exception, what: str = "is passed over"
) -> None:
    reason = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
    print(
        f"The checkpoint of step {step} in {folder} cannot be read and {what}: "
        f"{reason}",
        file=sys.stderr,
    )
