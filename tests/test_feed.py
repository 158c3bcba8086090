"""Batches of several processes: shares, agreed shapes, overflow, failures, stops."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feed_run import BATCH, CLOUDS, Clusters, make_source, plan

from e3dsnn_jax.training.launch import free_port

SCRIPT = Path(__file__).with_name("feed_run.py")


@pytest.fixture(scope="module", params=[1, 2], ids=["one device", "two devices"])
def answers(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What two processes of one or two devices each found."""
    port, started = free_port(), []
    for process in range(2):
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])]),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(process),
            "JAX_NUM_CPU_DEVICES": str(request.param),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT)],
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        told = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], told
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def test_shares_make_up_the_epoch(answers: list[dict[str, Any]]):
    one, two = (answer["seen"] for answer in answers)
    assert sorted(one + two) == list(range(CLOUDS))
    # Each batch holds the clouds that one process alone would have drawn.
    alone = make_source(Clusters(), devices=2, shared=False)
    half = BATCH // 2
    for step in range(len(alone)):
        part = slice(step * half, (step + 1) * half)
        expected = alone.shards(step).indices.ravel().tolist()
        assert sorted(one[part] + two[part]) == sorted(expected)


def test_static_shapes_are_the_same(answers: list[dict[str, Any]]):
    assert answers[0]["capacity"] == answers[1]["capacity"]
    assert answers[0]["shapes"] == answers[1]["shapes"]


def test_the_larger_need_decides(answers: list[dict[str, Any]]):
    one, two = answers
    largest = np.maximum(one["largest"], two["largest"])
    assert one["agreed"] == two["agreed"]
    small = one["small"]
    assert [rows == small for rows in one["agreed"]] == (largest <= small).tolist()
    fits = [np.array(answer["largest"]) <= small for answer in answers]
    assert (fits[0] != fits[1]).any()  # else nothing had to be agreed on


def test_overflow_is_known_everywhere(answers: list[dict[str, Any]]):
    one, two = (answer["overflow"] for answer in answers)
    assert one == two
    found = re.search(r"device \d, level 0: (\d+) voxels needed, (\d+) held", one)
    assert found is not None, one
    largest = np.maximum(*(answer["largest"] for answer in answers))
    first = largest[largest > answers[0]["small"]][0]
    assert (int(found[1]), int(found[2])) == (first, answers[0]["small"])


def test_failure_is_told_everywhere(answers: list[dict[str, Any]]):
    assert re.match(r"ValueError: cloud \d+ is broken", answers[1]["broken"])
    assert answers[0]["broken"] == (
        "ProcessError: process 1 of 2 could not make its share of the batch of step 2; "
        "what it printed says why"
    )


def test_all_stop_together(answers: list[dict[str, Any]]):
    assert [answer["stopped_after"] for answer in answers] == [2, 2]


def test_exchanges(answers: list[dict[str, Any]]):
    one, two = answers
    assert one["broadcast"] == two["broadcast"]
    assert "array([0, 1, 2])" in two["broadcast"]
    assert "-0." in two["broadcast"]  # bit for bit
    assert one["gathered"] == two["gathered"] == [0, 1]
    assert one["told"] == two["told"] == {"process": 0}
    assert [one["first"], two["first"]] == [0, 1]
    assert one["refused"] == "ValueError: no such folder"
    assert two["refused"] == "ProcessError: process 0: no such folder"
    assert [one["speaks"], two["speaks"]] == [True, False]


def test_capacities_of_shares_are_those_of_the_whole(answers: list[dict[str, Any]]):
    # Shares are dealt by expected voxels: without augmentation, the true ones.
    devices = answers[0]["shapes"][0][0]
    alone = make_source(Clusters(), devices=devices, shared=False)
    assert repr(plan(alone, 1.0)) == answers[0]["capacity"]
