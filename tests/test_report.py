"""The report: what stands in the page, and what a real browser makes of it."""

import copy
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects
import pytest
from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from tiny_run import make_data, share_compilations, write_run

from e3dsnn_jax.cli import USER_ERROR, main
from e3dsnn_jax.report.clouds_part import rank_clouds
from e3dsnn_jax.report.command import run_report
from e3dsnn_jax.report.contents import read_contents
from e3dsnn_jax.report.page import to_script_json
from e3dsnn_jax.report.plots import layer_labels
from e3dsnn_jax.training.run_folder import MetricsLog

CLASSES = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 2'>",
    'a name & "quotes", $x$, `code`, longer than any axis should show it',
)
LAYERS = [f"stage{place // 4}/block0/unit{place % 4}/spikes" for place in range(25)]
STEPS, GRID_STEPS = [0, 2, 4, 6], [0, 3, 6]
FIGURES = {
    "loss",
    "accuracy",
    "others",
    "confusion",
    "class_accuracy",
    "cloud",
    "over_time",
    "convergence",
    "one_layer",
    "grid",
    "grid_baseline",
    "class_information_map",
    "firing_rate",
    "mean_spikes",
    "energy_layers",
}


def make_analysis() -> dict[str, Any]:
    """An analysis of 25 layers with a hole, as `e3dsnn analyse` writes it."""
    rng = np.random.default_rng(0)
    depth, classes = len(LAYERS), len(CLASSES)
    similar = rng.uniform(0.3, 1, (len(STEPS), depth)).round(3)
    low, high = (similar - 0.05).tolist(), (similar + 0.05).tolist()
    low[1][0] = high[1][0] = None
    similar = similar.tolist()
    similar[1][0] = None
    return {
        "measure": "SVCCA, 99 % of the variance",
        "values": "spikes",
        "datapoints": "voxels",
        "statistics": "batch",
        "clouds": 8,
        "split": "test",
        "notes": [],
        "layers": LAYERS,
        "neurons": [16] * depth,
        "datapoints_of_layer": [1000 + place for place in range(depth)],
        "steps": STEPS,
        "against_final": similar,
        "intervals": {"level": 0.9, "low": low, "high": high},
        "baseline": rng.uniform(0, 0.3, depth).tolist(),
        "grids": {
            "steps": GRID_STEPS,
            "values": rng.uniform(size=(3, depth, depth)).round(3).tolist(),
            "baseline": rng.uniform(0, 0.3, (depth, depth)).tolist(),
        },
        "convergence": {
            "threshold": 0.9,
            "steps": [None, 4, *([6] * (depth - 2))],
            "rank_correlation": None,
            "question": "Do deeper layers converge later?",
        },
        "class_information": {
            # Also layers of clouds, whose dynamics are not compared.
            "layers": [*LAYERS, "pooled"],
            "classes": list(CLASSES),
            "steps": GRID_STEPS,
            "values": rng.uniform(size=(3, depth + 1, classes)).round(3).tolist(),
            "baseline": rng.uniform(0, 0.3, depth + 1).tolist(),
        },
    }


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of classes with hostile names that nobody has evaluated yet."""
    share_compilations(tmp_path_factory)
    run = write_run(make_data(tmp_path_factory.mktemp("report")))
    (run.parent / "data" / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    (run / "class_names.json").write_text(json.dumps(CLASSES))
    with MetricsLog(run, step=0) as log:
        for step in (2, 4, 6):
            loss = float("nan") if step == 4 else 1 / step
            log.write("train", step, epoch=step / 3, loss=loss, accuracy=step / 10)
            log.write("train", step, clouds_per_second=100.0 * step)
        log.write("eval", 6, epoch=2, loss=0.5, accuracy=0.75, mean_class_accuracy=0.7)
    return run


@pytest.fixture(scope="module")
def run(bare: Path) -> Path:
    """The same run with all that commands add, and its page."""
    run = bare.with_name("whole")
    shutil.copytree(bare, run)
    assert main(["evaluate", str(run)]) == 0
    assert main(["energy", str(run)]) == 0
    (run / "analysis.json").write_text(json.dumps(make_analysis()))
    assert main(["report", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plots(page: str) -> dict[str, Any]:
    return plots_of(page)


def plots_of(page: str) -> dict[str, Any]:
    found = re.findall(
        r'<script id="plots" type="application/json">(.*?)</script>', page
    )
    (text,) = found

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_command_prints_the_path(run: Path, capsys: pytest.CaptureFixture[str]):
    out = run.parent / "elsewhere.html"
    assert main(["report", str(run), "--clouds", "0", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out}\n"
    assert "--clouds 0" in told.err
    assert plots_of(out.read_text()).keys() == FIGURES - {"cloud"}


def test_every_figure_is_there_and_plotly_knows_its_attributes(
    page: str, plots: dict[str, Any]
):
    assert plots.keys() == FIGURES
    for name, plot in plots.items():
        assert page.count(f'<figure id="{name}"') == 1
        plotly.graph_objects.Figure(data=plot["data"], layout=plot["layout"])
        choice = plot["choice"]
        if choice is not None:
            assert len(choice["updates"]) == len(choice["names"])
            assert len(choice["captions"]) in (0, len(choice["names"]))
            for update in choice["updates"]:
                for values in update.values():
                    assert len(values) == len(choice["traces"])


def test_nothing_is_fetched(page: str):
    own = page.replace(re.findall(r"<script>.*?</script>", page, re.DOTALL)[0], "")
    assert len(own) < 1_500_000
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert "@import" not in own
    assert "url(" not in own
    assert "default-src 'none'" in own


def test_names_are_text(page: str):
    own = page.replace(re.findall(r"<script>.*?</script>", page, re.DOTALL)[0], "")
    assert "window.broken = 1</script>" not in own
    assert "<img src" not in own
    assert own.count("&lt;img src=x") > 1


def test_json_in_a_script_cannot_end_it():
    values = {"</script>": [float("nan"), float("inf"), 1 / 3, True, None, "a&b"]}
    text = to_script_json(values)
    assert "<" not in text
    assert json.loads(text) == {"</script>": [None, None, 0.333333, True, None, "a&b"]}


def test_confusion_matrix_and_classes(run: Path, plots: dict[str, Any]):
    evaluation = json.loads((run / "evaluation.json").read_text())
    (trace,) = plots["confusion"]["data"]
    for row, counts in enumerate(evaluation["confusion"]):
        for column, count in enumerate(counts):
            share = 100 * count / sum(counts)
            assert trace["z"][row][column] == pytest.approx(share, rel=1e-5)
            assert trace["text"][row][column] == (str(count) if count else "")
    (trace,) = plots["class_accuracy"]["data"]
    expected = sorted(100 * value for value in evaluation["class_accuracy"].values())
    assert trace["x"] == pytest.approx(expected, rel=1e-5)


def test_firing_and_energy(run: Path, plots: dict[str, Any]):
    evaluation = json.loads((run / "evaluation.json").read_text())
    (trace,) = plots["firing_rate"]["data"]
    rates = [100 * layer["firing_rate"] for layer in evaluation["firing"].values()]
    assert trace["x"] == pytest.approx(rates, rel=1e-5)
    contents = read_contents(run)
    assert contents.energy is not None
    stacks = [sum(parts) for parts in zip(*contents.energy.parts.values(), strict=True)]
    # The network's total is that of its layers.
    assert sum(stacks) == pytest.approx(next(iter(contents.energy.totals.values())))
    shown = [trace["x"] for trace in plots["energy_layers"]["data"]]
    assert [sum(parts) for parts in zip(*shown, strict=True)] == pytest.approx(
        stacks, rel=1e-5
    )


def test_energy_skips_what_it_does_not_know(run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    content = {
        "energy_mj_per_cloud": {
            "new way": 0.002,
            "exact": {"new": 3e-3, "total": 3e-3},
        },
        "layers": [
            {"name": "a", "energy_mj_per_cloud": {"new": 1e-3}},
            {"name": "b", "energy_mj_per_cloud": {"compute": 2e-3, "total": 2e-3}},
        ],
    }
    (folder / "energy.json").write_text(json.dumps(content))
    energy = read_contents(folder).energy
    assert energy is not None
    assert energy.layers == ("a", "b")
    assert energy.parts == {"new": [1.0, 0.0], "additions and products": [0.0, 2.0]}
    assert energy.totals == {
        "new way": 2.0,
        "every operation counted": 3.0,
        "every operation counted: new": 3.0,
    }


def test_curves_are_the_metrics(plots: dict[str, Any]):
    train, held = plots["loss"]["data"]
    assert (train["x"], train["y"]) == ([2, 4, 6], [0.5, None, 0.166667])
    assert (held["x"], held["y"]) == ([6], [0.5])
    others = plots["others"]["choice"]
    assert others["names"] == ["clouds per second", "mean class accuracy (eval)"]
    assert others["updates"][0] == {"x": [[2, 4, 6]], "y": [[200, 400, 600]]}


def test_similarity_over_training(plots: dict[str, Any]):
    analysis = make_analysis()
    (trace,) = plots["over_time"]["data"]
    rows = zip(*analysis["against_final"], strict=True)
    for drawn, row, base in zip(trace["z"], rows, analysis["baseline"], strict=True):
        assert drawn == [*row, None, pytest.approx(base, rel=1e-5)]
    layout = plots["over_time"]["layout"]
    assert layout["xaxis"]["ticktext"] == ["0", "2", "4", "6", "", "random"]
    # The word that all layers share is left out.
    assert layout["yaxis"]["ticktext"][24] == "stage6/block0/unit0"
    choice = plots["one_layer"]["choice"]
    assert choice["names"] == layer_labels(LAYERS)
    for place, update in enumerate(choice["updates"]):
        band, baseline, line = update["y"]
        known = [i for i in range(4) if analysis["intervals"]["low"][i][place]]
        assert len(known) == (3 if place == 0 else 4)
        low = [analysis["intervals"]["low"][i][place] for i in known]
        high = [analysis["intervals"]["high"][i][place] for i in known]
        assert band == pytest.approx(high + low[::-1], rel=1e-5)
        there = [STEPS[i] for i in known]
        assert update["x"][0] == there + there[::-1]
        assert baseline == pytest.approx([analysis["baseline"][place]] * 2, rel=1e-5)
        assert line == [row[place] for row in analysis["against_final"]]
    assert "stays above 0.9: never" in choice["captions"][0]
    assert (
        "16 neurons, 1001 datapoints; stays above 0.9: from step 4"
        in (choice["captions"][1])
    )
    # The last step is the reference itself.
    texts = plots["convergence"]["data"][0]["text"]
    assert texts[:3] == ["never", "from step 4", "not before the end"]


def test_grids_and_class_information_over_steps(plots: dict[str, Any]):
    analysis = make_analysis()
    choice = plots["grid"]["choice"]
    assert choice["names"] == ["0", "3", "6"]
    assert [update["z"][0] for update in choice["updates"]] == (
        analysis["grids"]["values"]
    )
    assert plots["grid"]["data"][0]["z"] == analysis["grids"]["values"][-1]
    found = analysis["class_information"]
    for update, values in zip(
        plots["class_information_map"]["choice"]["updates"],
        found["values"],
        strict=True,
    ):
        for row, layer, base in zip(
            update["z"][0], values, found["baseline"], strict=True
        ):
            assert row == [*layer, None, pytest.approx(base, rel=1e-5)]


def test_analysis_without_intervals_and_classes(run: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    analysis = make_analysis() | {"intervals": None, "class_information": None}
    (folder / "analysis.json").write_text(json.dumps(analysis))
    page = run_report(folder, clouds=0).path.read_text()
    found = plots_of(page)
    assert found.keys() == FIGURES - {"cloud", "class_information_map"}
    assert "all of one class" in page
    assert "own statistics" in page
    note = "8 clouds are too few for layers of 16 neurons"
    (folder / "analysis.json").write_text(json.dumps(analysis | {"notes": [note]}))
    page = run_report(folder, clouds=0).path.read_text()
    assert note in page
    assert "all of one class" not in page
    for update in found["one_layer"]["choice"]["updates"]:
        assert update["x"][0] == update["y"][0] == []
        assert len(update["y"][2]) == len(STEPS)


def test_order_of_clouds(rng: np.random.Generator):
    labels = rng.integers(0, 3, 40)
    probabilities = rng.dirichlet(np.ones(3), 40)
    order = rank_clouds(labels, probabilities)
    assert sorted(order) == list(range(40))
    guesses = probabilities.argmax(axis=1)
    wrong = [index for index in order if guesses[index] != labels[index]]
    assert order[: len(wrong)] == wrong
    sureness = [probabilities[index].max() for index in wrong]
    assert sureness == sorted(sureness, reverse=True)
    right = order[len(wrong) :]
    rounds = itertools.zip_longest(
        *([i for i in range(40) if guesses[i] == labels[i] == c] for c in range(3))
    )
    assert right == [index for each in rounds for index in each if index is not None]


def test_clouds_say_what_the_network_said(run: Path, plots: dict[str, Any]):
    choice = plots["cloud"]["choice"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    wrong = round(evaluation["clouds"] * (1 - evaluation["accuracy"]))
    marks = [name[0] for name in choice["names"]]
    assert marks == ["✗"] * wrong + ["✓"] * (evaluation["clouds"] - wrong)
    for name, caption in zip(choice["names"], choice["captions"], strict=True):
        true = name[2:].split(", taken for ")[0]
        assert caption.startswith(f"True class: {true}. Predicted: ")


def test_parts_of_different_steps(run: Path, page: str, tmp_path: Path):
    assert "of different steps" not in page
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"step": 4}))
    told = "are of different steps: evaluation 4, analysis 6, energy 6"
    assert told in run_report(folder, clouds=0).path.read_text()


def test_unfinished_run_names_the_commands(bare: Path):
    report = run_report(bare, clouds=0)
    page = report.path.read_text()
    report.path.unlink()
    assert plots_of(page).keys() == {"loss", "accuracy", "others"}
    for command in ("evaluate", "analyse", "energy"):
        assert f"<code>e3dsnn {command} {bare}</code>" in page
        assert any(f"e3dsnn {command} {bare}" in note for note in report.notes)


def test_run_without_network_or_numbers(bare: Path, tmp_path: Path):
    run = tmp_path / "started"
    run.mkdir()
    for name in ("config.json", "class_names.json"):
        shutil.copy(bare / name, run)
    report = run_report(run)
    page = report.path.read_text()
    assert "No clouds to show" in page
    assert "No numbers yet" in page
    assert plots_of(page) == {}


def test_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["report", str(folder)]) == USER_ERROR
        told = capsys.readouterr().err
        assert f"{folder} is not the folder of a training run" in told
    assert main(["report", str(tmp_path), "--clouds", "-1"]) == USER_ERROR
    assert "--clouds must be 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "where", "value", "problem"),
    [
        (
            "analysis.json",
            "against_final",
            [[1, 2]],
            r"shape \(1, 2\), expected \(4, 25\)",
        ),
        ("analysis.json", "against_final", "many", "no array of numbers"),
        ("analysis.json", "steps", [], "no list of steps"),
        ("analysis.json", "layers", [1], "no list of names"),
        ("analysis.json", "grids", None, "it holds no grids.steps"),
        ("analysis.json", "clouds", 1.5, "no whole number"),
        ("evaluation.json", "class_accuracy", {"a": 1}, "other classes than the run"),
        ("evaluation.json", "confusion", [[1]], "confusion has shape"),
        ("evaluation.json", "firing", [], "firing is no object"),
        ("energy.json", "layers", 3, "layers is no list"),
        ("energy.json", "layers", [{"name": "a"}], "no energy_mj_per_cloud"),
    ],
)
def test_damaged_files(
    run: Path, tmp_path: Path, name: str, where: str, value: Any, problem: str
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    content = json.loads((folder / name).read_text())
    damaged = copy.deepcopy(content) | {where: value}
    command = {"analysis": "analyse", "evaluation": "evaluate"}.get(name[:-5], "energy")
    for text, told in (
        (json.dumps(damaged), problem),
        (json.dumps({k: v for k, v in content.items() if k != where}), "it holds no"),
        (json.dumps(content)[:-9], "cannot be read as JSON"),
        ("[]", "expected a JSON object, found a list"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=told) as caught:
            run_report(folder, clouds=0)
        assert str(caught.value).startswith(str(folder / name))
        assert f"`e3dsnn {command} {folder}` writes it anew" in str(caught.value)
    assert not (folder / "report.html.tmp").exists()


def test_damaged_notes(bare: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(bare, folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "versions.json").write_text("{")
    with pytest.raises(ValueError, match=r"versions.json: cannot be read as JSON"):
        run_report(folder, clouds=0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Chromium without a screen, which draws WebGL in software."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(
            "no Chromium with chromedriver; on Debian and Ubuntu `apt-get install "
            "chromium chromium-driver` installs both"
        )
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(driver))
    yield chrome
    chrome.quit()


def open_page(browser: Chrome, path: Path, *, width: int) -> None:
    """Opens a page in a window of some width and waits until all figures are drawn."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "body[data-drawn]")
    )


@pytest.fixture
def opened(browser: Chrome, run: Path) -> Chrome:
    open_page(browser, run / "report.html", width=1400)
    return browser


def pixels(element: WebElement) -> np.ndarray:
    """What of an element is seen on the screen."""
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))


def plot_of(browser: Chrome, name: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, f"#{name} .plot")


def errors_of(browser: Chrome) -> list[str]:
    # SEVERE: exceptions, refused resources, `console.error`.
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


@pytest.mark.parametrize("width", [1400, 400])
def test_browser_draws_every_figure(browser: Chrome, run: Path, width: int):
    errors_of(browser)
    open_page(browser, run / "report.html", width=width)
    for name in sorted(FIGURES):
        plot = plot_of(browser, name)
        assert plot.size["width"] > 300, name
        (drawn, marks) = browser.execute_script(
            "const plot = arguments[0];"
            "return [plot.querySelectorAll('svg, canvas').length,"
            " plot.querySelectorAll('.trace path, .point path, .heatmaplayer image,"
            " .points path, canvas').length]",
            plot,
        )
        assert drawn > 0, name
        assert marks > 0, name
    assert errors_of(browser) == []
    # Nothing is wider than the window, and no hostile name has run.
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    assert browser.execute_script("return window.broken === undefined")
    # The page itself is all that was loaded.
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
        ".filter(name => !/^(data|blob):/.test(name))"
    )
    assert loaded == []


def test_browser_shows_hostile_names_as_they_are(opened: Chrome):
    labels = opened.execute_script(
        "return [...document.querySelectorAll('#confusion .ytick text')]"
        ".map(label => label.textContent)"
    )
    assert labels == [name if len(name) <= 24 else name[:23] + "…" for name in CLASSES]


@pytest.mark.parametrize("name", ["grid", "class_information_map"])
def test_slider_changes_the_heat_map(opened: Chrome, plots: dict[str, Any], name: str):
    slider = opened.find_element(By.CSS_SELECTOR, f"#{name} input")
    shown = opened.find_element(By.CSS_SELECTOR, f"#{name} output")
    plot = plot_of(opened, name)
    colours = lambda: opened.execute_script(
        "return arguments[0].querySelector('.heatmaplayer image').href.baseVal", plot
    )
    seen = {}
    for place in (2, 1, 0):
        assert slider.get_attribute("value") == str(place)
        assert shown.text == str(GRID_STEPS[place])
        z = opened.execute_script("return arguments[0].data[0].z", plot)
        assert z == plots[name]["choice"]["updates"][place]["z"][0]
        seen[place] = colours()
        slider.send_keys(Keys.ARROW_LEFT)
    assert len(set(seen.values())) == 3
    opened.find_element(By.CSS_SELECTOR, f"#{name} button[data-move='1']").click()
    assert shown.text == str(GRID_STEPS[1])
    assert colours() == seen[1]


def test_list_of_layers_changes_the_line(opened: Chrome, plots: dict[str, Any]):
    choice = Select(opened.find_element(By.CSS_SELECTOR, "#one_layer select"))
    line = opened.find_element(By.CSS_SELECTOR, "#one_layer .line")
    before = pixels(plot_of(opened, "one_layer"))
    choice.select_by_index(7)
    assert line.text == plots["one_layer"]["choice"]["captions"][7]
    y = opened.execute_script(
        "return arguments[0].data[3].y", plot_of(opened, "one_layer")
    )
    assert y == [row[7] for row in make_analysis()["against_final"]]
    assert (pixels(plot_of(opened, "one_layer")) != before).any()


def test_list_of_clouds_changes_the_cloud(opened: Chrome, plots: dict[str, Any]):
    choice = Select(opened.find_element(By.CSS_SELECTOR, "#cloud select"))
    names = [option.text for option in choice.options]
    assert names == [
        " ".join(name.split()) for name in plots["cloud"]["choice"]["names"]
    ]
    line = opened.find_element(By.CSS_SELECTOR, "#cloud .line")
    plot = plot_of(opened, "cloud")
    pictures = []
    for place in (0, len(names) - 1):
        choice.select_by_index(place)
        assert line.text == " ".join(
            plots["cloud"]["choice"]["captions"][place].split()
        )
        # WebGL draws in the next frame.
        opened.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )
        pictures.append(pixels(plot))
        ink = (pictures[-1].min(axis=2) < 250).mean()
        assert ink > 0.002, f"only {ink:.2%} of the view are not white"
    assert (pictures[0] != pictures[1]).any(axis=2).mean() > 0.002
