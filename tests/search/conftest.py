"""A small model, pictures and an index of them, made once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipkit import images, models, shards
from tests import making
from tests.search.given import write_index

PICTURES = 24


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` (a model of random weights), `pictures` with captions, and `index` of both kinds."""
    folder = tmp_path_factory.mktemp("pictured")
    run = making.saved(folder)
    (folder / "pictures").mkdir()
    for number in range(PICTURES):
        jpg, caption = making.picture(number)
        (folder / f"pictures/{number:02d}.jpg").write_bytes(jpg)
        (folder / f"pictures/{number:02d}.txt").write_text(caption)
    named = models.Named(run, "cpu")
    source = shards.open_source(str(folder / "pictures"))
    facts = [shards.record(source, number) for number in range(PICTURES)]
    for number, fact in enumerate(facts):
        fact["width"], fact["height"] = images.size_of(source.image(number))
    ((_, rows, _),) = models.embed_images(named.model, source, range(PICTURES))
    texts = models.embed_texts(named.model, [str(fact["caption"]) for fact in facts])
    kinds: dict[str, np.ndarray] = {"image": rows.numpy(), "text": texts.numpy()}
    about = {"model": run, "digest": named.identity}
    write_index(folder / "index", kinds, pa.Table.from_pylist(facts), **about)
    return folder
