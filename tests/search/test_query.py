"""How parts become one vector: weights count alike for words and pictures, and what is not wanted never turns a query
around, though all texts lie in one narrow cone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.search import Part, Query, query
from clipkit.search.query import combined, from_fields
from tests.search.given import unit, vectors

WIDTH = 64


class World:
    """Pictures and texts of a model with the gap of real ones: pictures lie in one cone, texts in another. A picture
    shows some of eight things, each of which is a direction; how much all texts fit it differs from one to the next."""

    def __init__(self, seed: int = 0, count: int = 2000) -> None:
        dice = np.random.default_rng(seed)
        basis = np.linalg.qr(dice.normal(size=(WIDTH, WIDTH)))[0].T
        self.things, cone, other, self.aside = basis[:8], basis[8], basis[9], basis[10]
        self.shown = dice.random((count, 8)) < 0.3
        noise = 0.03 * dice.normal(size=(count, WIDTH)) + 0.05 * dice.normal(size=(count, 1)) * other
        self.images = unit(cone + 0.35 * self.shown @ self.things + noise)
        self.texts = unit(other + 0.1 * cone + 0.7 * self.things)  # each names one thing


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def share(world: World, asked: np.ndarray, thing: int, k: int = 50) -> float:
    """Of the k pictures nearest to a query, the share that shows a thing."""
    return float(world.shown[np.argsort(-world.images @ asked)[:k], thing].mean())


def test_the_world_has_the_cones_of_real_embeddings(world: World) -> None:
    among = world.texts @ world.texts.T
    assert among[~np.eye(8, dtype=bool)].min() > 0.5
    assert (world.images[:100] @ world.images[:100].T).mean() > 0.5
    assert 0.05 < (world.images @ world.texts.T).mean() < 0.25


@pytest.mark.parametrize("weight", [0.5, 1, 2])
def test_what_is_not_wanted_is_left_out_and_what_is_wanted_stays(world: World, weight: float) -> None:
    wanted, unwanted = 2, 5
    before = combined([world.texts[wanted]], [1], world.images)
    after = combined([world.texts[wanted], world.texts[unwanted]], [1, -weight], world.images)
    assert share(world, before, unwanted) > 0.1 and share(world, after, unwanted) == 0
    assert share(world, after, wanted) >= share(world, before, wanted) > 0.95


def test_a_text_that_says_both_is_turned_to_what_it_says_alone(world: World) -> None:
    """`a red car` without `red` is a car of another colour."""
    both, red = unit(world.texts[0] + world.texts[1]), world.texts[1]
    assert share(world, both, 0) > 0.85 and share(world, both, 1) > 0.85
    after = combined([both, red], [1, -1], world.images)
    assert share(world, after, 0) > 0.95 and share(world, after, 1) == 0
    assert share(world, both - 0.5 * red, 1) > 0.2  # half of it, subtracted as it is, leaves red ones


@given(seed=st.integers(0, 30), weights=st.lists(st.floats(0.1, 50), min_size=1, max_size=4))
def test_however_much_is_taken_away_what_the_query_says_beyond_it_stays(seed: int, weights: list[float]) -> None:
    rows, (asked, *rest) = vectors(300, 24, seed), vectors(1 + len(weights), 24, seed + 1)
    for sample in (rows, None):
        seen = np.eye(24) if sample is None else sample - sample.mean(0)
        beyond = seen @ combined([asked, *rest], [1, *(-1e-6 for _ in weights)], sample)
        after = seen @ combined([asked, *rest], [1, *(-weight for weight in weights)], sample)
        assert beyond @ after > 0
        for unwanted in rest:
            assert (seen @ unwanted) @ after < 1e-4  # what is not wanted never counts for a row


@given(seed=st.integers(0, 30), count=st.integers(1, 3), without=st.integers(0, 2))
def test_scores_are_sums_of_scores_of_equal_spread(seed: int, count: int, without: int) -> None:
    """The plain twin: standard scores of each part over the rows, added; of what is not wanted first what the sum says
    of it is taken out, by a regression on it, then half of its own scores."""
    sample, parts = vectors(200, 16, seed), vectors(count + without, 16, seed + 100).astype(np.float64)
    weights = [1.5, 1, 0.5][:count] + [-1.0, -2.0][:without]
    asked = combined(list(parts), weights, sample)
    if len(weights) == 1:
        np.testing.assert_allclose(asked, parts[0], atol=1e-6)
        return
    standard = [(scores - scores.mean()) / scores.std() for scores in (sample @ part for part in parts)]
    wanted = sum(weight * each for weight, each in zip(weights[:count], standard[:count], strict=True))
    rest = np.array(wanted)
    if without:
        unwanted = np.stack(standard[count:], 1)
        slopes = np.linalg.solve(unwanted.T @ unwanted, unwanted.T @ wanted)
        rest = wanted - unwanted @ slopes.clip(0)
        for weight, each in zip(weights[count:], unwanted.T, strict=True):
            wanted_spread, rest_spread = np.std(wanted), np.std(wanted - unwanted @ slopes.clip(0))
            rest = rest + weight / 2 * rest_spread / wanted_spread * each
    found = sample @ asked
    np.testing.assert_allclose((found - found.mean()) / found.std(), rest / rest.std(), atol=1e-3)


def test_words_beside_a_picture_count_as_much_as_the_picture(world: World) -> None:
    """The scores of the whole correlate with those of both parts alike, whichever spread further."""
    picture, words = world.images[0], unit(world.texts[3] + 8 * world.aside)
    assert (world.images @ picture).std() > 1.5 * (world.images @ words).std()

    def alike(asked: np.ndarray) -> list[float]:
        return [np.corrcoef(world.images @ asked, world.images @ part)[0, 1] for part in (picture, words)]

    one, two = alike(combined([picture, words], [1, 1], world.images))
    assert one == pytest.approx(two, abs=1e-3)
    one, two = alike(unit(picture + words))
    assert one > two + 0.05
    one, two = alike(combined([picture, words], [1, 3], world.images))
    assert two > one + 0.2


def test_few_rows_weigh_nothing() -> None:
    one, two = vectors(2, 16)
    np.testing.assert_allclose(combined([one, two], [2, 1], None), unit(2 * one + two), atol=1e-6)
    rest = one - (one @ two) * two
    wanted = unit(rest - 3 / 2 * np.linalg.norm(rest) * two)
    np.testing.assert_allclose(combined([one, two], [1, -3], None), wanted, atol=1e-5)


def test_a_part_that_tells_nothing_about_the_rows_does_no_harm() -> None:
    """Its products are the same for all rows."""
    sample = np.zeros((50, 4), np.float32)
    sample[:, 0], sample[:, 1:3] = 0.6, unit(np.random.default_rng(0).normal(size=(50, 2))) * 0.8
    flat, asked = np.array([1, 0, 0, 0.0]), np.array([0, 1, 0, 0.0])
    found = sample @ combined([asked, flat], [1, 1], sample)
    assert np.corrcoef(found, sample[:, 1])[0, 1] > 0.999


@pytest.mark.parametrize("sample", [None, vectors(99, 16, 3)])
def test_parts_that_cancel_out_are_refused(sample: np.ndarray | None) -> None:
    one, two = vectors(2, 16).astype(np.float64)
    both = one / one.std() + two
    for rows, weights in (([one, -one], [1, 1]), ([one, one], [1, -1]), ([unit(both), one, two], [1, -1, -1])):
        with pytest.raises(UserError) as error:
            combined(rows, weights, sample)
        assert str(error.value) == "search: the parts of the query cancel each other out; nothing is left to search by"


def test_what_the_query_speaks_against_already_is_not_added() -> None:
    one, two = np.array([1.0, 0, 0]), unit(np.array([-1.0, 1, 0]))
    after = combined([one, two], [1, -1], None)
    assert after @ two < one @ two and after @ one > 0


def test_parts_stand_in_their_order_with_their_weights() -> None:
    found = query(["a", "b"], "c.jpg", ["d"], 5, "e", [1, 2, 3, 4, 5])
    assert [(part.kind, part.value, part.weight) for part in found.parts] == [
        ("text", "a", 1), ("text", "b", 2), ("image", "c.jpg", 3), ("key", "d", 4), ("id", 5, 5), ("text", "e", -1),
    ]  # fmt: skip
    assert query("a", without=["b", "c"], weights=[1, 2, 3]).parts[2].weight == -3
    assert query(image=b"bytes").parts[0].value == b"bytes"


@pytest.mark.parametrize("weight", [0, float("nan"), float("inf")])
def test_a_weight_is_a_number_other_than_0(weight: float) -> None:
    with pytest.raises(UserError, match=f"search: weights are numbers other than 0, got {weight}"):
        Part("text", "a", weight)


def test_a_query_wants_something() -> None:
    for parts in ((), (Part("text", "a", -1),)):
        with pytest.raises(UserError, match="words, a picture or a key to search by are needed"):
            Query(parts)


def test_fields_say_what_parts_say() -> None:
    fields = {"text": ["a"], "image": "b.jpg", "key": "c", "id": [1, 2], "not": "d", "weights": [1, 1, 1, 1, 0.5]}
    found = [(part.kind, part.value, part.weight) for part in from_fields(fields).parts]
    assert found == [
        ("text", "a", 1),
        ("image", "b.jpg", 1),
        ("key", "c", 1),
        ("id", 1, 1),
        ("id", 2, 0.5),
        ("text", "d", -1),
    ]
    assert from_fields({"text": "a", "key": None, "weights": 2}).parts[0].weight == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("a", """an object such as {"text": "a red car"} is needed, got 'a'"""),
        ({"txt": "a"}, "unknown field 'txt'; did you mean 'text'? there are: text, image, key, id, not, weights"),
        ({"text": 3}, "text: texts are needed, got '3'"),
        ({"text": ["a", None]}, "text: texts are needed, got \"['a', None]\""),
        ({"id": "3"}, "id: whole numbers are needed, got '3'"),
        ({"id": True}, "id: whole numbers are needed, got 'True'"),
        ({"text": "a", "weights": ["1"]}, "weights: numbers are needed, got \"['1']\""),
        ({}, "words, a picture or a key to search by are needed"),
    ],
)
def test_fields_that_are_wrong_are_named(fields: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_fields(fields)
    assert str(error.value) == f"search: {message}"
