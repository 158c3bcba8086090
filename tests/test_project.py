"""What holds for the project as a whole: files, commands, layout, documentation."""

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("e3dsnn_jax", "svcca_jax", "experiments")
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def test_jax_is_not_the_release_that_miscompiles():
    assert version("jax") != "0.10.2"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (jax,) = (item for item in project["dependencies"] if item.startswith("jax>"))
    assert "!=0.10.2" in jax


def test_licence_and_citation():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    citation = (ROOT / "CITATION.cff").read_text()
    for title in (
        "Efficient 3D Recognition with Event-driven Spike Sparse Convolution",
        "Singular Vector Canonical Correlation Analysis",
    ):
        assert title in citation
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}\n" in citation


def make_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {line.split(":")[0] for line in lines if re.match(r"[a-z]+:(?!=)", line)}


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    asked = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code_of(readme))))
    assert {"quickstart", "test"} <= asked
    assert asked <= make_targets()
    modules = set(re.findall(r"python -m (experiments[\w.]*)", readme))
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), (
            f"README runs {module}, which does not exist"
        )


def code_of(markdown: str) -> Iterator[str]:
    """The fenced blocks and inline code of a page."""
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    yield from fenced.findall(markdown)
    yield from re.findall(r"`[^`\n]+`", fenced.sub("", markdown))


def test_makefile_names_its_targets_in_help():
    help_text = (ROOT / "Makefile").read_text().split("quickstart:")[0]
    for target in make_targets() - {"help"}:
        assert f'"make {target} ' in help_text


def test_ci_runs_every_check(tmp_path):
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    # A make that only reports how it was called stands in for the real one.
    fake = tmp_path / "make"
    fake.write_text('#!/bin/sh\necho "$PWD: make $*"\nexit 3\n')
    fake.chmod(0o755)
    # And a browser that is there, so that none is installed.
    (tmp_path / "chromedriver").write_text("#!/bin/sh\n")
    (tmp_path / "chromedriver").chmod(0o755)
    done = subprocess.run(
        ["bash", script],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{ROOT}: make test\n"
    assert done.returncode == 3


def test_make_explains_a_missing_python(tmp_path):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(
        ["make", "PYTHON=no-such-python", "lint"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert "no-such-python" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_layout(path):
    assert path.stem not in {"utils", "common", "helpers", "misc", "core"}
    lines = len(path.read_text().splitlines())
    assert lines <= 500, f"{path} has {lines} lines: one concept a file"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_public_functions_are_documented_and_annotated(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    problems = []
    for function, qualified in public_functions(tree):
        if ast.get_docstring(function) is None:
            problems.append(f"{qualified} has no docstring")
        if path.name != "spconv_peer.py" and not is_annotated(function):
            problems.append(f"{qualified} is not fully annotated")
    assert not problems, f"{path}: {problems}"


def public_functions(
    tree: ast.Module,
) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, str]]:
    """Public classes, functions and methods, but for magic methods and Protocols."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, node.name
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node, node.name
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                    yield method, f"{node.name}.{method.name}"


def is_annotated(node: ast.FunctionDef | ast.ClassDef) -> bool:
    if isinstance(node, ast.ClassDef):
        return True
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    bare = [a.arg for a in arguments if a.annotation is None and a.arg != "self"]
    return not bare and node.returns is not None
