"""Pickles of plain values, read without executing them and written without imports.

A pickle is a program, and `pickle.load` runs it. A checkpoint needs only a small
part of that language: numbers, strings, containers, and a few named calls that put a
tensor together. The reader here interprets that part and nothing else: it imports no
module, looks up no attribute and calls only the functions handed to it. The writer
emits the same part, so that a checkpoint can name `torch` without torch being there.
"""

import pickle
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Global(NamedTuple):
    """A module attribute that a pickle names, such as `torch FloatStorage`.

    Attributes:
      name: Module and attribute, separated by one space.
    """

    name: str


class Call(NamedTuple):
    """A call that a pickle asks its reader to make.

    Attributes:
      name: The function, as in `Global`.
      arguments: What it is called with.
    """

    name: str
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """A reference to something that is stored beside the pickle.

    Attributes:
      identity: What names it; a tuple in checkpoints of torch.
    """

    identity: Any


def read_plain_pickle(
    data: bytes,
    *,
    calls: Mapping[str, Callable[..., Any] | None],
    persistent: Callable[[Any], Any],
) -> Any:
    """Returns the value that a pickle of plain values describes.

    Args:
      data: The pickle, of protocol 2 to 5.
      calls: Every global that may be named. Its function is what a call of that name
        runs; None marks a name that may appear as a value (read as a `Global`) but
        not be called.
      persistent: Maps the identity of a persistent reference to its value.

    Returns:
      The value: numbers, strings, bytes, tuples, lists, dicts and what `calls` and
      `persistent` return. Attributes set on an `OrderedDict` are dropped.

    Raises:
      ValueError: If the pickle is damaged, names a global that is not in `calls`, or
        uses an instruction that plain values do not need.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    where = 0

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def push_global(name: str) -> None:
        if name not in calls:
            raise ValueError(
                f"it names the global {name.replace(' ', '.')!r}, which is not one "
                "that weights are made of; it was not imported or called"
            )
        stack.append(Global(name))

    try:
        # genops decodes each instruction with its argument and checks lengths against
        # the data that is there; it executes nothing.
        for opcode, argument, position in pickletools.genops(data):
            where = position or 0
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    marks.append(len(stack))
                case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                    stack.append(argument)
                case "BINUNICODE" | "SHORT_BINUNICODE" | "BINBYTES" | "SHORT_BINBYTES":
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE" as name:
                    stack.append(name == "NEWTRUE")
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    items = [stack.pop() for _ in range(int(name[-1]))]
                    stack.append(tuple(reversed(items)))
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "EMPTY_LIST":
                    stack.append([])
                case "APPEND":
                    item = stack.pop()
                    _expect(stack[-1], list, "a list").append(item)
                case "APPENDS":
                    items = pop_to_mark()
                    _expect(stack[-1], list, "a list").extend(items)
                case "EMPTY_DICT":
                    stack.append({})
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set_items(stack[-1], [key, value])
                case "SETITEMS":
                    items = pop_to_mark()
                    _set_items(stack[-1], items)
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]  # pyright: ignore[reportArgumentType]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    if argument not in memo:
                        raise ValueError(f"value {argument} is used but never set")
                    stack.append(memo[argument])
                case "GLOBAL":
                    push_global(str(argument))
                case "STACK_GLOBAL":
                    attribute, module = stack.pop(), stack.pop()
                    push_global(f"{module} {attribute}")
                case "REDUCE":
                    arguments = _expect(stack.pop(), tuple, "a tuple of arguments")
                    function = _expect(stack.pop(), Global, "a known function")
                    stack.append(_call(calls, function.name, arguments))
                case "BUILD":
                    _check_attributes(target=stack[-2], state=stack.pop())
                case "BINPERSID":
                    stack.append(persistent(stack.pop()))
                case name:
                    raise ValueError(f"weights do not need the instruction {name}")
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the pickle is refused near byte {where}: {error}") from error
    raise ValueError("the pickle ends before its STOP instruction")


def _expect(value: Any, kind: type, description: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{description} was expected, not {type(value).__name__}")
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    mapping = _expect(target, dict, "a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only flat keys: hashing a tuple nested a million deep would overflow the C
        # stack of the interpreter.
        if not isinstance(key, str | bytes | int | float | None):
            raise ValueError(f"a {type(key).__name__} is used as the key of a dict")
        mapping[key] = value


def _call(
    calls: Mapping[str, Callable[..., Any] | None],
    name: str,
    arguments: tuple[Any, ...],
) -> Any:
    function = calls[name]
    if function is None:
        raise ValueError(f"{name.replace(' ', '.')!r} is not a function to call")
    return function(*arguments)


def _check_attributes(target: Any, state: Any) -> None:
    """Refuses attributes on everything but the two kinds that checkpoints set."""
    if isinstance(target, OrderedDict):
        return  # `_metadata` of a state dict: versions of modules, not weights.
    if isinstance(target, np.dtype):
        if state[1] not in ("<", "|", "="):
            raise ValueError(f"a NumPy value has byte order {state[1]!r}, not '<'")
        return
    raise ValueError(f"it sets attributes of a {type(target).__name__}")


def write_plain_pickle(value: Any, *, where: str = "value") -> bytes:
    """Returns a pickle (protocol 2) of a plain value.

    Args:
      value: None, bool, int, float, str, tuple, list, dict, OrderedDict, `Global`,
        `Call`, `Persistent`, or any nesting of these.
      where: What messages call the value.

    Raises:
      ValueError: If a value of another type is met; the message says where.
    """
    parts = [pickle.PROTO + b"\x02"]
    _emit(value, parts, where=where)
    parts.append(pickle.STOP)
    return b"".join(parts)


def _emit(value: Any, parts: list[bytes], *, where: str) -> None:
    # bool before int and the named tuples before tuple: each is a kind of the other.
    if value is None:
        parts.append(pickle.NONE)
    elif isinstance(value, bool):
        parts.append(pickle.NEWTRUE if value else pickle.NEWFALSE)
    elif isinstance(value, int):
        parts.append(_integer(value))
    elif isinstance(value, float):
        parts.append(pickle.BINFLOAT + struct.pack(">d", value))
    elif isinstance(value, str):
        text = value.encode()
        parts.append(pickle.BINUNICODE + struct.pack("<I", len(text)) + text)
    elif isinstance(value, Global):
        parts.append(pickle.GLOBAL + value.name.replace(" ", "\n").encode() + b"\n")
    elif isinstance(value, Call):
        _emit(Global(value.name), parts, where=where)
        _emit(value.arguments, parts, where=where)
        parts.append(pickle.REDUCE)
    elif isinstance(value, Persistent):
        _emit(value.identity, parts, where=where)
        parts.append(pickle.BINPERSID)
    elif isinstance(value, tuple | list):
        parts.append(pickle.EMPTY_LIST if isinstance(value, list) else b"")
        parts.append(pickle.MARK)
        for index, item in enumerate(value):
            _emit(item, parts, where=f"{where}[{index}]")
        parts.append(pickle.APPENDS if isinstance(value, list) else pickle.TUPLE)
    elif isinstance(value, dict):
        if isinstance(value, OrderedDict):
            _emit(Call("collections OrderedDict", ()), parts, where=where)
        else:
            parts.append(pickle.EMPTY_DICT)
        parts.append(pickle.MARK)
        for key, item in value.items():
            _emit(key, parts, where=f"{where} key {key!r}")
            _emit(item, parts, where=f"{where}[{key!r}]")
        parts.append(pickle.SETITEMS)
    else:
        raise ValueError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; "
            "use None, bool, int, float, str, tuple, list, dict or an array"
        )


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    digits = pickle.encode_long(value)
    if len(digits) > 255:
        raise ValueError(f"an integer of {len(digits)} bytes is too long to write")
    return pickle.LONG1 + bytes([len(digits)]) + digits
