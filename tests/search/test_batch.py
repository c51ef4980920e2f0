"""Queries from a file are answered in their order, as one by one, and what is wrong names its line."""

import json
from pathlib import Path

import pytest

from clipkit.errors import BadData, UserError
from clipkit.search import Index, Options, batch, open_index, query


@pytest.fixture(scope="module")
def index(pictured: Path) -> Index:
    return open_index(pictured / "index")


def test_lines_of_text_are_queries(tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_bytes(b"\xef\xbb\xbfa red dot\r\n\n  a {square}  \n\n")
    assert [fields for fields, _ in batch.read(path)] == [{"text": "a red dot"}, {"text": "a {square}"}]


@pytest.mark.parametrize("at_once", [1, 2, 128])
def test_answers_are_those_of_single_searches_in_order(
    index: Index, pictured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(batch, "AT_ONCE", at_once)
    asked = [
        {"text": "a red dot"},
        {"image": str(pictured / "pictures/02.jpg"), "text": ["a dot"], "weights": [1, 2], "not": "red"},
        {"key": "05"},
        {"id": 7, "key": "06"},
        {"text": "a red dot"},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    options = Options(4, where="width > 0", unique=0.99999)
    found = list(batch.answers(index, batch.read(path), options))
    assert [each["query"] for each in found] == asked
    for each in found:
        fields = each["query"]
        one = query(
            fields.get("text"), fields.get("image"), fields.get("key"), fields.get("id"), fields.get("not"),
            fields.get("weights"),
        )  # fmt: skip
        single = index.search_many([one], options)[0]
        assert [hit["id"] for hit in each["hits"]] == [hit.id for hit in single]
        assert [hit["score"] for hit in each["hits"]] == pytest.approx([hit.score for hit in single], abs=1e-5)


def test_what_cannot_be_read_is_told_in_its_line_and_counted(
    index: Index, pictured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [({"key": key}, query(key=key)) for key in ("05", "gone", "06")]
    found = list(batch.answers(index, asked, Options(2)))
    assert [len(each.get("hits", [])) for each in found] == [2, 0, 2]
    assert found[1] == {"query": {"key": "gone"}, "error": f"{pictured / 'index'}: no row has the key 'gone'"}
    told = "search: 1 of 3 queries could not be answered; their lines say why\n"
    assert capsys.readouterr().err.endswith(told)


def test_if_none_can_be_answered_it_is_an_error_behind_the_lines(index: Index) -> None:
    asked, found = [({"key": "gone"}, query(key="gone"))] * 2, []
    with pytest.raises(BadData, match="^search: none of 2 queries could be answered; their lines say why$"):
        for each in batch.answers(index, asked, Options()):
            found.append(each)
    assert len(found) == 2 and all("error" in each for each in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no query; one a line is needed"),
        (b"\n \n", "holds no query; one a line is needed"),
        (b'{"text": "a"}\n\n{"txt": "a"}', "line 3: search: unknown field 'txt'; did you mean 'text'?"),
        (b'{"text": "a"}\n{"text": ', "line 2: not JSON (Expecting value"),
        (b"[" * 100_000, "line 1: not JSON (maximum recursion depth"),
        (b'["a"]', "line 1: search: an object such as"),
        (b'{"not": "a"}', "line 1: search: words, a picture or a key to search by are needed; --not takes away"),
        (b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_a_file_that_holds_something_else_names_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        batch.read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        batch.read(tmp_path / "none.txt")
    assert str(error.value) == f"{tmp_path / 'none.txt'}: cannot be read (No such file or directory)"
