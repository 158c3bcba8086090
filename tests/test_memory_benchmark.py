"""The memory benchmark runs, and tells the plan and the peak of each row."""

import json

from experiments.benchmarks import memory


def test_it_prints_a_table_and_one_json_line(monkeypatch, capsys, tmp_path):
    arguments = ["memory", "--small", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    # In this process, to share what is imported already; the peak is not its own then.
    monkeypatch.setattr(memory, "measure_in_child", memory.measure)
    memory.main()
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    rows = json.loads(line)["rows"]
    assert [row["rematerialise"] for row in rows] == [False, True]
    for row in rows:
        # Parameters and momentum of the smallest network alone are 15 MB.
        assert row["arguments_bytes"] > 15e6
        assert row["peak_bytes"] >= row["before_bytes"] * 0.9
    assert "T, 2 clouds, rematerialised" in captured.err
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_a_row_is_measured_in_a_process_of_its_own(monkeypatch):
    row = memory.Row("T", 2, 60, 1, rematerialise=True)

    def run(command, **options):
        assert command[2:4] == ["experiments.benchmarks.memory", "row"]
        parsed = memory.tyro.cli(memory.Row, args=command[4:])
        assert parsed == row

        class Done:
            stdout = 'a warning\n{"peak_bytes": 1}\n'

        return Done

    monkeypatch.setattr(memory.subprocess, "run", run)
    assert memory.measure_in_child(row) == {"peak_bytes": 1}
