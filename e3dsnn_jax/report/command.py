"""`e3dsnn report`: the page of a run folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from e3dsnn_jax.report.clouds_part import (
    JudgedClouds,
    choose_clouds,
    clouds_section,
    judge_clouds,
)
from e3dsnn_jax.report.contents import Contents, read_contents
from e3dsnn_jax.report.learning_part import class_section, dynamics_section
from e3dsnn_jax.report.page import Fact, Section, Table, render_page
from e3dsnn_jax.report.spiking_part import energy_section, firing_section
from e3dsnn_jax.report.training_part import confusion_section, training_section
from e3dsnn_jax.training.config_json import KIND, to_json
from e3dsnn_jax.training.datasets import open_evaluation
from e3dsnn_jax.training.devices import use_all_cores
from e3dsnn_jax.training.evaluate import Evaluation
from e3dsnn_jax.training.saved import load_run
from e3dsnn_jax.whole_file import whole_file

REPORT = "report.html"


class Report(NamedTuple):
    """A page that was written."""

    path: Path
    notes: tuple[str, ...]
    """What is missing from it, and which command makes it."""


def run_report(
    run: Path,
    *,
    evaluation: Evaluation | None = None,
    clouds: int = 400,
    out: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Report:
    """Writes the page of a run.

    Args:
      run: Folder that a training wrote, finished or not.
      evaluation: Of its last network on the clouds that the run is evaluated on, where
        it is at hand; else the network runs over `clouds` of them.
      clouds: A fixed random choice of the evaluated clouds, from which wrong ones are
        shown; 0 leaves the clouds out.
      out: The file to write; `report.html` in the run folder if omitted.
      on_batch: Called with the batches done and their number after each one.

    Raises:
      RunFolderError: If the folder is not that of a run.
      ConfigError: If a file in it is damaged; the message names it.
      ValueError: If `clouds` is negative.
    """
    if clouds < 0:
        raise ValueError(f"--clouds must be 0 or more, got {clouds}")
    contents = read_contents(run)
    judged = _judge(contents, evaluation, clouds, on_batch)
    path = out or run / REPORT
    with whole_file(path) as unfinished:
        unfinished.write_text(render_report(contents, judged), encoding="utf-8")
    return Report(path, _notes(contents, judged))


def render_report(contents: Contents, judged: JudgedClouds | str) -> str:
    """The page as HTML.

    Args:
      contents: Of the run folder.
      judged: The clouds to show, or why there are none.
    """
    sections = (
        training_section(contents),
        confusion_section(contents),
        clouds_section(judged, contents.class_names),
        dynamics_section(contents),
        class_section(contents),
        firing_section(contents),
        energy_section(contents),
        _run_section(contents),
    )
    title = "/".join(contents.run.resolve().parts[-2:])
    subtitle = _subtitle(contents) + _differing_steps(contents, judged)
    return render_page(title, subtitle, _facts(contents), sections)


def _judge(
    contents: Contents,
    evaluation: Evaluation | None,
    clouds: int,
    on_batch: Callable[[int, int], None] | None,
) -> JudgedClouds | str:
    """The clouds to show, or why there are none: all other sections need no network."""
    run = contents.run
    if clouds == 0:
        return f"Left out by `--clouds 0`: `e3dsnn report {run}` shows them."
    try:
        if evaluation is not None:
            dataset = open_evaluation(contents.config.data, contents.class_names)
            step = contents.scores and contents.scores.step
            return choose_clouds(dataset, evaluation, step=step)
        network = load_run(run)
        dataset = open_evaluation(network.data, network.class_names)
        use_all_cores(network.batch_size)
        return judge_clouds(network, dataset, clouds, on_batch=on_batch)
    except (OSError, ValueError) as error:
        return f"No clouds to show: {error}"


def _notes(contents: Contents, judged: JudgedClouds | str) -> tuple[str, ...]:
    commands = {
        "evaluate": contents.scores,
        "analyse": contents.analysis,
        "energy": contents.energy,
    }
    notes = [
        f"`e3dsnn {command} {contents.run}` fills a part that is missing yet"
        for command, found in commands.items()
        if found is None
    ]
    return (*notes, judged) if isinstance(judged, str) else tuple(notes)


def _subtitle(contents: Contents) -> str:
    config = contents.config
    data = "embedded shapes" if config.data.path is None else str(config.data.path)
    steps = [line["step"] for line in contents.metrics]
    variant = config.model.variant if config.model.architecture is None else "own"
    neuron = config.model.neuron
    kind = (
        "ReLU"
        if neuron.relu
        else f"spikes, T x D = {neuron.time_steps} x {neuron.levels}"
    )
    return (
        f"E-3DSNN {variant}, {kind}; {data}, {len(contents.class_names)} classes, "
        f"voxels of {config.data.voxel_size:g}; {config.recipe.epochs} epochs, seed "
        f"{config.seed}; last step {max(steps, default=0)}"
    )


def _differing_steps(contents: Contents, judged: JudgedClouds | str) -> str:
    """A warning where parts of the page come from different steps of the training."""
    analysis = contents.analysis
    found = {
        "evaluation": contents.scores and contents.scores.step,
        "clouds": None if isinstance(judged, str) else judged.step,
        "analysis": analysis and analysis.steps[-1],
        "energy": contents.energy and contents.energy.step,
    }
    known = {part: step for part, step in found.items() if step is not None}
    if len(set(known.values())) < 2:
        return ""
    told = ", ".join(f"{part} {step}" for part, step in known.items())
    return f". Parts of this page are of different steps: {told}"


def _facts(contents: Contents) -> list[Fact]:
    facts = []
    if (scores := contents.scores) is not None:
        at = "" if scores.step is None else f", step {scores.step}"
        facts += [
            Fact(f"{scores.accuracy:.1%}", f"of {scores.clouds} clouds right{at}"),
            Fact(f"{scores.mean_class_accuracy:.1%}", "mean accuracy of the classes"),
            Fact(f"{scores.loss:.3f}", "cross-entropy of a cloud (nats)"),
        ]
        if scores.firing.layers:
            rate = float(scores.firing.rate.mean())
            facts.append(Fact(f"{rate:.1%}", "firing rate, mean of the layers"))
    if (energy := contents.energy) is not None and energy.totals:
        name, value = next(iter(energy.totals.items()))
        facts.append(Fact(f"{value:.3g} µJ", f"for an average cloud, {name}"))
    return facts


def _run_section(contents: Contents) -> Section:
    """Configuration, data and versions."""
    config = _flatten(to_json(contents.config))
    rows = (
        ("Configuration", config),
        ("Data", _flatten(contents.data)),
        ("Software and hardware", _flatten(contents.versions)),
    )
    tables = tuple(
        Table(title, ("name", "value"), found, folded=True)
        for title, found in rows
        if found
    )
    return Section("run", "Run", tables)


def _flatten(value: Any, name: str = "") -> tuple[tuple[str, ...], ...]:
    """Nested objects as rows of dotted names and values."""
    if not isinstance(value, dict):
        return ((name, "none" if value is None else str(value)),)
    rows = []
    for key, item in value.items():
        dotted = f"{name}.{key}" if name else key
        if key == KIND:
            rows += [(name, str(item))] if name else []
        else:
            rows += _flatten(item, dotted)
    return tuple(rows)
