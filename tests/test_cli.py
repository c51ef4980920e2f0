"""The command line from shards to search, and what it says to bad input: one line, exit code 2, nothing overwritten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit import errors
from clipkit.cli import show
from tests import making, samples
from tests.conftest import Typed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a few steps, pictures as files, vectors and an index."""
    folder = tmp_path_factory.mktemp("trained")
    assert making.clipkit("train", str(making.recipe(folder, steps=3))).returncode == 0
    (folder / "pictures").mkdir()
    for number in range(3):
        jpg, caption = making.picture(number)
        (folder / f"pictures/{number}.jpg").write_bytes(jpg)
        (folder / f"pictures/{number}.txt").write_text(caption)
    for command in (
        ("embed", "run", "data", "--out", "vectors"),
        ("index", "vectors", "--out", "index"),
    ):
        done = making.clipkit(*command, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def at(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_help_lists_every_command_without_loading_torch() -> None:
    code = "import sys, clipkit.cli as c; sys.argv=['clipkit','--help']\ntry: c.main()\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules or 'rich' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in ("quickstart", "train", "eval", "report", "classify", "embed", "index", "search", "data"):
        assert f"\n  {command} " in done.stdout
    assert done.stdout.endswith("False\n")


def test_vectors_lie_as_clip_retrieval_writes_them(at: Path) -> None:
    import pyarrow.parquet as pq

    image = np.load("vectors/img_emb/img_emb_000000.npy")
    text = np.load("vectors/text_emb/text_emb_000000.npy")
    table = pq.read_table("vectors/metadata/metadata_000000.parquet").to_pylist()
    assert image.dtype == text.dtype == np.float16 and image.shape == text.shape == (50, 16)
    assert len(table) == 50 and {"image_path", "caption"} <= table[0].keys()
    model = clipkit.load("run")
    from clipkit.models import embed_texts

    wanted = embed_texts(model, [row["caption"] for row in table]).numpy()
    np.testing.assert_allclose(text.astype(np.float32), wanted, atol=1e-3)


def test_search_by_text_and_by_picture_finds_what_exact_arithmetic_finds(at: Path, typed: Typed) -> None:
    code, out, _ = typed("search", "index", "a red square", "--json", "-k", "4")
    hits = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(hits) == 4
    from clipkit.models import embed_texts

    rows = np.load("vectors/img_emb/img_emb_000000.npy").astype(np.float32)
    scores = rows @ embed_texts(clipkit.load("run"), ["a red square"]).numpy()[0]
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.tolist(), reverse=True)[:4], abs=1e-5)
    found = clipkit.open_index("index").search(image="pictures/1.jpg", k=2)
    assert found[0].score == pytest.approx(1, abs=1e-3)
    assert found[0].image() == making.picture(int(found[0].key))[0]


def test_tables_go_to_pipes_as_tabs(at: Path, typed: Typed) -> None:
    code, out, _ = typed("search", "index", "a dot", "-k", "2")
    assert code == 0 and out.splitlines()[0] == "rank\tscore\tkey\tcaption\twhere" and len(out.splitlines()) == 3


def test_a_folder_of_pictures_is_a_source(at: Path, tmp_path: Path, typed: Typed) -> None:
    out = tmp_path / "own"
    assert typed("embed", "run", "pictures", "--out", str(out))[0] == 0
    assert typed("index", str(out), "--out", str(tmp_path / "own_index"))[0] == 0
    code, lines, _ = typed("search", str(tmp_path / "own_index"), "--image", "pictures/2.jpg", "--json", "-k", "9")
    hits = [json.loads(line) for line in lines.splitlines()]
    assert code == 0 and len(hits) == 3 and hits[0]["key"] == "2" and hits[0]["caption"] == making.picture(2)[1]


def test_classify_gives_probabilities_of_your_words(at: Path, tmp_path: Path, typed: Typed) -> None:
    (tmp_path / "names.txt").write_text("red square\nblue dot\n\n")
    code, out, _ = typed("classify", "run", "pictures", "--classes", str(tmp_path / "names.txt"), "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [Path(row["image"]).name for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]
    for row in rows:
        assert sum(row["scores"].values()) == pytest.approx(1) and set(row["scores"]) == {"red square", "blue dot"}


def test_eval_prints_scores_and_appends_them(at: Path, tmp_path: Path, typed: Typed) -> None:
    suite, out = making.suite(tmp_path, at / "data"), tmp_path / "scores.jsonl"
    code, printed, _ = typed("eval", "run", suite, "--json", "--out", str(out))
    assert code == 0 and out.read_text() == printed
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["task"] for row in rows] == ["pairs", "colours"]
    assert rows[0]["facts"]["captions"] == 100 and rows[1]["facts"]["images"] == 50


def test_settings_are_listed_with_their_help(typed: Typed) -> None:
    code, out, _ = typed("train", "--settings")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and ["optim.lr", "float > 0", "0.0005", "Peak learning rate."] in rows
    assert all(len(row) == 4 and row[3] for row in rows), "every setting has a help line"


def test_a_second_training_into_the_folder_is_refused_and_leaves_the_first_its_lock(at: Path) -> None:
    from filelock import FileLock

    (at / "busy").mkdir()
    with FileLock(at / "busy/.lock"):
        done = making.clipkit("train", "recipe.yaml", "run=busy", cwd=at)
        assert done.returncode == 2 and "busy: another process is training into it" in done.stderr
        assert (at / "busy/.lock").exists()


def test_a_finished_run_says_so_and_does_nothing(at: Path) -> None:
    before = (at / "run/metrics.jsonl").read_bytes()
    done = making.clipkit("train", "recipe.yaml", "steps=3", cwd=at)
    assert done.returncode == 0 and "nothing is left to do" in done.stderr, done.stderr
    assert (at / "run/metrics.jsonl").read_bytes() == before


NEW = ("train", "recipe.yaml", "run=new")
BAD = {
    "missing shards": ((*NEW, "data.train=none/{00..03}.tar"), "4 of 4 shards are not there"),
    "empty folder": ((*NEW, "data.train=."), "no .tar shards in this folder"),
    "caption key": ((*NEW, "data.caption=json:title"), "the .json files have captions, colour, number"),
    "caption member": ((*NEW, "data.train=bare"), "the members that are there: jpg"),
    "typo": ((*NEW, "optim.warmpu=3"), "optim.warmpu: unknown key; did you mean 'warmup'?"),
    "recipe": (("train", "no_recipe"), "no_recipe: no such file"),
    "no steps": ((*NEW, "steps=null"), "exactly one is needed"),
    "dashes": ((*NEW, "optim.lr"), "an override is written key=value"),
    "objective": ((*NEW, "objective=sofmax"), "no objective 'sofmax'; one of sigmoid, softmax"),
    "objective field": ((*NEW, "objective={name: softmax, label_smothing: 0.1}"), "did you mean 'label_smoothing'?"),
    "suite": ((*NEW, "eval.suite=openmojo"), "did you mean 'openmoji"),
    "suite data": ((*NEW, "eval.suite=openmoji"), "openmoji/test"),
    "other settings": (("train", "recipe.yaml", "optim.lr=2e-3"), "optim.lr: 0.001 there, 0.002 now"),
    "not a run": (("train", "recipe.yaml", "run=pictures"), "pictures: exists and is not a clipkit run"),
    "run is a file": (("train", "recipe.yaml", "run=recipe.yaml"), "recipe.yaml: is a file"),
    "tracker": ((*NEW, "log_with=[tensorbord]"), "log_with: "),
    "batch norm": ((*NEW, "chunk=2", "model.arch=RN50"), "model.arch=RN50: normalises over the batch"),
    "long classes": (("classify", "run", "nothing.jpg", "--classes", "a," * 300), "nothing.jpg: no such file"),
    "empty classes": (("classify", "run", "pictures", "--classes", " , "), "classes: at least one name is needed"),
    "no picture": (("classify", "run", "nothing.jpg", "--classes", "a,b"), "nothing.jpg: no such file"),
    "template": (("classify", "run", "pictures", "--classes", "a,b", "--template", "photo"), "{c} must stand"),
    "no index": (("search", "vectors", "a dot"), "vectors: holds no index.json; `clipkit index"),
    "no folder": (("search", "nowhere", "a dot"), "nowhere: no such folder"),
    "no query": (("search", "index"), "words, a picture or a key to search by are needed"),
    "not vectors": (("index", "data", "--out", "new"), "data: neither img_emb/ nor text_emb/ holds a .npy"),
    "vectors exist": (("embed", "run", "data", "--out", "vectors"), "vectors: already exists and is left as it is"),
    "index exists": (("index", "vectors", "--out", "index"), "index: already exists and is left as it is"),
    "no model": (("embed", "runs/none", "data", "--out", "new"), "no such run or checkpoint folder"),
    "no source": (("embed", "run", "nothing", "--out", "new"), "nothing: no such file or folder"),
    "emoji exist": (("data", "openmoji", "data"), "data"),
}


@pytest.fixture
def bad(at: Path) -> Path:
    """The trained folder with broken things added."""
    (at / "bare").mkdir(exist_ok=True)
    samples.write_tar(at / "bare/0.tar", [("a.jpg", making.picture(1)[0])])
    (at / "broken.jpg").write_bytes(making.picture(1)[0][:300])
    return at


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_overwritten(bad: Path, typed: Typed, case: str) -> None:
    arguments, message = BAD[case]
    before = {path: path.read_bytes() for path in bad.rglob("*") if path.is_file()}
    code, out, err = typed(*arguments)
    assert code == 2, err
    assert message in err and "Traceback" not in err and err.startswith("clipkit: "), err
    assert not out
    assert before == {path: path.read_bytes() for path in before}
    assert not (bad / "new").exists()


def test_a_picture_that_is_none_costs_no_memory(at: Path, tmp_path: Path, typed: Typed) -> None:
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thin.png")
    code, _, err = typed("classify", "run", str(tmp_path / "thin.png"), "--classes", "a,b")
    assert code == 3 and "thin.png: too" in err


def test_captions_reach_a_table_without_markup_or_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("[/INST] [bold]x", "a\tb\n\x1b]0;title\x07")]
    show.table(("one", "two"), rows)
    assert capsys.readouterr().out == "one\ttwo\n[/INST] [bold]x\ta b  ]0;title \n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    show.table(("one", "two"), rows)
    drawn = capsys.readouterr().out
    assert "[/INST] [bold]x" in drawn and "\x1b]" not in drawn


def test_an_error_of_one_rank_alone_is_printed_by_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "5")

    def fail(error: errors.ClipkitError) -> None:
        raise error

    for error, said in (
        (errors.UserError("all ranks"), ""),
        (
            errors.from_worker(errors.UserError("Caught UserError in worker\nUserError: mine")),
            "clipkit (rank 5): mine\n",
        ),
    ):
        with pytest.raises(SystemExit):
            errors.guard(fail, error)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("end", ["guard", "program"])
@pytest.mark.parametrize("world", ["1", "2"])
@pytest.mark.parametrize(
    ("how", "code"), [("print('done')", 0), ("raise SystemExit(7)", 7), ("raise Stopped('x')", 75)]
)
def test_a_process_ends_when_its_threads_have_and_what_is_to_be_called_was(
    end: str, world: str, how: str, code: int
) -> None:
    work = (
        "import atexit, sys, threading, time\nfrom clipkit import errors\nfrom clipkit.errors import Stopped\n"
        "def later():\n  time.sleep(0.2)\n  print('later')\n"
        "def work():\n  atexit.register(print, 'called')\n  threading.Thread(target=later).start()\n"
        f"  {how}\nerrors.{end}(work)"
    )
    done = subprocess.run(
        [sys.executable, "-c", work], env={**os.environ, "WORLD_SIZE": world}, capture_output=True, text=True
    )
    assert done.returncode == code and done.stdout.splitlines()[-2:] == ["later", "called"], done


def test_what_cannot_be_printed_is_told_and_what_nobody_reads_is_not() -> None:
    command = f"{sys.executable} -m clipkit --version"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True)
    assert (full.returncode, full.stderr) == (5, "clipkit: storage: No space left on device\n")
    closed = subprocess.run(f"{command} | (exec 0<&-; sleep 2)", shell=True, capture_output=True)
    assert closed.stderr == b""
