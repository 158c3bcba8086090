"""Tables of prices: files, and which memory holds what."""

import json

import pytest

from e3dsnn_jax.prices import (
    HOROWITZ_45NM,
    Memory,
    choose_memory,
    describe_prices,
    read_prices,
)


def write(folder, table):
    path = folder / "prices.json"
    path.write_text(json.dumps(table))
    return path


def test_a_table_comes_back_from_its_file(tmp_path):
    table = describe_prices(HOROWITZ_45NM)
    assert read_prices(write(tmp_path, table)) == HOROWITZ_45NM


def test_the_smallest_memory_that_holds_an_array_is_taken():
    for size, name in (
        (0, "8 KiB"),
        (8192, "8 KiB"),
        (8193, "32 KiB"),
        (2**20, "1 MiB"),
        (2**20 + 1, "DRAM"),
        (2**50, "DRAM"),
    ):
        assert choose_memory(HOROWITZ_45NM, size).name == name
    few = HOROWITZ_45NM._replace(memories=(Memory("small", 10, 1.0),))
    with pytest.raises(ValueError, match="no memory for 11 bytes"):
        choose_memory(few, 11)


def change(table, **changes):
    table = table | changes
    return {name: value for name, value in table.items() if value != "absent"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiplication": 3.7}, "multiplication is no field of the prices"),
        ({"add": "absent"}, "prices.json: add is missing"),
        ({"add": "0.9"}, "add is '0.9', expected a number of pJ"),
        ({"add": True}, "add is True, expected a number of pJ"),
        ({"add": -1}, "add is -1, expected a number of pJ, 0 or more"),
        ({"add": float("nan")}, "add is nan, expected a number"),
        ({"name": 45}, "name is 45, expected a text"),
        ({"memories": []}, "expected a list of one or more"),
        ({"memories": [3]}, r"memories\[0\]: 3 is no object with the fields name"),
        (
            {"memories": [{"name": "all", "bytes": None}]},
            r"memories\[0\].pj_per_byte is missing",
        ),
        (
            {"memories": [{"name": "a", "bytes": 0.5, "pj_per_byte": 1}]},
            r"memories\[0\].bytes is 0.5, expected a whole number above 0, or null",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path, changes, message):
    path = write(tmp_path, change(describe_prices(HOROWITZ_45NM), **changes))
    with pytest.raises(ValueError, match=message):
        read_prices(path)


@pytest.mark.parametrize("sizes", [[8], [None, None], [16, 8, None], [8, 8, None]])
def test_memories_are_in_order_and_the_last_holds_everything(tmp_path, sizes):
    memories = [{"name": "m", "bytes": size, "pj_per_byte": 1} for size in sizes]
    path = write(tmp_path, describe_prices(HOROWITZ_45NM) | {"memories": memories})
    with pytest.raises(ValueError, match="expected ever larger ones and null"):
        read_prices(path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", r"\[1\] is no object")]
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prices(tmp_path / "prices.json")
    with pytest.raises(FileNotFoundError):
        read_prices(tmp_path / "absent.json")
