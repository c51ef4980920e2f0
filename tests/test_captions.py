"""Token ids equal the wrapped tokenizer's, however often they are cached, cut or sent to another process."""

import pickle
import random
import string
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit import captions
from clipkit.captions import FolderEncode, Tokenizer, WordEncode, clip_encode
from clipkit.models.create import _tokenizer
from tests.samples import CLIPART, needs_clipart, spell, toy_tokenizer

TEXTS = [
    "a photo of a cat",
    "",
    "Ein Bär & ein &amp; Käse – «zitiert»",
    "日本語の文章 🙂🙂",
    "UPPER  case\n and\tspaces ",
    "!!! 0 !",
    "word " * 200,
    "x" * 3000,
    "  I'VE seen THEY'LL, it's we're he'd don't I'm\u00a0'S ",
    "fish &amp;amp; chips & peas &lt;b&gt; &notanentity; &ampfoo &#x41; &#1; R&D",
    "<start_of_text>a <END_OF_TEXT>, x<end_of_text>y <end_of_text",
    "12345 3.14 1,000 \u00bd \u2167 \u0663 2\u2079",
    "\x1b[31mred\x1b[0m \x00\x07\x0b\x0c\x1c\x1d\x1e\x1f\x7f\x85 end\r\n\r",
    "a\x1cb\x0bc\x85d\u2028e\u3000f\u200bg\ufeffh",
    "e\u0301 \ufb01sh \uff26ull \u017ftart \u212aelvin \u0130 \u03a3\u0391\u03a3 \u03a3 \u1e9e",
    "sch\u00c3\u00b6n \u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d \u00c2\u00a0 mojibake",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f4 \u2764\ufe0f",
    "\n\t \r\f",
    "a&\n",
    "http://example.com/" + "a1-_%20" * 300,
]


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=77)


@pytest.fixture(scope="module")
def words() -> WordEncode:
    encode = clip_encode(open_clip.SimpleTokenizer(context_length=77))
    assert isinstance(encode, WordEncode)
    return encode


@pytest.fixture(scope="module", params=["rows", "words"])
def ours(request: pytest.FixtureRequest, theirs: open_clip.SimpleTokenizer, words: WordEncode) -> Tokenizer:
    """A tokenizer that remembers whole rows, and one that remembers words."""
    return Tokenizer(words if request.param == "words" else theirs, 77, 0, True)


def test_ids_are_open_clips_also_from_the_cache(ours: Tokenizer, theirs: open_clip.SimpleTokenizer) -> None:
    assert torch.equal(ours(TEXTS), theirs(TEXTS))
    assert torch.equal(ours([*TEXTS, *reversed(TEXTS)]), theirs([*TEXTS, *reversed(TEXTS)]))
    assert ours(TEXTS).dtype == torch.int64 and ours([]).shape == (0, 77)


ANY = st.characters(exclude_categories=("Cs",))
PARTS = st.sampled_from(
    ["&", "&amp;", "&AMP", "&#39;", "&nbsp;", "&lt", ";", "#", "<", "'s", "'LL", "<start_of_text>", "<END_OF_TEXT>"]
    + [
        "\x1b[1m",
        "\x1c",
        "\x1f",
        "\x0b",
        "\x00",
        "\x85",
        "\xa0",
        "\u2029",
        "\r\n",
        "\n",
        "\t",
        " ",
        "  ",
        "\u2019",
        "\u0301",
    ]
    + [
        "a",
        "Cat",
        "42",
        "!!",
        "_",
        "\u00e9",
        "\u00c3\u00a9",
        "\u017f",
        "\u0130",
        "\u03a3",
        "\u65e5\u672c",
        "\U0001f642",
    ]
)


@settings(max_examples=200)
@given(text=st.text(ANY, max_size=60))
def test_ids_of_any_text_are_open_clips(words: WordEncode, theirs: open_clip.SimpleTokenizer, text: str) -> None:
    assert torch.equal(words([text]), theirs([text]))


@settings(max_examples=500)
@given(parts=st.lists(PARTS | st.text(ANY, max_size=3) | st.text(string.printable, max_size=5), max_size=20))
def test_ids_of_awkward_texts_are_open_clips(
    words: WordEncode, theirs: open_clip.SimpleTokenizer, parts: list[str]
) -> None:
    assert torch.equal(words(["".join(parts)]), theirs(["".join(parts)]))


def test_each_character_alone_and_amid_letters_gives_open_clips_ids(
    words: WordEncode, theirs: open_clip.SimpleTokenizer
) -> None:
    numbers = [*range(0x250), *range(0x2000, 0x2070), *range(0xFE00, 0x10000, 7)]
    texts = [form.format(chr(number)) for number in numbers for form in ("{0}", "Ab{0}c ", "it{0}s &{0}; x")]
    assert torch.equal(words(texts), theirs(texts))


@pytest.mark.parametrize("context", [1, 2, 3, 32, 256])
def test_any_context_cuts_as_open_clip_does(context: int) -> None:
    theirs = open_clip.SimpleTokenizer(context_length=context)
    ours = Tokenizer(clip_encode(theirs), context, 0, True)
    texts = [*TEXTS, "two words", *("ab, " * n for n in range(5)), "many " * 5000]
    assert isinstance(ours.encode, WordEncode) and torch.equal(ours(texts), theirs(texts))


@needs_clipart
def test_ids_of_all_real_captions_are_open_clips(words: WordEncode, theirs: open_clip.SimpleTokenizer) -> None:
    texts = []
    for path in sorted(CLIPART.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = (tar.extractfile(member) for member in tar if member.name.endswith(".txt"))
            texts += [file.read().decode() for file in files if file]
    assert len(texts) > 1000 and torch.equal(words(texts), theirs(texts))


LETTERS = [
    "etaoinshr",
    "x",
    "ab",
    string.ascii_lowercase,
    "!-=_*.",
    "\u65e5\u672c\u8a9e\u4eba\U0001f642",
    "\u00e9\u00c3\u0192",
]


@settings(max_examples=150)
@given(letters=st.sampled_from(LETTERS), size=st.integers(1, 400), dice=st.randoms(use_true_random=False))
@example(letters="x", size=3000, dice=random.Random(1))
@example(letters="etaoinshr", size=1500, dice=random.Random(2))
def test_symbols_of_a_word_are_open_clips_and_those_of_its_beginning_stay(
    words: WordEncode, theirs: open_clip.SimpleTokenizer, letters: str, size: int, dice: random.Random
) -> None:
    word = "".join(dice.choice(letters) for _ in range(size))
    text = "".join(theirs.byte_encoder[byte] for byte in word.encode())
    expected = theirs.bpe(text).split(" ")
    assert words.words.pairs.merge(text, True) == expected
    beginning = words.words.pairs.merge(text[: dice.randrange(size) + 1], False)
    assert beginning == expected[: len(beginning)]


@pytest.mark.parametrize("letters", LETTERS)
def test_a_word_of_20000_letters_gives_the_ids_of_all_its_symbols(words: WordEncode, letters: str) -> None:
    dice = random.Random(3)
    word = "".join(dice.choice(letters) for _ in range(20_000))
    clean = words.tokenizer.clean_fn(word)
    match = words.tokenizer.pat.match(clean)[0]
    text = "".join(words.tokenizer.byte_encoder[byte] for byte in match.encode())
    symbols = words.words.pairs.merge(text, True)
    first = [words.tokenizer.encoder[symbol] for symbol in symbols][:75]
    assert words([word])[0, 1 : 1 + len(first)].tolist() == first


def test_a_beginning_shorter_than_what_its_end_can_change_is_taken_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captions, "PREFIX", 2)
    texts = [letter * 40 + "etaoin shrdlu" for letter in ("a", "no", "!", "\u65e5")] + ["supercalifragilistic"]
    for context in (3, 8, 77):
        theirs = open_clip.SimpleTokenizer(context_length=context)
        assert torch.equal(clip_encode(theirs)(texts), theirs(texts))


def test_words_kept_are_bounded_and_long_ones_are_not_kept(
    theirs: open_clip.SimpleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "WORDS", 5)
    encode = clip_encode(theirs)
    assert isinstance(encode, WordEncode)
    texts = [" ".join(f"w{(i * j) % 17}" for j in range(9)) for i in range(50)] + ["y" * 65]
    expected = theirs(texts)
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(lambda _: encode(texts), range(8)):
            assert torch.equal(ids, expected)
    assert len(encode.words) <= 5 + 4 and "y" * 65 not in encode.words


def test_words_do_not_travel_to_another_process(theirs: open_clip.SimpleTokenizer) -> None:
    encode = clip_encode(open_clip.SimpleTokenizer())
    empty = len(pickle.dumps(encode))
    first = encode(TEXTS)
    assert len(pickle.dumps(encode)) == empty
    copied = pickle.loads(pickle.dumps(Tokenizer(encode, 77, 0, True)))
    assert torch.equal(copied(TEXTS), first) and isinstance(copied.encode, WordEncode)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clean": "canonicalize"},
        {"clean": "whitespace"},
        {"reduction_mask": "simple"},
        {"additional_special_tokens": ["a b"]},
    ],
)
def test_a_tokenizer_that_cleans_or_cuts_otherwise_is_called_itself(kwargs: dict[str, Any]) -> None:
    tokenizer = open_clip.SimpleTokenizer(**kwargs)
    assert clip_encode(tokenizer) is tokenizer
    spec = {"arch": "mine", "model_cfg": {"text_cfg": {"context_length": 9, "tokenizer_kwargs": kwargs}}}
    built = _tokenizer(spec, None)
    assert isinstance(built.encode, open_clip.SimpleTokenizer) and built(["Two Words"]).shape == (1, 9)


def test_clips_own_tokenizer_is_built_to_remember_words(theirs: open_clip.SimpleTokenizer) -> None:
    built = _tokenizer({"arch": "mine", "model_cfg": {"text_cfg": {}}}, None)
    assert isinstance(built.encode, WordEncode) and torch.equal(built(TEXTS), theirs(TEXTS))


def test_merges_that_use_a_symbol_before_it_is_made_are_left_to_open_clip() -> None:
    assert captions._in_order({("a", "b"): 0, ("ab", "c"): 1, ("a", "bc"): 2})
    assert not captions._in_order({("ab", "c"): 0, ("a", "b"): 1})
    tokenizer = open_clip.SimpleTokenizer()
    tokenizer.bpe_ranks = {("ab", "c"): 0, ("a", "b"): 1}
    assert clip_encode(tokenizer) is tokenizer


def test_a_beginning_is_given_up_as_far_as_its_end_can_matter() -> None:
    pairs = captions._Pairs({("c", "d"): 0, ("b", "c"): 1, ("a", "b"): 2})
    assert pairs.merge("abc", True) == ["ab", "c</w>"]
    assert pairs.merge("abcd", False) == ["ab", "cd"], "nothing begins with d or cd"
    assert pairs.merge("abc", False) == [], "before d it is ab c, before others a bc"
    assert pairs.merge("zabc", False) == ["z"]


@given(texts=st.lists(st.text("ab ", max_size=60), max_size=5))
def test_a_trim_keeps_everything_and_no_more_than_seven_columns_of_padding(texts: list[str]) -> None:
    tokenizer = toy_tokenizer()
    whole = tokenizer(texts)
    cut = tokenizer.trim(whole)
    assert torch.equal(cut, whole[:, : cut.shape[1]]) and not whole[:, cut.shape[1] :].any()
    if texts:
        used = int(whole.any(0).nonzero().max()) + 1
        assert cut.shape[1] == min(16, -(-used // 8) * 8)


def test_a_trim_never_goes_beyond_the_context_nor_into_ids_equal_to_padding() -> None:
    tokenizer = Tokenizer(spell, 13, 0, True)
    assert tokenizer.trim(torch.ones(1, 13, dtype=torch.long)).shape == (1, 13)
    inner = torch.tensor([[5, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], [5, 1, *[0] * 11]])
    assert torch.equal(tokenizer.trim(inner), inner)


def test_where_the_tower_reads_padding_nothing_is_cut() -> None:
    tokenizer = Tokenizer(spell, 16, 0, False)
    assert tokenizer.trim(tokenizer(["a"])).shape == (1, 16)


def test_a_repeated_caption_is_encoded_once() -> None:
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> Tensor:
        calls.append(texts)
        return spell(texts)

    tokenizer = Tokenizer(encode, 16, 0, True)
    first, second = tokenizer(["a b", "c", "a b"]), tokenizer(["a b"])
    assert calls == [["a b"], ["c"]] and torch.equal(first[0], first[2]) and torch.equal(first[:1], second)
    first[0] = 9
    assert torch.equal(tokenizer(["a b"]), second), "what a caller does with its ids does not reach the cache"


def test_a_tokenizer_travels_to_another_process_without_its_cache(ours: Tokenizer) -> None:
    copied = pickle.loads(pickle.dumps(ours))
    assert torch.equal(copied(TEXTS), ours(TEXTS))
    assert len(pickle.dumps(toy_tokenizer())) < 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tokenizer of whole words, whose end of text is also its padding."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    fast = Fast(WordLevel({"[END]": 0, "[UNK]": 1, "a": 2, "red": 3, "cat": 4}, "[UNK]"))
    fast.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    fast.post_processor = TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 0)])  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]", pad_token="[END]").save_pretrained(tmp_path)
    return tmp_path


def test_a_folders_ids_are_padded_with_what_no_vocabulary_holds(folder: Path) -> None:
    tokenizer = Tokenizer(FolderEncode(folder, 6), 6, -1, True)
    ids = tokenizer(["a red cat", "", "a dog a dog a dog a dog"])
    assert ids.tolist() == [[2, 3, 4, 0, -1, -1], [0, -1, -1, -1, -1, -1], [2, 1, 2, 1, 2, 0]]
    assert torch.equal(pickle.loads(pickle.dumps(tokenizer))(["a red cat"]), ids[:1])
    assert tokenizer.trim(Tokenizer(FolderEncode(folder, 20), 20, -1, True)(["a"])).shape == (1, 8)
