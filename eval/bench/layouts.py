"""Evaluation sets in CLIP_benchmark's layout, made of the real pictures of clip art and of OpenMoji."""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATES = ("a picture of {c}.", "clip art: {c}", "{c}")
WORDS = 12  # labels of the multi-label set


@dataclass(frozen=True)
class Picture:
    """A picture's file, its caption, and its JSON."""

    data: bytes
    caption: str
    facts: dict[str, Any]


def pictures(pattern: Iterable[Path]) -> Iterator[Picture]:
    """All whole samples of some shards."""
    for path in pattern:
        with tarfile.open(path) as tar:
            members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
        for name in members:
            stem = name.removesuffix(".jpg")
            if stem != name:
                facts = json.loads(members.get(f"{stem}.json", b"{}"))
                yield Picture(members[name], members[f"{stem}.txt"].decode(), facts)


def write(
    root: Path,
    kind: str,
    samples: Iterable[dict[str, bytes]],
    classes: Iterable[str] = (),
    templates: Iterable[str] = TEMPLATES,
    shard: int = 200,
) -> Path:
    """A set at `root`: {suffix: bytes} of each sample, `shard` of them to a tar."""
    (root / "test").mkdir(parents=True)
    rows = list(samples)
    starts = range(0, len(rows), shard)
    for number, start in enumerate(starts):
        with tarfile.open(root / f"test/{number}.tar", "w") as tar:
            for i, members in enumerate(rows[start : start + shard], start):
                for suffix, data in members.items():
                    entry = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    (root / "test/nshards.txt").write_text(str(len(starts)))
    if kind != "classification":
        (root / "dataset_type.txt").write_text(kind)
    if classes := list(classes):
        (root / "classnames.txt").write_text("\n".join(classes))
        (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    return root


def classification(root: Path, shown: Iterable[tuple[Picture, str]], templates: Iterable[str] = TEMPLATES) -> Path:
    """Of (picture, its class)."""
    pairs = list(shown)
    classes = sorted({name for _, name in pairs})
    samples = ({"jpg": one.data, "cls": str(classes.index(name)).encode()} for one, name in pairs)
    return write(root, "classification", samples, classes, templates)


def multilabel(root: Path, shown: Iterable[Picture]) -> Path:
    """Which of the most frequent words a picture's caption holds."""
    rows = [(one, set(re.findall(r"[a-z]{4,}", one.caption.lower()))) for one in shown]
    words = [word for word, _ in Counter(word for _, held in rows for word in sorted(held)).most_common(WORDS)]

    def members(one: Picture, held: set[str]) -> dict[str, bytes]:
        file = io.BytesIO()
        np.save(file, np.array([word in held for word in words], np.int64))
        return {"jpg": one.data, "npy": file.getvalue()}

    return write(root, "multilabel", (members(*row) for row in rows), words)


def retrieval(root: Path, shown: Iterable[Picture]) -> Path:
    """Each picture with its caption, and two more of the words in it where it has several: 1 to 3 captions.

    None occurs twice as a tokenizer sees it, since of equal similarities CLIP_benchmark counts any as the nearer: a
    caption that an earlier picture has is told apart by a number.
    """
    seen: set[str] = set()

    def captions(number: int, one: Picture) -> list[str]:
        words = one.caption.replace(",", " ").split()
        found = [one.caption, *([words[0], " ".join(reversed(words))] if len(words) > 1 else [])]
        own = []
        for text in found:
            if (tokens := " ".join(text.lower().split())) not in seen:
                seen.add(tokens)
                own.append(text)
        return own or [f"{one.caption}, number {number}"]

    samples = ({"jpg": one.data, "txt": "\n".join(captions(i, one)).encode()} for i, one in enumerate(shown))
    return write(root, "retrieval", samples)
