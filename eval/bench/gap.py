"""Unit vectors modelled on the gap between the embeddings of pictures and of texts.

Pictures and texts each lie around a mean of their own (random pictures have a cosine of 0.51, a text and a picture one
of 0.08), scattered over 300 topics and 30,000 concepts of uneven sizes and by noise whose variance falls from direction
to direction: 90% lies in 329 of 512. A text holds half of its concept's strength and noise of another covariance. The
strengths are such that among a million pictures the nearest to a text has a cosine of 0.313, the tenth one of 0.291.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, CONCEPTS, TOPICS = 512, 30_000, 300
SKEW = 0.3
"""Of the sizes of concepts: the largest has 500 of a million pictures, the median one 29."""
BLOCK = 50_000
IMAGE_MEAN, TEXT_MEAN, ACROSS = 0.51, 0.36, 0.08
"""Squared lengths of the two means, and their product."""
CONCEPT = 0.385
"""Squared length of a concept in a picture; the noise has what is left."""
HALF = 0.5
DECAY, TEXT_DECAY = 235 / 512, 110 / 512
"""Of the variance along the directions, in parts of all: of pictures and of texts."""


@dataclass(frozen=True)
class World:
    """What pictures and texts are drawn from: means [D], concepts [C, D] and their shares [C], and for each kind a
    matrix [D, D] that gives noise its directions."""

    image_mean: np.ndarray
    text_mean: np.ndarray
    concepts: np.ndarray
    shares: np.ndarray
    image_noise: np.ndarray
    text_noise: np.ndarray


def world(width: int = WIDTH, concepts: int = CONCEPTS, topics: int = TOPICS, seed: int = 0) -> World:
    """A world of so many concepts."""
    dice = np.random.default_rng(seed)
    turned = np.linalg.qr(dice.normal(size=(width, width)))[0]
    noises = [_directions(turned, decay) for decay in (DECAY, TEXT_DECAY)]
    first, other = np.linalg.qr(dice.normal(size=(width, 2)))[0].T
    cosine = ACROSS / (IMAGE_MEAN * TEXT_MEAN) ** 0.5
    text_mean = cosine * first + (1 - cosine**2) ** 0.5 * other
    topic = dice.normal(size=(topics, width)) @ noises[0]
    own = dice.normal(size=(concepts, width)) @ noises[0]
    mixed = ((topic[dice.integers(topics, size=concepts)] + own) / 2**0.5).astype(np.float32)
    sizes = np.arange(1, concepts + 1.0) ** -SKEW
    return World(
        (IMAGE_MEAN**0.5 * first).astype(np.float32), (TEXT_MEAN**0.5 * text_mean).astype(np.float32), mixed,
        sizes / sizes.sum(), noises[0], noises[1],
    )  # fmt: skip


def _directions(turned: np.ndarray, decay: float) -> np.ndarray:
    """A matrix that turns normal rows [n, D] into noise of squared length 1, in the directions `turned` [D, D]."""
    variance = np.exp(-np.arange(len(turned)) / (decay * len(turned)))
    return (np.sqrt(variance / variance.sum())[:, None] * turned).astype(np.float32)


def concepts_of(made: World, count: int, dice: np.random.Generator) -> np.ndarray:
    """The concepts of `count` samples, by their shares."""
    return np.searchsorted(np.cumsum(made.shares)[:-1], dice.random(count))


def pictures(made: World, of: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Pictures float32 [n, D] of the concepts `of` [n]."""
    return _unit(
        made.image_mean + CONCEPT**0.5 * made.concepts[of]
        + (1 - IMAGE_MEAN - CONCEPT) ** 0.5 * (_normal(dice, len(of), made) @ made.image_noise)
    )  # fmt: skip


def texts(made: World, of: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Texts float32 [n, D] about the concepts `of` [n]."""
    left = 1 - TEXT_MEAN - HALF**2 * CONCEPT
    return _unit(
        made.text_mean + HALF * CONCEPT**0.5 * made.concepts[of]
        + left**0.5 * (_normal(dice, len(of), made) @ made.text_noise)
    )  # fmt: skip


def _normal(dice: np.random.Generator, count: int, made: World) -> np.ndarray:
    return dice.standard_normal((count, len(made.image_mean)), np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def asked(made: World, count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(texts, pictures) [count, D] that are in no folder, to search with."""
    dice = np.random.default_rng([seed, 0xA5CED])
    return texts(made, concepts_of(made, count, dice), dice), pictures(made, concepts_of(made, count, dice), dice)


def write(folder: Path, made: World, rows: int, captioned: float = 0.05, seed: int = 0) -> None:
    """A vectors folder in float16 of `rows` pictures, a share of them with captions, and metadata to filter by: `n` is
    drawn evenly from 0..999."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, start in enumerate(range(0, rows, BLOCK)):
        count = min(BLOCK, rows - start)
        dice = np.random.default_rng([seed, number])
        of = concepts_of(made, count, dice)
        shape = (count, len(made.image_mean))
        np.save(folder / "img_emb" / f"img_emb_{number:06d}.npy", pictures(made, of, dice).astype(np.float16))
        texts_file = folder / "text_emb" / f"text_emb_{number:06d}.npy"
        said = np.lib.format.open_memmap(texts_file, mode="w+", dtype=np.float16, shape=shape)  # zeros: no caption
        has = np.sort(dice.choice(count, int(captioned * count), replace=False))
        said[has] = texts(made, of[has], dice).astype(np.float16)
        said.flush()
        pq.write_table(
            pa.table(_metadata(start, of, has, dice)), folder / "metadata" / f"metadata_{number:06d}.parquet"
        )
    facts = {"model": "synthetic", "rows": rows}
    (folder / "vectors.json").write_text(json.dumps(facts), encoding="utf-8")


def _metadata(start: int, of: np.ndarray, has: np.ndarray, dice: np.random.Generator) -> dict[str, Any]:
    captions = np.zeros(len(of), bool)
    captions[has] = True
    keys = [f"{start + i:09d}" for i in range(len(of))]
    return {
        "image_path": keys, "key": keys,
        "caption": [f"of concept {concept}" if said else "" for concept, said in zip(of, captions, strict=True)],
        "width": dice.integers(200, 2000, len(of)), "height": dice.integers(200, 2000, len(of)),
        "n": dice.integers(1000, size=len(of)),
    }  # fmt: skip
