"""JSON files of a run folder, read with messages that name file, field and command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from e3dsnn_jax.training.config_json import ConfigError


class JsonFile:
    """One JSON object and what its error messages need.

    Args:
      path: The file.
      command: What writes it anew, for the messages.

    Raises:
      ConfigError: If it is no JSON object.
    """

    def __init__(self, path: Path, command: str):
        self.path, self.command = path, command
        try:
            self.content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise self.error(f"cannot be read as JSON: {error}") from error
        if not isinstance(self.content, dict):
            kind = type(self.content).__name__
            raise self.error(f"expected a JSON object, found a {kind}")

    def error(self, problem: str) -> ConfigError:
        """The error that says what is wrong with the file, and how to write it anew."""
        return ConfigError(f"{self.path}: {problem}; `{self.command}` writes it anew")

    def take(self, *keys: str) -> Any:
        """The value below some keys.

        Raises:
          ConfigError: If there is none.
        """
        value: Any = self.content
        for depth, key in enumerate(keys, start=1):
            if not isinstance(value, dict) or key not in value:
                raise self.error(f"it holds no {'.'.join(keys[:depth])}")
            value = value[key]
        return value

    def number(self, *keys: str) -> float:
        """A number; NaN where the file has null.

        Raises:
          ConfigError: If there is something else.
        """
        return float(self.array((), *keys))

    def whole(self, *keys: str) -> int:
        """A whole number.

        Raises:
          ConfigError: If there is something else.
        """
        value = self.take(*keys)
        if type(value) is not int:
            raise self.error(f"{'.'.join(keys)} is no whole number")
        return value

    def names(self, *keys: str) -> tuple[str, ...]:
        """A list of strings.

        Raises:
          ConfigError: If there is something else.
        """
        value = self.take(*keys)
        if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
            raise self.error(f"{'.'.join(keys)} is no list of names")
        return tuple(value)

    def array(self, shape: tuple[int, ...], *keys: str) -> Float[np.ndarray, "..."]:
        """Nested lists of numbers as float64, with NaN where the file has null.

        Args:
          shape: What it must be; -1 stands for any length.
          keys: Where it is.

        Raises:
          ConfigError: If it is something else.
        """
        value, name = self.take(*keys), ".".join(keys)
        try:
            found = np.array(value, np.float64)
        except (ValueError, TypeError) as error:
            raise self.error(f"{name} is no array of numbers: {error}") from error
        fits = len(found.shape) == len(shape) and all(
            wanted in (-1, length)
            for wanted, length in zip(shape, found.shape, strict=True)
        )
        if not fits:
            raise self.error(f"{name} has shape {found.shape}, expected {shape}")
        return found

    def steps(self, *keys: str) -> tuple[int, ...]:
        """A list of training steps, at least one.

        Raises:
          ConfigError: If there is something else.
        """
        steps = self.array((-1,), *keys)
        if not len(steps) or not np.isfinite(steps).all():
            raise self.error(f"{'.'.join(keys)} is no list of steps")
        return tuple(int(step) for step in steps)
