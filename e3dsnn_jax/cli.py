"""The command line: `e3dsnn train | evaluate | energy | analyse | report | ...`.

What a command answers goes to stdout, progress and errors to stderr. Modules are
imported where they are used, so that help and mistyped options answer at once.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tyro.conf import CascadeSubcommandArgs

from e3dsnn_jax.cli_options import (
    ConvertOptions,
    EnergyOptions,
    EvaluateOptions,
    PackOptions,
    PredictOptions,
    ReportOptions,
)

USER_ERROR = 2
"""Exit code after an error that the message explains."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    0 after success, 2 after an error of the user's, 130 after Ctrl-C. Errors are
    printed as one message; with E3DSNN_TRACEBACK=1 in the environment they are raised.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else USER_ERROR
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"e3dsnn-jax {version('e3dsnn-jax')}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        print(f"e3dsnn: no command {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        return USER_ERROR
    code = report_errors(lambda: command(words[1:]))
    if code:
        _leave_other_processes(code)
    return code


def report_errors(action: Callable[[], None]) -> int:
    """Runs an action and returns the exit code, after a message for user errors."""
    try:
        action()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if os.environ.get("E3DSNN_TRACEBACK"):
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        print(f"Error: {message}", file=sys.stderr)
        return USER_ERROR
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)  # training.stopping.Interrupted
        if exit_code is None:
            raise
        if str(error):  # of several processes one speaks
            print(error, file=sys.stderr)
        return exit_code
    return 0


def _leave_other_processes(code: int) -> None:
    """Ends a process of several at once: JAX would first wait for the others."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return
    if jax.process_index() == 0:
        time.sleep(1)  # those that meet the same error still need it to end in order
    sys.stdout.flush()
    sys.stderr.flush()
    from e3dsnn_jax.orphans import end_at_once

    end_at_once(code)


def _usage() -> str:
    lines = [f"  {name:<10}{command.__doc__}" for name, command in COMMANDS.items()]
    return (
        "usage: e3dsnn COMMAND [options]\n\n"
        "E-3DSNN, spiking networks on 3D point clouds.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "`e3dsnn COMMAND --help` lists the options of a command."
    )


def _parse(options: Any, name: str, words: Sequence[str]) -> Any:
    return tyro.cli(options, prog=f"e3dsnn {name}", args=words)


def _train(words: Sequence[str]) -> None:
    """Train a classifier, or resume a run that was stopped."""
    from e3dsnn_jax.training.config import TrainCommand

    command = _parse(CascadeSubcommandArgs[TrainCommand], "train", words)
    from e3dsnn_jax.training.launch import run_processes

    if run_processes(["train", *words], command):
        return
    from e3dsnn_jax.orphans import WITH_PARENT, end_with_parent
    from e3dsnn_jax.training.loop import train
    from e3dsnn_jax.training.processes import is_first

    if WITH_PARENT in os.environ:
        end_with_parent()
    config = command.config
    if command.analyse and config.checkpoints is None:
        config = dataclasses.replace(config, checkpoints=20)
    result = train(config)
    if not is_first():
        return
    evaluation = result.evaluation
    print(
        f"accuracy {evaluation.accuracy:.2%}, mean of the classes "
        f"{evaluation.mean_class_accuracy:.2%} ({len(evaluation.labels)} clouds); "
        f"{result.seconds:.0f} s, {result.programs_compiled} programs compiled; "
        f"{result.run}"
    )
    if command.analyse:
        _analyse_after_training(result.run)


def _analyse_after_training(run: Path) -> None:
    import jax

    if jax.process_count() > 1:
        # The others have ended, and would be missed.
        print(f"To compare its layers: e3dsnn analyse {run}", file=sys.stderr)
        return
    _analyse([str(run)])


def _evaluate(words: Sequence[str]) -> None:
    """Evaluate a run or published weights on a data set."""
    options = _parse(EvaluateOptions, "evaluate", words)
    from e3dsnn_jax.training.processes import find_launch

    launch = find_launch(os.environ)
    if launch is not None:
        raise ValueError(
            f"{launch.launcher} has started several processes, but an evaluation takes "
            "one: run it without the launcher"
        )
    if (options.run is None) == (options.weights is None):
        raise ValueError("give either the folder of a run or --weights, and not both")
    from e3dsnn_jax.data.open import open_dataset
    from e3dsnn_jax.training.datasets import open_split
    from e3dsnn_jax.training.devices import use_all_cores
    from e3dsnn_jax.training.evaluate import (
        evaluate_network,
        format_firing,
        write_evaluation,
    )
    from e3dsnn_jax.training.saved import load_run, load_weights

    if options.weights is not None:
        use_all_cores(16)
        dataset = open_dataset(options.data, options.split)
        network = load_weights(
            options.weights,
            class_names=dataset.class_names,
            voxel_size=options.voxel_size,
        )
        print(network.report, file=sys.stderr)
        out = options.weights.with_name(f"{options.weights.stem}_evaluation")
    else:
        network = load_run(options.run, which=options.checkpoint)
        use_all_cores(network.batch_size)
        dataset, name = open_split(
            network.data, network.class_names, options.data, options.split
        )
        out = options.run / f"evaluation_{name}" if name else options.run
    evaluation = evaluate_network(
        network,
        dataset,
        votes=options.votes,
        workers=options.workers,
        on_batch=_show_progress,
    )
    out = options.out or out
    write_evaluation(
        out, evaluation, source=network.source, step=network.step, split=options.split
    )
    print(f"clouds                {len(evaluation.labels)}")
    print(f"votes                 {evaluation.votes}")
    print(f"accuracy              {evaluation.accuracy:.2%}")
    print(f"mean class accuracy   {evaluation.mean_class_accuracy:.2%}")
    print(f"loss                  {evaluation.loss:.4f}")
    if evaluation.firing:
        print(f"\n{format_firing(evaluation.firing)}")
    print(f"Details and figures are in {out}.", file=sys.stderr)


def _energy(words: Sequence[str]) -> None:
    """Count and price the operations of a network on real clouds."""
    options = _parse(EnergyOptions, "energy", words)
    from e3dsnn_jax.energy_command import run_energy
    from e3dsnn_jax.energy_report import format_account
    from e3dsnn_jax.spike import Neuron

    told = {
        name: value
        for name, value in vars(options.neuron).items()
        if value is not None and value is not False
    }
    neurons = {"neuron": Neuron(**told) if told else None}
    account, out = run_energy(**vars(options) | neurons, on_batch=_show_progress)
    print(format_account(account))
    print(f"Details and a figure are in {out}.", file=sys.stderr)


def _report(words: Sequence[str]) -> None:
    """Write one page on a run: curves, classes, clouds, layers."""
    options = _parse(ReportOptions, "report", words)
    from e3dsnn_jax.report.command import run_report

    report = run_report(**vars(options), on_batch=_show_progress)
    for note in report.notes:
        print(note, file=sys.stderr)
    print(report.path)


def _analyse(words: Sequence[str]) -> None:
    """Compare the layers of a run over training, and with its classes."""
    from e3dsnn_jax.analysis.options import AnalyseOptions

    options = _parse(AnalyseOptions, "analyse", words)
    from e3dsnn_jax.analysis.command import run_analysis
    from e3dsnn_jax.analysis.record import format_analysis

    show = partial(_show_progress, what="checkpoints")
    described, out = run_analysis(options, on_step=show)
    print(format_analysis(described))
    print(f"Details and figures are in {out}.", file=sys.stderr)


def _predict(words: Sequence[str]) -> None:
    """Print the most probable classes of a point or mesh file."""
    options = _parse(PredictOptions, "predict", words)
    if options.top < 1:
        raise ValueError(f"--top must be 1 or more, got {options.top}")
    from e3dsnn_jax.data.points import read_points_file
    from e3dsnn_jax.predictor import load

    # Files are small and networks are not: a wrong file name answers first.
    cloud = read_points_file(options.file)
    predictor = load(
        options.run, which=options.checkpoint, voxel_size=options.voxel_size
    )
    if predictor.network.report is not None:
        print(predictor.network.report, file=sys.stderr)
    prediction = predictor.predict_clouds([cloud], votes=options.votes)[0]
    for name, probability in prediction.top(options.top):
        print(f"{probability:6.1%}  {name}")


def _convert(words: Sequence[str]) -> None:
    """Convert weights between runs, .pth (published layout) and .npz."""
    options = _parse(ConvertOptions, "convert", words)
    from e3dsnn_jax import interop

    if not options.source.is_dir():
        print(interop.convert(options.source, options.destination))
        return
    from e3dsnn_jax.spike import Neuron
    from e3dsnn_jax.training.saved import load_run

    network = load_run(options.source, which=options.checkpoint)
    interop.write_weights(network.variables, options.destination)
    print(f"{options.destination}: step {network.step} of {options.source}")
    neuron, voxel_size = network.model.neuron, network.data.voxel_size
    print(
        f"The file does not hold its voxel size, {voxel_size:g} here, nor its neurons.",
        file=sys.stderr,
    )
    if neuron != Neuron():
        print(
            f"Warning: this network has {neuron}; whoever loads the file gets the "
            "published neurons unless they are given: "
            "e3dsnn_jax.load(file, neuron=...)",
            file=sys.stderr,
        )


def _pack(words: Sequence[str]) -> None:
    """Pack a data set into records that are read fast and at random."""
    options = _parse(PackOptions, "pack", words)
    from e3dsnn_jax.data.records_pack import pack_dataset
    from e3dsnn_jax.data.records_writer import PackSettings

    settings = PackSettings(
        options.voxel_size, options.points_per_voxel, options.clouds_per_shard
    )
    for packed in pack_dataset(
        None if options.data == "shapes" else Path(options.data),
        options.out,
        ("train", "test") if options.split == "both" else (options.split,),
        settings,
        points_per_cloud=options.points_per_cloud,
    ):
        clouds, original = packed.clouds, packed.source_bytes
        size = f"{sum(clouds.index.shard_bytes) / 1e6:.1f} MB"
        if original is not None:
            size += f" (original {original / 1e6:.1f} MB)"
        print(
            f"{clouds.split}: {len(clouds)} clouds, {clouds.points.sum()} points, "
            f"{clouds.voxels.sum()} voxels of {clouds.voxel_size:g}; "
            f"{len(clouds.shards)} shards, {size}" + ", packed before" * packed.already
        )


def _show_progress(done: int, total: int, what: str = "batches") -> None:
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        print(f"evaluated {done} of {total} {what}", end=end, file=sys.stderr)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "energy": _energy,
    "analyse": _analyse,
    "report": _report,
    "predict": _predict,
    "convert": _convert,
    "pack": _pack,
}
