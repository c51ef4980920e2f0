"""autofaiss, in its own environment, builds indexes that the FAISS of today reads."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.making import ROOT

PYTHON = ROOT / ".venv-autofaiss/bin/python"


@pytest.mark.skipif(not PYTHON.exists(), reason="eval/bench/index.py makes the environment of autofaiss")
@pytest.mark.parametrize("key", ["HNSW8", "OPQ8_16,IVF8,PQ8x4"])
def test_its_index_is_read_and_searched_with_what_it_chose(tmp_path: Path, key: str) -> None:
    import faiss

    rows = np.random.default_rng(0).standard_normal((1500, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    (tmp_path / "img_emb").mkdir()
    for part in range(2):
        np.save(tmp_path / f"img_emb/img_emb_{part:06d}.npy", rows[part * 750 : part * 750 + 750].astype(np.float16))
    side = [str(PYTHON), str(ROOT / "eval/bench/autofaiss_side.py"), str(tmp_path / "img_emb")]
    more = ["--out", str(tmp_path / "knn.index"), "--threads", "1", "--key", key, "--ms", "0.2"]
    done = subprocess.run([*side, *more], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["key"] == key and facts["cpu_s"] > 0 and facts["peak_mb"] > facts["mb"] > 0
    index = faiss.read_index(str(tmp_path / "knn.index"))
    faiss.ParameterSpace().set_index_parameters(index, facts["param"])
    _, found = index.search(rows[:5], 3)
    assert index.ntotal == 1500 and found.shape == (5, 3) and (found >= 0).all()
