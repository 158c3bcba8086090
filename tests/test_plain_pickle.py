import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from e3dsnn_jax.plain_pickle import (
    Call,
    Global,
    Persistent,
    read_plain_pickle,
    write_plain_pickle,
)

VALUE = {
    "none": None,
    "flags": [True, False],
    "numbers": (0, -1, 255, 2**31 - 1, -(2**31), 2**40, -(2**90), 0.1, float("-inf")),
    "text": ["", "é\n\\", "x" * 300],
    "nested": {"empty": ((), [], {}), 3: ("a",), 0.5: [("b", "c", "d", "e")]},
}


def read(data: bytes, **calls: Any) -> Any:
    named = {name.replace("__", " "): function for name, function in calls.items()}
    return read_plain_pickle(data, calls=named, persistent=lambda key: f"<{key}>")


def test_python_reads_what_is_written():
    assert pickle.loads(write_plain_pickle(VALUE)) == VALUE


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_python_writes(protocol):
    # Equal strings and tuples are shared objects here, so memo instructions appear.
    shared = ("again", 2**70)
    value = [VALUE, shared, shared, b"\x00\xff" if protocol > 2 else 0]
    assert read(pickle.dumps(value, protocol)) == value


def test_ordered_dicts_calls_and_references_survive():
    value = OrderedDict(
        a=Call("mod double", (21,)), b=Global("mod double"), c=Persistent(("k", 1))
    )
    result = read(
        write_plain_pickle(value),
        collections__OrderedDict=OrderedDict,
        mod__double=lambda x: 2 * x,
    )
    assert result == {"a": 42, "b": Global("mod double"), "c": "<('k', 1)>"}
    assert isinstance(result, OrderedDict)


def test_attributes_of_an_ordered_dict_are_dropped():
    value = OrderedDict(a=1)
    value._metadata = {"version": 2}  # pyright: ignore[reportAttributeAccessIssue]
    result = read(pickle.dumps(value, 2), collections__OrderedDict=OrderedDict)
    assert result == {"a": 1}
    assert not hasattr(result, "_metadata")


class RunsAtLoad:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("protocol", [2, 4])
def test_unknown_globals_are_named_and_not_run(protocol, capsys):
    with pytest.raises(ValueError, match=r"global '(__builtin__|builtins)\.print'"):
        read(pickle.dumps(RunsAtLoad(), protocol))
    assert capsys.readouterr().out == ""


HOSTILE = {
    "a name that is not a function": (b"cmod\nname\n)R.", "is not a function to call"),
    "a call of text": (b"X\x01\x00\x00\x00a)R.", "a known function was expected"),
    "a call without a tuple": (b"cmod\nf\nNR.", "a tuple of arguments was expected"),
    "attributes of a list": (b"]}b.", "sets attributes of a list"),
    "attributes of a function": (b"cmod\nf\n}b.", "sets attributes of a Global"),
    "an instance": (b"(cmod\nf\no.", "do not need the instruction OBJ"),
    "a new object": (b"cmod\nf\n)\x81.", "do not need the instruction NEWOBJ"),
    "an extension": (b"\x82\x01.", "do not need the instruction EXT1"),
    "a buffer": (b"\x97.", "do not need the instruction NEXT_BUFFER"),
    "items for a number": (b"K\x01(K\x02K\x03u.", "a dict was expected, not int"),
    "an item for a number": (b"K\x01K\x02a.", "a list was expected, not int"),
    "an odd number of items": (b"}(K\x01u.", "argument 2 is"),
    "a nested key": (b"})\x85\x85K\x01s.", "a tuple is used as the key"),
    "an unhashable key": (b"}]K\x01s.", "a list is used as the key"),
    "an empty stack": (b"\x85.", "pop from empty list"),
    "no mark": (b"t.", "pop from empty list"),
    "an unset memo": (b"h\x05.", "near byte 2: value 5 is used but never set"),
    "no end": (b"N", "pickle exhausted before seeing STOP"),
    "text longer than the file": (b"X\xff\xff\xff\x7fa.", "expected 2147483647 bytes"),
    "no pickle at all": (b"\x00\x01", "at position 0, opcode"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_pickles_are_refused(name):
    data, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        read(
            b"\x80\x02" * (name != "no pickle at all") + data,
            mod__f=len,
            mod__name=None,
        )


def test_a_huge_memo_index_takes_no_memory():
    data = b"\x80\x02N" + b"r" + struct.pack("<I", 2**32 - 1) + b"."
    assert read(data) is None


def test_numpy_types_of_the_other_byte_order_are_refused():
    data = pickle.dumps(np.dtype(">f8"), 2)
    with pytest.raises(ValueError, match="has byte order '>', not '<'"):
        read(data, numpy__dtype=lambda code, *_: np.dtype(code))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2, 3}]}, r"value\['a'\]\[1\] is a set"),
        ({b"a": 1}, "value key b'a' is a bytes"),
        pytest.param(2**5000, "integer of 626 bytes is too long", id="integer"),
    ],
)
def test_values_that_a_checkpoint_cannot_hold(value, message):
    with pytest.raises(ValueError, match=message):
        write_plain_pickle(value)
