"""Token ids equal the wrapped tokenizer's, however often they are cached, cut or sent to another process."""

import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipkit.captions import FolderEncode, Tokenizer
from tests.samples import spell, toy_tokenizer

TEXTS = [
    "a photo of a cat",
    "",
    "Ein Bär & ein &amp; Käse – «zitiert»",
    "日本語の文章 🙂🙂",
    "UPPER  case\n and\tspaces ",
    "!!! 0 !",
    "word " * 200,
    "x" * 3000,
]


@pytest.fixture(scope="module")
def theirs() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=77)


@pytest.fixture(scope="module")
def ours(theirs: open_clip.SimpleTokenizer) -> Tokenizer:
    return Tokenizer(theirs, 77, 0, True)


def test_ids_are_open_clips_also_from_the_cache(ours: Tokenizer, theirs: open_clip.SimpleTokenizer) -> None:
    assert torch.equal(ours(TEXTS), theirs(TEXTS))
    assert torch.equal(ours([*TEXTS, *reversed(TEXTS)]), theirs([*TEXTS, *reversed(TEXTS)]))
    assert ours(TEXTS).dtype == torch.int64 and ours([]).shape == (0, 77)


@settings(max_examples=150)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_ids_of_any_text_are_open_clips(ours: Tokenizer, theirs: open_clip.SimpleTokenizer, text: str) -> None:
    assert torch.equal(ours([text]), theirs([text]))


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
