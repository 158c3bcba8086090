"""Faults, a few of each kind: `python -m experiments.faults` tries thousands."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.faults import __main__ as faults
from experiments.faults import clouds
from experiments.faults.clouds import run_clouds
from experiments.faults.disk import run_disk
from experiments.faults.kills import run_kills
from experiments.faults.mutations import FORMATS, mutate, run_mutations
from experiments.faults.outcomes import (
    BAD_MESSAGE,
    CRASH,
    REFUSED,
    SAME,
    WRONG,
    Campaign,
    format_findings,
    format_table,
    judge_error,
    to_json,
)
from experiments.smoke import ARCHITECTURE

# Reading these takes a tenth of a second.
SLOW = ("checkpoint", "best")


@pytest.fixture(autouse=True)
def few_optimisations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes compile in seconds; they do not inherit the settings of the tests."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def check(campaign: Campaign) -> None:
    assert campaign.ok, "\n" + format_findings({"": campaign})


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 40, bytes(range(256)) * 4])
def test_damage_changes_a_file_and_repeats(content: bytes):
    for number in range(50):
        damaged, what = mutate(content, np.random.default_rng(number))
        assert damaged != content
        assert (damaged, what) == mutate(content, np.random.default_rng(number))


def test_errors_are_judged_by_kind_and_by_name():
    assert judge_error(ValueError("a.npz: cut short"), "a.npz")[0] == REFUSED
    assert judge_error(ValueError("cut short"), "a.npz")[0] == BAD_MESSAGE
    full = OSError(28, "No space left on device", "runs/config.json")
    assert judge_error(full, "runs")[0] == REFUSED
    assert judge_error(OSError(28, "No space left"), "runs")[0] == BAD_MESSAGE
    assert judge_error(KeyError("a.npz"), "a.npz")[0] == CRASH


def test_table_findings_and_json_of_a_campaign():
    good, bad = Campaign(), Campaign()
    assert not good.ok  # nothing was tried
    good.add("npy", SAME, fault="zeros")
    bad.add("npz", REFUSED, fault="zeros")
    bad.add("npz", CRASH, fault="a flipped bit", message="KeyError: 'x'")
    parts = {"mutations": good, "disk": bad}
    table = format_table(parts).splitlines()
    assert table[0].split() == ["part", "fault", "same", "refused", "crash"]
    assert table[2].split() == ["disk", "npz", ".", "1", "1"]
    assert (
        format_findings(parts) == "disk, npz: crash after a flipped bit: KeyError: 'x'"
    )
    assert to_json({"mutations": good}, seconds=1.26) == {
        "mutations": {"npy": {"same": 1}},
        "ok": True,
        "seconds": 1.3,
    }
    assert not to_json(parts, seconds=0)["ok"]


@pytest.mark.parametrize("slow", [False, True], ids=["files", "checkpoints"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, slow: bool):
    formats = [name for name in FORMATS if name.startswith(SLOW) == slow]
    check(run_mutations(tmp_path, mutations=3 if slow else 25, seed=0, formats=formats))


def test_full_disk(tmp_path: Path):
    check(run_disk(tmp_path, limits=(0, 1300), trainings=False))


def test_extreme_clouds(lenient_promotion: None):
    check(run_clouds(edge=6, largest=5_000, architecture=ARCHITECTURE))


def test_other_logits_of_a_moved_cloud_are_noticed(
    lenient_promotion: None, monkeypatch: pytest.MonkeyPatch
):
    right = clouds._Network.logits

    def wrong(self, voxels, *, shift=0):
        logits = right(self, voxels, shift=shift)
        return logits + 1e-6 if shift and logits is not None else logits

    monkeypatch.setattr(clouds._Network, "logits", wrong)
    campaign = run_clouds(edge=3, largest=1_000, architecture=ARCHITECTURE)
    assert campaign.counts["one point, raw"] == {WRONG: 1}
    assert "other logits after moving" in format_findings({"": campaign})


def test_killed_run(tmp_path: Path):
    campaign = run_kills(tmp_path, kills=1, seed=0, epochs=1)
    check(campaign)
    assert sum(sum(counts.values()) for counts in campaign.counts.values()) >= 2


def test_command_answers_in_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(part: str, config: faults.Config, folder: Path) -> Campaign:
        campaign = Campaign()
        outcome = SAME if config.seed == 0 else CRASH
        campaign.add(f"{part} in {folder.name}", outcome, fault="a fault")
        return campaign

    with monkeypatch.context() as patch:
        patch.setattr(faults, "_run", run)
        assert faults.main(faults.Config(part=("disk",))) == 0
        assert faults.main(faults.Config(part=("disk",), seed=1)) == 1
    told = capsys.readouterr()
    first, last = (json.loads(line) for line in told.out.splitlines())
    assert first.keys() == {"disk", "ok", "seconds"}
    assert (first["ok"], last["ok"]) == (True, False)
    assert "disk in disk: crash after a fault" in told.err
    (tmp_path / "disk" / "x").mkdir(parents=True)
    with pytest.raises(SystemExit, match="is not empty"):
        faults.main(faults.Config(part=("disk",), out=tmp_path))


@pytest.mark.slow
def test_campaign(tmp_path: Path):
    config = faults.Config(kills=100, mutations=1000, out=tmp_path)
    assert faults.main(config) == 0
