"""The house: what is shipped, how long functions are, and that trackers work."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

from tests import making


def test_a_wheel_holds_recipes_and_suites(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=making.ROOT, check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for kind in ("configs", "configs/archs", "eval/datasets", "eval/suites", "launch"):
        for path in (making.ROOT / kind).iterdir():
            if path.is_file():
                assert f"clipkit/shipped/{kind}/{path.name}" in names
    pages = {f"clipkit/serve/page/{path.name}" for path in (making.ROOT / "clipkit/serve/page").iterdir()}
    assert pages <= names and any(name.endswith(".html") for name in pages)
    assert "clipkit/py.typed" in names and not any(name.startswith("tests/") for name in names)


def test_no_function_is_over_60_lines_and_no_file_over_320() -> None:
    for path in (making.ROOT / "clipkit").rglob("*.py"):
        source = path.read_text()
        assert len(source.splitlines()) <= 320, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.name}"


def test_every_public_function_and_class_has_a_docstring() -> None:
    for path in (making.ROOT / "clipkit").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
                # a settings class is described by the text under each of its fields
                assert "settings" in decorators or ast.get_docstring(node), f"{path}:{node.name}"


def test_trackers_of_accelerate_get_every_row(tmp_path: Path) -> None:
    recipe = making.recipe(tmp_path, steps=3)
    done = making.clipkit("train", str(recipe), "log_with=[tensorboard]")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    unknown = making.clipkit("train", str(recipe), "log_with=[clearml]", f"run={tmp_path}/other")
    assert unknown.returncode == 2 and "log_with: a tracker of ['clearml'] is not installed" in unknown.stderr
