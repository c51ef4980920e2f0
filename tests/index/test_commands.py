"""`clipkit index` with --add, --remove, --compact, --merge and --to, as it is typed."""

import json
import shutil
from pathlib import Path

import pytest

from clipkit import cli
from clipkit.cli.index import index
from clipkit.errors import UserError
from clipkit.vectors import Stored
from tests.vectors import laying


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function of the words of a command that gives (exit code, stdout, stderr); vectors a, b and an index i of a."""
    monkeypatch.chdir(tmp_path)

    def work(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["clipkit", "index", *words])
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    laying.ours(tmp_path / "a")
    laying.ours(tmp_path / "b", seed=1, first=50)
    assert work("a", "--out", "i")[0] == 0
    return work


def test_an_index_grows_shrinks_and_is_merged(run, tmp_path: Path) -> None:
    code, out, _ = run("b", "--add", "i")
    assert code == 0 and "i: 100 rows, image.index Flat" in out
    Path("keys").write_text("k1\nk2\nnone\n")
    code, out, err = run("i", "--remove", "keys", "--remove", "k99")
    assert (code, out) == (0, "i: 3 rows are removed now, 3 in all; unknown keys: 1\n")
    assert "i: 1 of 4 keys are not there: none" in err
    assert json.loads(run("i", "--remove", "k3", "--json")[1]) == {"removed": 1, "all": 4, "unknown": 0}
    code, out, err = run("i", "--compact", "--recall", "0.9")
    assert code == 0 and "i: 96 rows" in out and "i: 4 removed rows are gone, the others have new numbers" in err
    assert Stored("i").about["asked"]["recall"] == 0.9
    run("b", "--out", "j")
    code, out, _ = run("i", "j", "--merge", "--out", "all", "--json")
    assert code == 0 and json.loads(out)["rows"] == 146


def test_what_could_not_be_measured_is_shown_as_that(run, tmp_path: Path) -> None:
    shutil.rmtree("a")
    code, out, err = run("b", "--add", "i")
    assert code == 0 and "recall not measured" in out and "is not measured" in err


def test_vectors_are_written_to_a_database(run, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    code, out, _ = run("a", "--to", "lancedb:db/t")
    assert code == 0 and out.startswith("a: 50 rows are written\nlancedb: open_table('t').search(VECTOR")
    assert lancedb.connect("db").open_table("t").count_rows() == 50
    code, out, _ = run("a", "--to", "lancedb:db/t", "--json")
    assert code == 0 and json.loads(out)["rows"] == 50


@pytest.mark.parametrize(
    "words, message",
    [
        (("i", "--compact", "--add", "i"), "--add and --compact: one of them at a time"),
        (("i", "j", "--compact"), "--compact: one index is needed, and no --out: `clipkit index INDEX --compact`"),
        (
            ("a", "--add", "i", "--out", "j"),
            "--add: one vectors folder is needed, and no --out: `clipkit index VECTORS ",
        ),
        (("i", "j", "--merge"), "--out: a folder to write is needed: `clipkit index INDEX INDEX --merge --out INDEX`"),
        (
            ("b", "--add", "i", "--recall", "0.9"),
            "--add: --recall changes nothing here: `clipkit index VECTORS --add INDEX`",
        ),
        (
            ("i", "--retune", "--memory", "2G"),
            "--retune: --memory changes nothing here; it takes --recall, --k, --queries: `clipkit index INDEX --retune",
        ),
        (("a", "--add", "none"), "none: no such folder; `clipkit index VECTORS --out INDEX` makes one"),
    ],
)
def test_what_makes_no_sense_is_refused(run, words: tuple[str, ...], message: str) -> None:
    code, _, err = run(*words)
    assert code == 2 and err.startswith(f"clipkit: {message}"), err


@pytest.mark.parametrize("what", [{"add": "i"}, {"remove": ["k1"]}, {"merge": True, "out": "k"}, {"to": "lancedb:d/t"}])
def test_what_one_process_does_is_refused_to_several(run, what: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    flag = f"--{next(iter(what))}"
    with pytest.raises(UserError) as error:
        index(["b"], **what)
    assert str(error.value).startswith(f"{flag}: one process does it; type `clipkit index ")
    assert str(error.value).endswith("without `accelerate launch`") and len(Stored("i")) == 50
