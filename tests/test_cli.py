"""The command line: answers on stdout, one message and exit code 2 for errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import make_data, share_compilations, write_run

from e3dsnn_jax.cli import COMMANDS, USER_ERROR, main, report_errors
from e3dsnn_jax.data.open import open_dataset
from e3dsnn_jax.data.shapes import NUM_CLOUDS
from e3dsnn_jax.interop import read_weights
from e3dsnn_jax.training.stopping import Interrupted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    share_compilations(tmp_path_factory)
    return write_run(make_data(tmp_path_factory.mktemp("cli")))


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in told


def test_no_command_is_an_error_with_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == USER_ERROR
    assert "usage: e3dsnn COMMAND" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]):
    assert main(["fit"]) == USER_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert "no command 'fit'" in told.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert f"usage: e3dsnn {command}" in told
    assert ".. math" not in told


def test_mistyped_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        main(["train", "--recipe.epoch", "3"])
    assert end.value.code == USER_ERROR
    assert "recipe.epochs" in capsys.readouterr().err


def test_help_imports_nothing_slow():
    script = (
        "import sys; from e3dsnn_jax.cli import main; main(['--help']);"
        "slow = {'optax', 'orbax', 'grain', 'matplotlib', 'trimesh', 'tensorboardX'};"
        "print(sorted(slow & set(sys.modules)))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == "[]"


def test_predict_prints_the_top_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cloud = open_dataset(run.parent / "data", "test")[0]
    assert cloud.normals is not None
    columns = np.concatenate([cloud.points, cloud.normals], axis=1)
    np.savetxt(tmp_path / "cloud.txt", columns, delimiter=",")
    np.save(tmp_path / "cloud.npy", columns)
    np.savez(tmp_path / "cloud.npz", points=cloud.points, normals=cloud.normals)
    answers = []
    for name in ("cloud.txt", "cloud.npy", "cloud.npz"):
        assert main(["predict", str(run), str(tmp_path / name), "--top", "2"]) == 0
        answers.append(capsys.readouterr().out)
    lines = answers[0].splitlines()
    assert len(lines) == 2
    shares = [float(line.split()[0].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert {line.split()[1] for line in lines} < {"ball", "box", "rod"}
    assert answers[1] == answers[0] == answers[2]


def test_predict_takes_meshes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    corners = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    faces = "3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"
    (tmp_path / "tetrahedron.off").write_text(f"OFF\n4 4 6\n{corners}{faces}")
    assert main(["predict", str(run), str(tmp_path / "tetrahedron.off")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_evaluate_prints_a_table_and_writes_files(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", str(run), "--votes", "2"]) == 0
    told = capsys.readouterr()
    assert "accuracy" in told.out
    assert "stem/unit1" in told.out
    assert str(run) in told.err
    stored = json.loads((run / "evaluation.json").read_text())
    assert (stored["votes"], stored["clouds"], stored["step"]) == (2, 6, 6)


def test_energy_prints_a_table_and_writes_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["energy", str(run), "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "\nstem/unit1" in told.out
    assert "mean of 6 clouds" in told.out
    assert f"are in {tmp_path / 'run'}." in told.err
    stored = json.loads((tmp_path / "run" / "energy.json").read_text())
    assert (stored["clouds"], stored["step"], stored["source"]) == (6, 6, str(run))
    assert stored["totals_over_clouds"]["synaptic_operations"] > 0
    assert (tmp_path / "run" / "figures" / "energy.png").stat().st_size > 10_000
    # From a weights file, on half of the clouds.
    weights = tmp_path / "network.npz"
    assert main(["convert", str(run), str(weights)]) == 0
    words = ["energy", str(weights), "--voxel-size", "0.4", "--clouds", "3"]
    assert main([*words, "--data", str(run.parent / "data")]) == 0
    stored = json.loads((tmp_path / "network_energy" / "energy.json").read_text())
    assert (stored["clouds"], stored["step"]) == (3, None)
    capsys.readouterr()
    # A voxel so small that coordinates cannot number the cells, as one message.
    words = ["energy", str(weights), "--voxel-size", "1e-12"]
    assert main([*words, "--data", str(run.parent / "data")]) == USER_ERROR
    assert "use a larger voxel_size" in capsys.readouterr().err


def test_analyse_prints_a_table_and_writes_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["analyse", str(run), "--measure", "cka", "--draws", "0", "--grids", "1"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "\nstage0/down" in told.out
    assert "linear CKA of membranes with step 6" in told.out
    assert "evaluated 2 of 2 checkpoints" in told.err
    assert json.loads((tmp_path / "analysis.json").read_text())["steps"] == [0, 6]
    assert main([*words, "--most", "1"]) == USER_ERROR
    assert "are too few for" in capsys.readouterr().err


def test_energy_of_a_network_without_spikes_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = shutil.copytree(run, tmp_path / "run")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"relu": false', '"relu": true'))
    assert main(["energy", str(other), "--clouds", "2"]) == 0
    assert "Note: This network does not spike" in capsys.readouterr().out
    stored = json.loads((other / "energy.json").read_text())
    totals = stored["totals_over_clouds"]
    assert totals["synaptic_operations"] == 0
    assert totals["macs"] == totals["equivalent_macs"]


def test_energy_of_the_checkpoint_of_another_variant_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = shutil.copytree(run, tmp_path / "run")
    config = other / "config.json"
    changed = json.loads(config.read_text())
    changed["model"]["architecture"]["embed_channels"] = 3
    config.write_text(json.dumps(changed))
    assert main(["energy", str(other)]) == USER_ERROR
    told = capsys.readouterr().err
    assert "stage0/down/conv/kernel is (8, 2, 2), but the network needs (8, 3" in told
    assert "another variant" in told


def test_energy_of_an_empty_cloud_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = shutil.copytree(run.parent / "data", tmp_path / "data")
    with np.load(data / "test_0.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in ("points", "normals"):
        arrays[name] = arrays[name][:, :0]
    np.savez(data / "test_0.npz", **arrays)
    assert main(["energy", str(run), "--data", str(data)]) == USER_ERROR
    told = capsys.readouterr().err
    assert "test_0.npz" in told
    assert "empty" in told


def test_weights_go_from_the_run_to_a_file_and_are_evaluated(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "network.pth"
    assert main(["convert", str(run), str(path)]) == 0
    assert main(["convert", str(path), str(tmp_path / "network.npz")]) == 0
    captured = capsys.readouterr()
    assert "arrays matched" in captured.out
    assert "does not hold its voxel size, 0.4 here" in captured.err
    assert "Warning" not in captured.err
    assert read_weights(tmp_path / "network.npz").keys() == {"params", "batch_stats"}
    words = ["evaluate", "--weights", str(path), "--voxel-size", "0.4"]
    assert main([*words, "--data", str(run.parent / "data")]) == 0
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    assert "arrays matched" in captured.err
    assert (tmp_path / "network_evaluation" / "evaluation.json").exists()


def test_a_file_that_cannot_hold_the_neurons_comes_with_a_warning(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = shutil.copytree(run, tmp_path / "run")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"levels": 4', '"levels": 2'))
    assert main(["convert", str(other), str(tmp_path / "network.pth")]) == 0
    assert "Warning: this network has Neuron(levels=2" in capsys.readouterr().err


def test_other_data_are_evaluated_into_a_folder_of_their_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = str(run.parent / "data")
    assert main(["evaluate", str(run), "--data", data, "--split", "train"]) == 0
    assert "12" in capsys.readouterr().out.splitlines()[0]
    assert (run / "evaluation_data_train" / "evaluation.json").exists()


def test_pack_makes_records_that_evaluate_takes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, out = run.parent / "data", tmp_path / "records"
    words = ["pack", str(data), str(out), "--voxel-size", "0.4"]
    assert main([*words, "--clouds-per-shard", "5", "--split", "train"]) == 0
    assert capsys.readouterr().out.startswith("train: 12 clouds, 768 points, ")
    assert len(list(out.glob("train-*-of-00003.arrayrecord"))) == 3
    assert main([*words, "--clouds-per-shard", "5"]) == 0
    told = capsys.readouterr()
    train, test = told.out.splitlines()
    size = sum(path.stat().st_size for path in out.glob("test-*"))
    original = sum(path.stat().st_size for path in data.glob("test*"))
    assert train.endswith(", packed before")
    assert "voxels of 0.4; 2 shards, " in test
    assert test.endswith(f" {size / 1e6:.1f} MB (original {original / 1e6:.1f} MB)")
    assert told.err == ""  # no bar where there is no terminal
    answers = []
    for folder in (data, out):
        words = ["evaluate", str(run), "--data", str(folder)]
        assert main([*words, "--out", str(tmp_path / "answer")]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_pack_takes_the_embedded_shapes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(NUM_CLOUDS, "test", 16)
    out = str(tmp_path / "records")
    words = ["pack", "shapes", out, "--split", "test", "--points-per-cloud", "64"]
    assert main([*words, "--points-per-voxel", "1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("test: 16 clouds, ")
    assert "original" not in told
    thin = open_dataset(tmp_path / "records", "test")
    assert len(thin) == len(thin.class_names) == 16
    assert all(len(thin[index].points) <= 64 for index in range(16))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "give either the folder of a run or --weights"),
        (["evaluate", "{here}"], "is not the folder of a training run"),
        (["evaluate", "{here}/absent"], "there is no such folder"),
        (["evaluate", "--weights", "{here}/absent.pth"], "absent.pth"),
        (["evaluate", "{run}", "--data", "{here}/absent"], "no such folder"),
        (["energy", "{here}"], "is not the folder of a training run"),
        (["energy", "{here}/absent.pth"], "absent.pth"),
        (["energy", "{run}", "--clouds", "0"], "--clouds must be 1 or more, got 0"),
        (["energy", "{run}", "--data", "{here}/absent"], "no such folder"),
        (["predict", "{run}", "{here}/absent.off"], "absent.off"),
        (["predict", "{run}", "{here}/notes.doc"], "notes.doc"),
        (["predict", "{run}", "{here}/bare.txt"], "bare.txt has no normals"),
        (["predict", "{run}", "{here}/bare.txt", "--top", "0"], "--top must be 1 or"),
        (["predict", "{here}", "{here}/bare.txt"], "is not the folder of a training"),
        (["convert", "{run}", "{here}/weights.onnx"], "weights.onnx"),
        (["convert", "{here}/absent.pth", "{here}/a.npz"], "absent.pth"),
        (["train", "--run", "{here}", "--recipe.epochs", "0"], "recipe.epochs must be"),
        (
            ["train", "--run", "{here}/r", "--data.path", "{here}"],
            "not a known data set",
        ),
        (["train", "--run", "{run}", "--data.path", "{data}"], "another configuration"),
        (["pack", "{here}/absent", "{here}/out"], "absent: no such folder"),
        (["pack", "./shapes", "{here}/out"], "shapes: no such folder"),
        (["pack", "{here}", "{here}/out"], "not a known data set"),
        (["pack", "{data}", "{here}"], "holds bare.txt, which is no part"),
        (["pack", "{data}", "{here}/o", "--voxel-size", "0"], "voxel_size must be"),
    ],
)
def test_errors_of_users_are_one_message(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
):
    (tmp_path / "bare.txt").write_text("0 0 0\n1 0 0\n0 1 0\n")
    (tmp_path / "notes.doc").write_text("0 0 0\n")
    filled = [
        word.format(run=run, here=tmp_path, data=run.parent / "data") for word in words
    ]
    assert main(filled) == USER_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert message in told.err
    assert "Error: " in told.err
    assert "Traceback" not in told.err
    assert "[Errno" not in told.err


def test_bugs_keep_their_traceback():
    def broken() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        report_errors(broken)


def test_traceback_on_demand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("E3DSNN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="give either"):
        main(["evaluate"])


def test_exit_code_after_a_signal(capsys: pytest.CaptureFixture[str]):
    def stopped() -> None:
        raise Interrupted("Stopped at step 3.", signal_number=2)

    def pressed() -> None:
        raise KeyboardInterrupt

    assert report_errors(stopped) == 130
    assert capsys.readouterr().err == "Stopped at step 3.\n"
    assert report_errors(pressed) == 130
