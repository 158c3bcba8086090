"""The timing of scans: its line, and files that are named."""

import json

from experiments.scan_reading import main, make_up_scan


def test_a_scan_is_made_up_where_none_is_named(capsys):
    main(["--points", "3000", "--repeats", "1"])
    line = json.loads(capsys.readouterr().out)
    assert (line["scan"], line["points"]) == ("made up", 3000)
    assert 0 < line["voxels"] <= 3000
    assert line["milliseconds"].keys() == {"read", "augment", "voxelize", "all"}


def test_named_scans_are_timed(capsys, tmp_path):
    path = make_up_scan(tmp_path, points=500)
    main([str(path), "--repeats", "1"])
    line = json.loads(capsys.readouterr().out)
    assert (line["scan"], line["points"]) == (str(path), 500)
