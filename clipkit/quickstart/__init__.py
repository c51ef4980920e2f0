"""`clipkit quickstart`: the whole path on real data, as the commands that a user would type, and a report."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError, UserError
from clipkit.log import duration, say
from clipkit.quickstart import gallery
from clipkit.shards import read_span

MARK = "quickstart.json"
QUERIES = ("firefighter with dark skin", "mermaid with light skin")


def run(out: Path, steps: int | None = None) -> Path:
    """Make data, train, evaluate, index, search; gives the path of report.html. A second call goes on where one ended.

    Raises: UserError when `out` holds something else, or what the failing command raised.
    """
    _take_folder(out)
    began = time.monotonic()
    data, model = out / "data" / "openmoji", out / "run"
    if not data.exists():
        _clipkit("data", "openmoji", str(data))
    more = [] if steps is None else [f"steps={steps}"]
    _clipkit("train", "openmoji", f"run={model}", f"data.train={data}/train", f"eval.root={out}", *more)
    scores = _fresh(out, "scores").with_name("scores.jsonl")
    scores.unlink(missing_ok=True)
    _clipkit("eval", str(model), "openmoji", "--root", str(out), "--out", str(scores))
    vectors, index = _fresh(out, "vectors"), _fresh(out, "index")
    _clipkit("embed", str(model), f"{data}/test", "--out", str(vectors))
    _clipkit("index", str(vectors), "--out", str(index))
    searches = [(words, _search(index, words)) for words in QUERIES]
    picture = _picture(out, searches[0][1][0])
    searches.append((f"the picture {picture}", _search(index, "--image", str(picture))))

    shown = gallery.write(out / "gallery.json", vectors, searches)
    page = out / "report.html"
    _clipkit("report", str(model), str(scores), "--gallery", str(shown), "--out", str(page))
    say(f"done in {duration(time.monotonic() - began)}; to search by hand, type: clipkit serve {index}")
    return page


def _take_folder(out: Path) -> None:
    """Mark `out` as ours, so that a later call may replace what it made.

    Raises: UserError when `out` holds something else.
    """
    if out.exists() and not (out.is_dir() and ((out / MARK).is_file() or not any(out.iterdir()))):
        raise UserError(f"{out}: exists and is not of an earlier quickstart; give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).write_text(json.dumps({"made by": "clipkit quickstart"}))


def _fresh(out: Path, name: str) -> Path:
    """The folder of that name without what an earlier call put there."""
    shutil.rmtree(out / name, ignore_errors=True)
    return out / name


def _clipkit(*arguments: str, capture: bool = False) -> str:
    """Run a clipkit command, shown as one would type it; gives its stdout when `capture`.

    Raises: ClipkitError with the exit code of the command when it fails; its own message stands above.
    """
    shown = " ".join(f'"{part}"' if " " in part else part for part in arguments)
    say(f"\n$ clipkit {shown}")
    command = [sys.executable, "-m", "clipkit", *arguments]
    sys.stdout.flush()  # what it prints comes after what we have
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode:
        error = ClipkitError(f"quickstart stopped: `clipkit {shown}` ended with exit code {done.returncode}")
        error.exit_code = done.returncode
        raise error
    return done.stdout or ""


def _search(index: Path, *query: str) -> list[dict[str, Any]]:
    lines = _clipkit("search", str(index), *query, "-k", "6", "--json", capture=True).splitlines()
    hits = [json.loads(line) for line in lines]
    for hit in hits[:3]:
        print(f"  {hit['score']:.3f}  {hit['caption']}")
    return hits


def _picture(out: Path, hit: dict[str, Any]) -> Path:
    """The picture of a hit as a file, to search by."""
    path = out / "query.jpg"
    path.write_bytes(read_span(hit["shard"], hit["offset"], hit["size"]))
    return path
