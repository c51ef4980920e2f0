"""Settings: all mistakes at once and in plain words, and nothing lost on the way to YAML and back."""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from clipkit import config
from clipkit.errors import UserError
from clipkit.train.settings import Settings as Train


@config.settings
class Inner:
    lr: Annotated[float, Field(gt=0, lt=1e3)] = 5e-4
    """Rate."""
    warmup: Annotated[int, Field(ge=0, le=9)] = 5
    kind: Literal["cosine", "constant"] = "cosine"


@config.settings
class Outer:
    name: str
    """Of the run,
    in words."""
    inner: Inner = field(default_factory=Inner)
    """The inside."""
    flag: bool = False
    pair: tuple[float, float] = (0.0, 1.0)
    maybe: Annotated[int, Field(gt=0)] | None = None
    """Perhaps."""
    path: Path = Path("x")
    tags: list[str] = field(default_factory=list)


def mistakes(tree: dict[str, Any], cls: Any = Outer) -> list[str]:
    """The lines of the error, without the first."""
    with pytest.raises(UserError) as error:
        config.check(cls, tree, "here")
    first, *lines = str(error.value).split("\n")
    assert first == ("here: 1 bad setting" if len(lines) == 1 else f"here: {len(lines)} bad settings")
    return [line.removeprefix("  ") for line in lines]


def refused(*args: Any) -> str:
    with pytest.raises(UserError) as error:
        config.read_yaml(*args)
    return str(error.value)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\ninner: {lr: 0.1, warmup: 2}\n")
    return path


# Round trips

OUTERS = st.builds(
    Outer,
    name=st.text("a: -#'\"{}[]\n0é\u2028?", max_size=12),  # what YAML finds hard
    inner=st.builds(Inner, lr=st.floats(1e-9, 999), warmup=st.integers(0, 9), kind=st.just("constant")),
    flag=st.booleans(),
    pair=st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)),
    maybe=st.none() | st.integers(1, 2**40),
    path=st.sampled_from((Path("x"), Path("a b/c: d"))),
    tags=st.lists(st.sampled_from(("yes", "1", "null", "~", "1e5", "2020-01-01", ""))),
)


@given(value=OUTERS)
def test_settings_come_back_from_yaml_as_they_were(tmp_path_factory: pytest.TempPathFactory, value: Outer) -> None:
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    path.write_text(config.to_yaml(value), encoding="utf-8")
    assert config.load(Outer, path) == value
    assert config.check(Outer, config.to_tree(value), "tree") == value


def test_overrides_come_after_the_file(yaml: Path) -> None:
    loaded = config.load(Outer, yaml, ["inner.warmup=3", "pair=[1,2]", "maybe=null", "tags=[a,'1']", "name=a=b"])
    assert loaded == Outer(name="a=b", inner=Inner(lr=0.1, warmup=3), pair=(1, 2), tags=["a", "1"])
    assert config.load(Outer, yaml, ["inner.lr=1e-3"]).inner.lr == 1e-3


def test_settings_cannot_be_changed_and_a_plain_tree_is_written_too() -> None:
    with pytest.raises(AttributeError):
        Inner().lr = 3  # type: ignore[misc]
    assert config.to_yaml({"a": [1, {"b": None}]}) == "a:\n- 1\n- b: null\n"


# Mistakes


def test_all_mistakes_are_told_at_once_with_what_was_meant() -> None:
    tree = {"inner": {"warmpu": 1, "lr": "fast", "kind": "linear"}, "flag": "yes", "pair": [1, "b"], "nmae": "a"}
    assert sorted(mistakes(tree)) == [
        "flag: true or false is needed, got 'yes'",
        "inner.kind: one of 'cosine' or 'constant' is needed, got 'linear'",
        "inner.lr: a number is needed, got 'fast'",
        "inner.warmpu: unknown key; did you mean 'warmup'?",
        "name: is needed, and has no default",
        "nmae: unknown key; did you mean 'name'?",
        "pair.1: a number is needed, got 'b'",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"lr": 0}}, "inner.lr: a number above 0.0 is needed, got 0"),
        ({"inner": {"lr": 1e3}}, "inner.lr: a number below 1000.0 is needed, got 1000.0"),
        ({"inner": {"lr": None}}, "inner.lr: a number is needed, got null"),
        ({"inner": {"lr": float("inf")}}, "inner.lr: Input should be a finite number, got inf"),
        ({"inner": {"warmup": -1}}, "inner.warmup: a number of at least 0 is needed, got -1"),
        ({"inner": {"warmup": 10}}, "inner.warmup: a number of at most 9 is needed, got 10"),
        ({"inner": {"warmup": 1.5}}, "inner.warmup: a whole number is needed, got 1.5"),
        ({"inner": {"warmup": "1"}}, "inner.warmup: a whole number is needed, got '1'"),
        ({"inner": {"warmup": True}}, "inner.warmup: a whole number is needed, got True"),
        ({"inner": {"zzz": 1}}, "inner.zzz: unknown key; known here: lr, warmup, kind"),
        ({"inner": 3}, "inner: Input should be an object, got 3"),
        ({"maybe": 0}, "maybe: a number above 0 is needed, got 0"),
        ({"maybe": "x"}, "maybe: a whole number is needed, got 'x'"),
        ({"name": 3}, "name: text is needed, got 3"),
        ({"tags": "a"}, "tags: Input should be a valid array, got 'a'"),
        ({"tags": ["a", 1]}, "tags.1: text is needed, got 1"),
        ({"path": 3}, "path: text is needed, got 3"),
    ],
)
def test_a_mistake_says_what_is_needed_and_what_it_got(change: dict[str, Any], message: str) -> None:
    assert mistakes({"name": "a", **change}) == [message]


def test_a_mistake_made_on_the_command_line_is_marked(yaml: Path) -> None:
    with pytest.raises(UserError) as error:
        config.load(Outer, yaml, ["inner.lr=-1", "flga=true"])
    assert str(error.value).split("\n") == [
        f"{yaml}: 2 bad settings",
        "  inner.lr: a number above 0.0 is needed, got -1 (command line)",
        "  flga: unknown key; did you mean 'flag'? (command line)",
    ]


def test_a_value_that_no_json_holds_is_refused() -> None:
    with pytest.raises(UserError, match="^here: .*not JSON serializable"):
        config.check(Outer, {"name": b"bytes"}, "here")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"name": "softmax", "label_smothing": 0.1},
            "objective.label_smothing: unknown key; did you mean 'label_smoothing'?",
        ),
        ({"name": "softmax", "label_smoothing": 1}, "objective.label_smoothing: a number below 1.0 is needed, got 1"),
        ("sofmax", "objective: no objective 'sofmax'; one of "),
        ("os.path", "objective: no objective 'os.path'; one of "),
        ({"label_smoothing": 0.1}, "objective: a name is needed, one of "),
        (3, "objective: a name is needed, one of "),
        (None, "objective: a name is needed, one of "),
    ],
)
def test_mistakes_inside_an_objective_carry_their_place(objective: Any, message: str) -> None:
    base = {"run": "r", "model": {"arch": "a"}, "data": {"train": "t"}}
    (line,) = mistakes({**base, "objective": objective}, Train)
    assert line.startswith(message)
    both = mistakes({**base, "objective": objective, "optim": {"lr": 0}}, Train)
    assert len(both) == 2 and line in both


# Files


@pytest.mark.parametrize("override", ["lr", "--lr=1", "-x", "=3", ""])
def test_an_override_is_key_value(yaml: Path, override: str) -> None:
    wanted = "an override is written key=value, for example optim.lr=1e-3 (no dashes)"
    assert refused(yaml, [override]) == f"{override}: {wanted}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"- 1\n- 2\n", "a mapping of settings is needed, got a list"),
        (b"3", "Invalid loaded object type: int"),
        (b"a: [1", "while parsing a flow sequence"),
        (b"a: 1\na: 2\n", "while constructing a mapping"),
        (b"a: ${nope}\n", "Interpolation key 'nope' not found"),
        (b"a: \xff\n", "'utf-8' codec can't decode"),
        (b"a: !!python/object/apply:os.mkdir [trapped]\n", "could not determine a constructor for the tag"),
    ],
)
def test_a_file_that_holds_no_settings_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    for overrides in ([], ["b=1"]):
        assert refused(path, overrides).startswith(f"{path}: {reason}") and "\n" not in refused(path, overrides)
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_is_not_there_or_a_folder_says_so(tmp_path: Path, yaml: Path) -> None:
    assert refused(tmp_path / "nope.yaml") == f"{tmp_path}/nope.yaml: no such file"
    assert refused(tmp_path).startswith(f"{tmp_path}: [Errno 21] Is a directory")
    assert refused(yaml, ["a={"]).startswith(f"{yaml}: while parsing a flow node")


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert config.read_yaml(tmp_path / "x.yaml") == {}
    assert config.read_yaml(tmp_path / "x.yaml", ["a.b=1"]) == {"a": {"b": 1}}


def test_a_name_is_a_file_or_one_that_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, yaml: Path) -> None:
    monkeypatch.setattr(config, "shipped_folder", lambda kind: tmp_path / kind)
    (tmp_path / "configs").mkdir()
    for name in ("small", "large"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("a: 1")
    assert config.find("configs", str(yaml)) == yaml
    assert (
        config.find("configs", "small") == config.find("configs", "small.yaml") == tmp_path / "configs" / "small.yaml"
    )
    for name, hint in (("smal", "did you mean 'small'?"), ("zzz", "give a file, or one of: large, small")):
        with pytest.raises(UserError) as error:
            config.find("configs", name)
        assert str(error.value) == f"{name}: no such file, and nothing of that name is in configs/; {hint}"


def test_shipped_files_are_found_in_this_checkout() -> None:
    assert (config.shipped_folder("configs") / "archs").is_dir()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    config.write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        config.write_atomic(path, "new \ud800")
    assert path.read_text() == "old"
    config.write_atomic(path, "neu ä")
    assert path.read_text(encoding="utf-8") == "neu ä" and path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


# Help


def test_every_setting_is_described_with_its_type_range_default_and_help() -> None:
    assert list(config.describe(Outer)) == [
        ("name", "str", "(needed)", "Of the run, in words."),
        ("inner.lr", "float > 0 < 1000", "0.0005", "Rate."),
        ("inner.warmup", "int >= 0 <= 9", "5", ""),
        ("inner.kind", "cosine or constant", "cosine", ""),
        ("flag", "bool", "False", ""),
        ("pair", "tuple of float, float", "(0.0, 1.0)", ""),
        ("maybe", "int > 0 or null", "null", "Perhaps."),
        ("path", "Path", "x", ""),
        ("tags", "list of str", "[]", ""),
    ]


def test_every_setting_of_a_training_run_has_a_help_line() -> None:
    described = list(config.describe(Train))
    assert len(described) > 30
    assert [key for key, _, _, text in described if not text.endswith(".")] == []
