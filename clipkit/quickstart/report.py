"""The report of a quickstart: report.html, which needs nothing beside it, and report.png, the same to look at."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import images, shards, vectors
from clipkit.errors import UserError

Search = tuple[str, list[dict[str, Any]]]
SHOWN = 6
GOOD, BAD = "#1a7f37", "#b35900"
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; }
td:last-child { font-variant-numeric: tabular-nums; text-align: right; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; width: 8.5rem; } figure img { width: 100%; border-radius: .4rem; background: #fff; }
figcaption { font-size: .8rem; } .good { color: #2da44e; } .off { color: #d9822b; }
img.curve { width: 100%; background: #fff; border-radius: .4rem; }
"""


def write(
    out: Path, metrics: list[dict[str, Any]], scores: list[dict[str, Any]], folder: Path, searches: list[Search]
) -> Path:
    """Write both files into `out` from rows of metrics.jsonl and scores.jsonl, a vectors folder with captions, and
    (query, hits) of some searches; gives the path of report.html.

    Raises: UserError when matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the report is drawn by matplotlib; type: pip install 'clipkit[demo]'") from None
    matplotlib.use("Agg")
    found = captions_found(folder)
    curve = _curve(metrics, scores)
    _picture(metrics, scores, found, searches, out / "report.png")
    page = out / "report.html"
    page.write_text(_page(curve, scores, found, searches), encoding="utf-8")
    return page


def captions_found(folder: Path, shown: int = SHOWN) -> list[dict[str, Any]]:
    """For `shown` pictures spread over a vectors folder: {record, captions: the three nearest of all captions}."""
    image = np.concatenate(list(vectors.parts(folder, "img_emb"))).astype(np.float32)
    text = np.concatenate(list(vectors.parts(folder, "text_emb"))).astype(np.float32)
    records = vectors.records(folder).to_pylist()
    chosen = np.linspace(0, len(records) - 1, shown).astype(int)
    _, near = vectors.search(vectors.flat_index(text), image[chosen], 3)
    return [
        {"record": records[i], "captions": [records[j]["caption"] for j in row]}
        for i, row in zip(chosen.tolist(), near.tolist(), strict=True)
    ]


def _load(record: dict[str, Any]) -> Any:
    return images.thumbnail(shards.read_span(record["shard"], record["offset"], record["size"]), 192)


def _recall(scores: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """(steps, mean R@5) of the retrieval rows."""
    rows = [(row["step"], row["scores"]["mean_recall@5"]) for row in scores if row["kind"] == "retrieval"]
    return [step for step, _ in rows], [value for _, value in rows]


def _draw_curve(axis: Any, metrics: list[dict[str, Any]], scores: list[dict[str, Any]]) -> None:
    axis.plot([row["step"] for row in metrics], [row["loss"] for row in metrics], color="#0969da")
    axis.set_xlabel("step")
    axis.set_ylabel("training loss", color="#0969da")
    axis.set_ylim(bottom=0)
    right = axis.twinx()
    right.plot(*_recall(scores), "o-", color=GOOD)
    right.set_ylabel("held-out mean R@5", color=GOOD)
    right.set_ylim(0, 1)


def _curve(metrics: list[dict[str, Any]], scores: list[dict[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    _draw_curve(figure.subplots(), metrics, scores)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _picture(
    metrics: list[dict[str, Any]], scores: list[dict[str, Any]], found: list[dict[str, Any]],
    searches: list[Search], path: Path,
) -> None:  # fmt: skip
    from matplotlib.figure import Figure

    rows = 1 + len(searches)
    figure = Figure(figsize=(14, 3.4 + 2.7 * rows), layout="constrained")
    parts: Any = figure.subfigures(rows + 1, 1, height_ratios=[3.4] + [2.7] * rows)
    parts[0].suptitle("clipkit quickstart: training on OpenMoji, tested on combinations it never saw")
    _draw_curve(parts[0].subplots(), metrics, scores)
    parts[1].suptitle("held-out pictures, and the nearest of all held-out captions")
    for axis, item in zip(parts[1].subplots(1, len(found)), found, strict=True):
        right = item["captions"][0] == item["record"]["caption"]
        _show(axis, item["record"], item["captions"][0], GOOD if right else BAD)
    for part, (query, hits) in zip(parts[2:], searches, strict=True):
        part.suptitle(f"search: {query}")
        for axis, hit in zip(part.subplots(1, len(hits)), hits, strict=True):
            _show(axis, hit, f"{hit['score']:.2f}  {hit['caption']}", "black")
    figure.savefig(path, dpi=90)


def _show(axis: Any, record: dict[str, Any], text: str, color: str) -> None:
    import textwrap

    axis.imshow(np.asarray(_load(record)))
    axis.set_axis_off()
    axis.set_title(textwrap.fill(text, 26), fontsize=9, color=color)


def _page(curve: bytes, scores: list[dict[str, Any]], found: list[dict[str, Any]], searches: list[Search]) -> str:
    last = [row for row in scores if row["step"] == scores[-1]["step"]]
    table = "".join(
        f"<tr><td>{html.escape(row['task'])}<td>{html.escape(name)}<td>{value:.3f}"
        for row in last
        for name, value in row["scores"].items()
        if isinstance(value, float)
    )
    held_out = "".join(_found_figure(item) for item in found)
    asked = "".join(
        f"<h3>{html.escape(query)}</h3><div class=row>"
        + "".join(_figure(hit, f"{hit['score']:.3f} {html.escape(hit['caption'])}") for hit in hits)
        + "</div>"
        for query, hits in searches
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>clipkit quickstart</title><style>{STYLE}</style>"
        f"<h1>clipkit quickstart</h1><p>A small model, trained on OpenMoji and tested on combinations it never saw.</p>"
        f"<h2>Training</h2><img class=curve alt='loss and held-out recall by step' src='{_data(curve, 'png')}'>"
        f"<h2>Scores</h2><table><tr><th>data set<th>score<th>value{table}</table>"
        f"<h2>Held-out pictures and the captions they found</h2><div class=row>{held_out}</div>"
        f"<h2>Searches among the held-out pictures</h2>{asked}"
        "<p><small>Pictures: OpenMoji, CC BY-SA 4.0.</small></html>\n"
    )


def _found_figure(item: dict[str, Any]) -> str:
    own = item["record"]["caption"]
    lines = [
        f"<span class={'good' if text == own else 'off'}>{'✓' if text == own else '·'} {html.escape(text)}</span>"
        for text in item["captions"]
    ]
    return _figure(item["record"], "<br>".join(lines))


def _figure(record: dict[str, Any], caption: str) -> str:
    buffer = io.BytesIO()
    _load(record).save(buffer, "JPEG", quality=90)
    alt = html.escape(record["caption"], quote=True)
    return (
        f'<figure><img alt="{alt}" src="{_data(buffer.getvalue(), "jpeg")}"><figcaption>{caption}</figcaption></figure>'
    )


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
