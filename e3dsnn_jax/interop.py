"""Published checkpoints <-> our parameters, with a report of what matched.

`read_weights` and `write_weights` are files to variables and back; `import_state` and
`export_state` are the same for a state dict that is already in memory.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from e3dsnn_jax.backbone import Architecture
from e3dsnn_jax.npz import load_npz
from e3dsnn_jax.parameter_names import (
    Variables,
    architecture_of,
    describe,
    flatten_variables,
    infer_architecture,
    list_entries,
    to_our_layout,
    to_published_layout,
)
from e3dsnn_jax.pth import write_pth
from e3dsnn_jax.published import (
    State,
    check_is_network,
    from_spconv1,
    load_published,
)
from e3dsnn_jax.whole_file import whole_file

_COUNTER = "num_batches_tracked"
_SHOWN = 6


class ShapeMismatch(NamedTuple):
    """An array whose shape differs from what the network takes."""

    name: str
    found: tuple[int, ...]
    needed: tuple[int, ...]


class ImportReport(NamedTuple):
    """What became of every array of a file; `print` shows it in a few lines."""

    source: str
    """What the messages call the file."""
    architecture: Architecture
    num_classes: int
    matched: tuple[str, ...]
    """Published names of the arrays that were taken over."""
    missing: tuple[str, ...]
    """Published names that the network needs and the file lacks."""
    left_over: tuple[str, ...]
    """Names in the file that the network has no place for."""
    mismatched: tuple[ShapeMismatch, ...]
    ignored: tuple[str, ...]
    """Counters of batches, which nothing reads when momentum is a fixed number."""
    notes: tuple[str, ...]
    """What was converted on the way, in words."""

    @property
    def complete(self) -> bool:
        """Whether every array found its place, with none missing or left over."""
        return not (self.missing or self.left_over or self.mismatched)

    def __str__(self) -> str:
        needed = len(self.matched) + len(self.missing) + len(self.mismatched)
        lines = [
            f"{self.source}: {len(self.matched)} of {needed} arrays matched, "
            f"{describe(self.architecture, self.num_classes)}"
        ]
        for title, names in (
            ("missing", self.missing),
            ("left over", self.left_over),
            ("ignored", self.ignored),
        ):
            if names:
                rest = len(names) - _SHOWN
                more = f" and {rest} more" if rest > 0 else ""
                shown = ", ".join(names[:_SHOWN])
                lines.append(f"  {title} {len(names)}: {shown}{more}")
        lines += [
            f"  shape: {name} is {found} but {needed} is needed"
            for name, found, needed in self.mismatched
        ]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def import_state(
    state: State,
    target: Architecture | Variables | None = None,
    *,
    strict: bool = True,
    source: str = "state dict",
) -> tuple[dict[str, Any], ImportReport]:
    """Returns our variables made of a published state dict, and what matched.

    Args:
      state: Arrays by unprefixed published names, as `load_published` returns them.
        Kernels in the order of spconv 1.x are converted, with a note in the report.
      target: The network to fill: its architecture, or its variables (which fix the
        number of classes too). None takes the architecture from the shapes.
      strict: Raise unless every array finds its place. Without it, `target` must be
        variables: what the file lacks, or has in another shape, is taken from them,
        as one starts a fine-tuning with another number of classes.
      source: What the messages call the file.

    Returns:
      The variables, float32 NumPy arrays, and the report.

    Raises:
      ValueError: If the state is of another kind of network (then the message says
        which), of another variant than `target` (then it names both), holds numbers
        that are not finite, or does not match completely and `strict` is set.
    """
    if not strict and (target is None or isinstance(target, Architecture)):
        raise ValueError("an import that is not strict needs variables as its target")
    check_is_network(state, source=source)
    state, converted = from_spconv1(state, source=source)
    notes = []
    if converted:
        notes.append("kernels converted from the weight order of spconv 1.x")
    found, found_classes = infer_architecture(state, source=source)
    fallback: dict[str, np.ndarray] = {}
    wanted, num_classes = found, found_classes or 0
    if isinstance(target, Architecture):
        wanted = target
    elif target is not None:
        wanted, num_classes = architecture_of(target)
        fallback = flatten_variables(target)
    if found != wanted:
        raise ValueError(
            f"{source}: holds {describe(found, found_classes)}, but "
            f"{describe(wanted)} was asked for"
        )
    matched, missing, mismatched, other_types = [], [], [], set()
    flat = dict(fallback)
    entries = list_entries(wanted, num_classes)
    for entry in entries:
        array = state.get(entry.published)
        if array is None:
            missing.append(entry.published)
        elif array.shape != entry.published_shape:
            mismatched.append(
                ShapeMismatch(entry.published, array.shape, entry.published_shape)
            )
        else:
            matched.append(entry.published)
            if array.dtype != np.float32:
                other_types.add(array.dtype.name)
            values = _as_float32(array, name=f"{source}: {entry.published}")
            flat[entry.ours] = np.array(to_our_layout(values, entry), order="C")
    if other_types:
        notes.append(f"converted to float32 from {', '.join(sorted(other_types))}")
    known = {entry.published for entry in entries}
    ignored = [name for name in state if name.rsplit(".", 1)[-1] == _COUNTER]
    report = ImportReport(
        source=source,
        architecture=wanted,
        num_classes=num_classes,
        matched=tuple(matched),
        missing=tuple(missing),
        left_over=tuple(sorted(state.keys() - known - set(ignored))),
        mismatched=tuple(mismatched),
        ignored=tuple(ignored),
        notes=tuple(notes),
    )
    if strict and not report.complete:
        raise ValueError(f"the weights do not fit the network.\n{report}")
    return traverse_util.unflatten_dict(flat, sep="/"), report


def _as_float32(array: np.ndarray, *, name: str) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} holds {array.dtype.name}, no real numbers")
    with np.errstate(over="ignore"):  # reported below, by name
        values = array.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        raise ValueError(
            f"{name} holds {int((~finite).sum())} values of {finite.size} that "
            "are not finite; the training that wrote it had diverged"
        )
    return values


def to_published(
    variables: Variables, architecture: Architecture, *, num_classes: int
) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by published name, in the published layout.

    Args:
      variables: Our variables or a part of them, such as `{"params": gradients}`:
        what is not there is left out.
      architecture: Of the network that the tree belongs to.
      num_classes: Outputs of its head.
    """
    flat = flatten_variables(variables)
    return {
        entry.published: to_published_layout(np.asarray(flat[entry.ours]), entry)
        for entry in list_entries(architecture, num_classes)
        if entry.ours in flat
    }


def export_state(
    variables: Variables, *, num_batches_tracked: int = 0
) -> "OrderedDict[str, np.ndarray]":
    """Returns the published state dict of our variables, without a prefix.

    Every array comes back from `import_state` bit for bit.

    Args:
      variables: Complete variables of a classifier or a segmentation network.
      num_batches_tracked: What to write as the counter of every BatchNorm. We keep no
        such counter, and the published code reads none.

    Raises:
      ValueError: If the variables are those of neither.
    """
    architecture, num_classes = architecture_of(variables)
    named = to_published(variables, architecture, num_classes=num_classes)
    state: OrderedDict[str, np.ndarray] = OrderedDict()
    for name, array in named.items():
        state[name] = array
        if name.endswith("running_var"):
            counter = f"{name.removesuffix('running_var')}{_COUNTER}"
            state[counter] = np.asarray(num_batches_tracked, np.int64)
    return state


def import_published(
    path: str | Path, target: Architecture | Variables | None = None
) -> tuple[dict[str, Any], ImportReport]:
    """Returns our variables made of a published `.pth` file, and what matched.

    Arguments and errors are those of `load_published` and `import_state`.
    """
    return import_state(load_published(path), target, source=str(path))


def read_weights(path: str | Path) -> dict[str, Any]:
    """Returns the variables in a weights file, `.pth` (published) or `.npz` (ours).

    `architecture_of` tells the network that they belong to, a segmentation network if
    it has `decoder_channels`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If the file cannot be read or does not hold one whole network.
    """
    return import_weights(path)[0]


def import_weights(path: str | Path) -> tuple[dict[str, Any], ImportReport]:
    """Returns the variables in a weights file, and the report of what matched.

    Errors are those of `read_weights`.
    """
    path = Path(path)
    if _suffix(path) == ".pth":
        return import_published(path)
    try:
        flat = load_npz(path)
        for name, array in flat.items():
            flat[name] = _as_float32(array, name=name)
        architecture_of(flat)  # before any name is taken for a path
        variables = traverse_util.unflatten_dict(flat, sep="/")
        state = export_state(variables)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: no weights of a network: {error}") from error
    return import_state(state, source=str(path))


def write_weights(variables: Variables, path: str | Path) -> None:
    """Writes variables to a weights file, `.pth` (published layout) or `.npz` (ours).

    A `.pth` file has the layout of the published training code: `{"epoch": 0,
    "state_dict": ...}` with the prefix `backbone.`. A `.npz` file has one float32
    array for each flat name, such as `params/head/kernel`.

    Raises:
      FileNotFoundError: If the folder does not exist.
      ValueError: If the suffix is another, or the variables are not those of a whole
        classifier or segmentation network.
    """
    path = Path(path)
    if _suffix(path) == ".pth":
        state = export_state(variables)
        prefixed = OrderedDict((f"backbone.{name}", a) for name, a in state.items())
        write_pth({"epoch": 0, "state_dict": prefixed}, path)
        return
    architecture_of(variables)
    flat = flatten_variables(variables)
    flat = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **flat)  # pyright: ignore[reportArgumentType]


def convert(source: str | Path, destination: str | Path) -> ImportReport:
    """Converts a weights file; the suffixes, `.pth` or `.npz`, say from and to what.

    Returns:
      The report of what was read.

    Raises:
      FileNotFoundError: If the source or the destination's folder does not exist.
      ValueError: As `read_weights` and `write_weights`, and if both are one file.
    """
    source, destination = Path(source), Path(destination)
    _suffix(destination)
    if source.resolve() == destination.resolve():
        raise ValueError(f"{source}: would be overwritten; name another destination")
    variables, report = import_weights(source)
    write_weights(variables, destination)
    return report


def _suffix(path: Path) -> str:
    if path.suffix not in (".pth", ".npz"):
        raise ValueError(
            f"{path}: a weights file is named .pth (published layout) or .npz (flat "
            f"names of this package), not {path.suffix!r}"
        )
    return path.suffix
