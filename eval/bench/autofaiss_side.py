"""An index by autofaiss, run in an environment of its own (`peers.autofaiss`): it chooses the factory and tunes it.

python eval/bench/autofaiss_side.py VECTORS/img_emb --out knn.index [--memory 4G] [--threads 2] [--key HNSW32] [--ms 10]

Ends with one JSON line: key and param (what autofaiss chose), cpu_s (reading, training, adding and tuning, without
imports), mb (of the file), peak_mb (the process's most resident memory).
"""

import argparse
import json
import logging
import os
import resource
import time

import faiss
from autofaiss import build_index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", help="a folder of .npy files")
    parser.add_argument("--out", required=True, help="the FAISS index to write")
    parser.add_argument("--memory", default="4G", help="what the index may take; building may take four times that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--key", help="a factory of the caller's instead of the one that autofaiss chooses")
    parser.add_argument("--ms", type=float, default=10.0, help="its aim: milliseconds a query")
    options = parser.parse_args()

    began = time.process_time()
    _, chosen = build_index(
        options.embeddings,
        index_path=options.out,
        index_infos_path=f"{options.out}.json",
        index_key=options.key,
        max_index_query_time_ms=options.ms,
        max_index_memory_usage=options.memory,
        current_memory_available=f"{4 * float(options.memory[:-1]):g}{options.memory[-1]}",
        nb_cores=options.threads,
        verbose=logging.WARNING,
    )
    if chosen is None:
        raise SystemExit("autofaiss built nothing; it says why above")
    facts = {
        "key": chosen["index_key"],
        "param": chosen["index_param"],
        "cpu_s": round(time.process_time() - began, 2),
        "mb": round(os.path.getsize(options.out) / 1e6, 3),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "faiss": faiss.__version__,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
