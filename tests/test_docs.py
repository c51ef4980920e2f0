"""README and docs say what is: quoted commands run, the settings page is the code's, the example objective works."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib import request

import pytest
import typer

from clipkit import cli, config, objectives
from clipkit.train import Settings
from tests import making, warm
from tests.objectives import test_exact

BINARIES = Path(sys.executable).parent


def commands(page: str) -> list[str]:
    """The lines of the shell blocks of a page at the top of the repository."""
    blocks = re.findall(r"```bash\n(.*?)```", (making.ROOT / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def shell(command: str, folder: Path, first: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line; programs are looked for in `first`, or where `clipkit` needs no imports."""
    env = making.environment(PATH=os.pathsep.join(map(str, (first or warm.folder(), BINARIES, os.environ["PATH"]))))
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)


def served(command: str, folder: Path) -> None:
    """Start a server, ask it what a page would ask, and stop it as Ctrl-C does."""
    env = making.environment(PATH=f"{BINARIES}{os.pathsep}{os.environ['PATH']}")
    with (folder / "served.log").open("w+") as told:
        words = [*shlex.split(command), "--port", "0"]
        server = subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=told, text=True)
        assert server.stdout
        with server.stdout:
            address = re.search(r"http://[\d.:]+", server.stdout.readline())  # told when it listens
            try:
                assert address, (folder / "served.log").read_text()
                query = json.dumps({"text": "a dot", "k": 2}).encode()
                asked = request.Request(f"{address[0]}/api/search", query, {"Content-Type": "application/json"})
                with request.urlopen(asked, timeout=60) as answer:
                    assert len(json.load(answer)["hits"]) == 2
            finally:
                server.send_signal(signal.SIGINT)
                code = server.wait(timeout=60)
    assert code == 0 and "Traceback" not in (folder / "served.log").read_text()


def shortened(command: str) -> str:
    """The command with so few steps that a test can wait for it; nothing else is changed."""
    return f"{command} steps=2 data.batch=16" if re.search(r"clipkit[ .]train \w+ run=", command) else command


def photos(place: Path) -> None:
    """Pictures with captions beside them, as a reader has them."""
    (place / "photos").mkdir()
    for number in range(3):
        picture, caption = making.picture(number)
        (place / f"photos/{number}.jpg").write_bytes(picture)
        (place / f"photos/{number}.txt").write_text(caption)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as README's reader has it after `make quickstart`, with pictures of their own."""
    place = tmp_path_factory.mktemp("reader")
    photos(place)
    done = shell("clipkit quickstart --steps 2", place, BINARIES)
    assert done.returncode == 0, done.stderr
    assert "report: quickstart/report.html" in done.stdout
    return place


def test_the_quickstart_leaves_a_report_that_needs_nothing_beside_it(folder: Path) -> None:
    page = (folder / "quickstart/report.html").read_text()
    assert (folder / "quickstart/report.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<figure>") == 6 + 3 * 6 and "mean_recall@5" in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page), "no outside request"


def test_every_command_of_readme_runs(folder: Path) -> None:
    ran = 0
    for command in commands("README.md"):
        if command.startswith("make "):
            # what make would do is what CI and this test do; here only that the target is there
            assert shell(f"make --dry-run {command.split()[1]}", making.ROOT).returncode == 0, command
            continue
        ran += 1
        if command.startswith("clipkit serve "):
            served(command, folder)
            continue
        done = shell(shortened(command), folder)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert ran >= 15
    # ten minutes and more of training: its parts are tested in tests/bench, here that it starts
    assert "python eval/bench/quality.py" in (making.ROOT / "README.md").read_text()
    assert shell("python eval/bench/quality.py --help", making.ROOT).returncode == 0


def test_every_command_of_the_data_page_runs(tmp_path: Path) -> None:
    photos(tmp_path)
    for command in commands("docs/data.md"):
        done = shell(command, tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


def test_every_command_of_the_search_page_runs(folder: Path) -> None:
    for command in commands("docs/search.md"):
        done = shell(command, folder)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/cluster.md"])
def test_trainings_that_need_a_cluster_are_spelt_right(page: str) -> None:
    """What README and docs quote without running it: the files are there, recipes and settings are valid."""
    text = (making.ROOT / page).read_text()
    quoted = [
        line.strip() for line in text.splitlines() if re.match(r" {4,6}(clipkit|accelerate|sbatch|ACCELERATE)", line)
    ]
    assert quoted and all((making.ROOT / name).exists() for name in re.findall(r"\blaunch/[\w.]+\w", text))
    trained = 0
    for command in quoted:
        words = shlex.split(command)
        recipes = [i for i, word in enumerate(words) if (making.ROOT / f"configs/{word}.yaml").exists()]
        if recipes and ("train" in words or "clipkit.train" in words or words[0] == "sbatch"):
            config.load(Settings, making.ROOT / f"configs/{words[recipes[0]]}.yaml", words[recipes[0] + 1 :])
            trained += 1
    assert trained >= 3


PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((making.ROOT / "docs").glob("*.md"))))


@pytest.mark.parametrize("page", PAGES)
def test_quoted_commands_have_the_arguments_that_the_program_takes(page: str) -> None:
    """Also of those that need what no test has: parsed as the program would, and not run."""
    program = typer.main.get_command(cli.app)
    lines = re.findall(
        r"^(?: {4,6})?((?:\w+=\S+ )*(?:clipkit|accelerate|sbatch) .*)$", (making.ROOT / page).read_text(), re.M
    )
    for words in (shlex.split(line, comments=True) for line in lines if " ..." not in line):
        start = next((i for i, word in enumerate(words) if re.fullmatch(r"clipkit(\.\w+)?", word)), None)
        if start is None:
            continue
        name, *arguments = [words[start].partition(".")[2].replace("evaluate", "eval"), *words[start + 1 :]]
        name, arguments = (name, arguments) if name else (arguments[0], arguments[1:])
        command = program.commands[name]
        while hasattr(command, "commands"):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(name, list(arguments))


def test_the_mixture_of_the_data_page_is_valid(tmp_path: Path) -> None:
    (page,) = re.findall(r"```yaml\n(.*?)```", (making.ROOT / "docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "r.yaml").write_text(f"run: r\nmodel: {{arch: tiny}}\nsteps: 1\n{page}")
    sources = config.load(Settings, tmp_path / "r.yaml").data.sources
    assert [one.weight for one in sources.values()] == [3, 1] and sources["mine"].caption is not None


def test_the_recipe_of_readme_is_valid(tmp_path: Path) -> None:
    (page,) = re.findall(r"```yaml\n(.*?)```", (making.ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "r.yaml").write_text(page)
    assert config.load(Settings, tmp_path / "r.yaml").epochs == 10


def test_the_python_of_readme_runs(folder: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (making.ROOT / "README.md").read_text(), re.DOTALL)
    done = shell(f"{shlex.quote(sys.executable)} -c {shlex.quote(source)}", folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_objective_of_the_docs_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = re.findall(r"```python\n(.*?)```", (making.ROOT / "docs/extending.md").read_text(), re.DOTALL)[0]
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab/margin.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert objectives.parse("mylab.margin") == {
        "name": "mylab.margin",
        "margin": 0.2,
        "scale_init": 10.0,
        "bias_init": None,
    }
    test_exact.test_chunks_on_one_rank_equal_a_plain_pass("mylab.margin", 5, False)


def test_evaluations_of_the_docs_are_valid(tmp_path: Path) -> None:
    from clipkit import evals

    making.shards(tmp_path / "data/mine/test", (4,))
    pages = re.findall(r"```yaml\n(.*?)```", (making.ROOT / "docs/extending.md").read_text(), re.DOTALL)
    for number, page in enumerate(pages):
        (tmp_path / f"{number}.yaml").write_text(page)
        assert len(evals.suite(str(tmp_path / f"{number}.yaml"), tmp_path)) == 1
    assert len(pages) == 2


def settings_page() -> str:
    """docs/settings.md, from the code."""
    head = "# Settings of a training run\n\nFrom the code: `clipkit train --settings` prints the same.\n\n"
    rows = [("setting", "type", "default", "meaning"), ("---",) * 4]
    rows += [(f"`{key}`", kind, default, text) for key, kind, default, text in config.describe(Settings)]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_settings_page_is_the_code_s() -> None:
    assert (making.ROOT / "docs/settings.md").read_text() == settings_page(), "type: make docs"


def test_every_setting_is_read_somewhere() -> None:
    source = "".join(path.read_text() for path in (making.ROOT / "clipkit").rglob("*.py"))
    for key, *_ in config.describe(Settings):
        name = key.rpartition(".")[2]
        assert re.search(rf"\b(cfg|settings|s|one|stage|eval|optim|data|self\.settings)\.{name}\b", source), (
            f"{key} is never read"
        )


def test_shipped_recipes_and_suites_load() -> None:
    for path in sorted((making.ROOT / "configs").glob("*.yaml")):
        assert config.load(Settings, path).model.arch


if __name__ == "__main__":
    sys.stdout.write(settings_page())
