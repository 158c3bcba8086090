"""The manifest of a written street: which generator made it, and from what."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from e3dsnn_jax.street.sensor import Sensor
from e3dsnn_jax.whole_file import whole_file

VERSION = 1
"""Version of the generator, raised when the same seed gives another street."""
MANIFEST = "street.json"
"""Name of the manifest in the folder of a data set."""

Entry = int | float | str | list[int]


def code_digest() -> str:
    """A digest of the generator's source: a change of its code counts as well."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def claim_folder(
    folder: Path, layout: str, seed: int, sensor: Sensor, **choices: Entry
) -> None:
    """Makes a folder whose manifest says how it is generated, or checks that it does.

    Args:
      folder: The data set's folder.
      layout: Which layout is written there.
      seed: Seed of the streets.
      sensor: The sensor.
      **choices: What else decides the files.

    Raises:
      ValueError: If the folder holds a street that was made otherwise.
    """
    wanted: dict[str, object] = {
        "generator": "e3dsnn_jax.street",
        "version": VERSION,
        "code": code_digest(),
        "layout": layout,
        "seed": seed,
        "sensor": dataclasses.asdict(sensor),
        **choices,
    }
    path = folder / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _compare(path, wanted)
        return
    if any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds files but no {MANIFEST}: a street goes into an empty "
            "folder or into one that it was begun in"
        )
    write_text(path, json.dumps(wanted, indent=2) + "\n")


def _compare(path: Path, wanted: Mapping[str, object]) -> None:
    try:
        written = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no manifest of a street: {error}") from None
    if not isinstance(written, dict):
        raise ValueError(f"{path} is no manifest of a street: it holds no object")
    for key in sorted(written.keys() | wanted.keys()):
        if written.get(key) != wanted.get(key):
            raise ValueError(
                f"{path} says {key} {written.get(key)!r}, but {wanted.get(key)!r} is "
                "asked for: choose another folder, or remove this one"
            )


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears only when it is complete."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears only when it is complete."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)
