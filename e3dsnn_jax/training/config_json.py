"""Configurations as JSON and back, strictly: nothing unknown, nothing missing.

A field whose default is None may be missing: who wrote the file before there was such a
field did without what it asks for.

A field that may hold one of several dataclasses, such as the optimizer, is written
with the name of its class under "kind".
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
KIND = "kind"


class ConfigError(ValueError):
    """A stored configuration cannot be used; the message names file and field."""


def to_json(value: Any) -> Any:
    """Returns a configuration as dicts, lists, strings, numbers, booleans and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {KIND: type(value).__name__} | fields
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[Config], value: Any, *, where: str) -> Config:
    """Returns the configuration that `to_json` wrote.

    Args:
      kind: The dataclass to read.
      value: Parsed JSON.
      where: What error messages call the source, such as its path.

    Raises:
      ConfigError: On a field that is unknown, missing or of a wrong type.
    """
    return _read(kind, value, where, "")


def differing_fields(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """The fields, as dotted names, in which two JSON values differ, with both values.

    A field that one of them lacks counts as None there.
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [("", old, new)]
    # Another class has other fields: the class alone says it all.
    if old.get(KIND) != new.get(KIND):
        return [("", old.get(KIND), new.get(KIND))]
    found = []
    for name in old | new:
        for rest, was, now in differing_fields(old.get(name), new.get(name)):
            found.append((f"{name}.{rest}" if rest else name, was, now))
    return found


def _read(kind: Any, value: Any, where: str, path: str) -> Any:
    kind = _plain(kind)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(options, value, where, path)
    if origin is typing.Literal:
        if value not in options:
            expected = " or ".join(repr(option) for option in options)
            raise _wrong(where, path, value, expected)
        return value
    if origin is tuple:
        return _read_tuple(options, value, where, path)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where, path)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    # `type`, not isinstance: True is an int to Python, but not to a reader.
    if type(value) is not kind:
        raise _wrong(where, path, value, kind.__name__)
    return value


def _read_union(options: tuple[Any, ...], value: Any, where: str, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(_plain(option) for option in options if option is not type(None))
    if len(options) == 1:
        return _read(options[0], value, where, path)
    named = {option.__name__: option for option in options}
    kind = value.get(KIND) if isinstance(value, dict) else None
    if kind not in named:
        expected = f'"{KIND}": ' + " or ".join(named)
        raise _wrong(where, path, value, expected)
    return _read(named[kind], value, where, path)


def _read_tuple(
    options: tuple[Any, ...], value: Any, where: str, path: str
) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, path, value, "a list")
    if options[-1] is Ellipsis:
        options = options[:1] * len(value)
    if len(options) != len(value):
        raise _wrong(where, path, value, f"a list of {len(options)}")
    return tuple(
        _read(option, item, where, f"{path}[{index}]")
        for index, (option, item) in enumerate(zip(options, value, strict=True))
    )


def _read_dataclass(kind: Any, value: Any, where: str, path: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, path, value, f"the fields of {kind.__name__}")
    given = {name: item for name, item in value.items() if name != KIND}
    hints = typing.get_type_hints(kind, include_extras=True)
    known = [field.name for field in dataclasses.fields(kind)]
    prefix = f"{path}." if path else ""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}: unknown field {prefix}{unknown[0]}; the fields there are "
            f"{', '.join(known)}. Was it written by another version of this package?"
        )
    for field in dataclasses.fields(kind):
        if field.default is None:
            given.setdefault(field.name, None)
    missing = [name for name in known if name not in given]
    if missing:
        raise ConfigError(
            f"{where}: the field {prefix}{missing[0]} is missing. Was it written by "
            "another version of this package?"
        )
    read = {
        name: _read(hints[name], item, where, prefix + name)
        for name, item in given.items()
    }
    try:
        return kind(**read)
    except ValueError as error:  # a dataclass that checks its own values
        raise ConfigError(f"{where}: {path or kind.__name__}: {error}") from error


def _plain(kind: Any) -> Any:
    """The type without what the command line's help adds to it."""
    annotated = typing.get_origin(kind) is typing.Annotated
    return typing.get_args(kind)[0] if annotated else kind


def _wrong(where: str, path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"{where}: {path or 'the file'} is {value!r}, expected {expected}"
    )
