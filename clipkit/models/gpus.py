"""What GPUs can do at most, by their makers' data sheets."""

import re
from typing import NamedTuple


class Gpu(NamedTuple):
    """Products in bf16 (dense, summed in float32) in FLOP/s, and memory in GB."""

    peak: float
    memory_gb: float


# Sources: NVIDIA's data sheets of A100, A10, H100, H200, HGX B200, L4, L40S (their figures "with sparsity" halved); for
# the RTX 4090 the Ada whitepaper, appendix A; for the A10G, AWS's G5 page.
GPUS = {
    "A10": Gpu(125e12, 24),
    "A10G": Gpu(70e12, 24),
    "A100": Gpu(312e12, 80),
    "A100 40GB": Gpu(312e12, 40),
    "B200": Gpu(2250e12, 180),
    "H100": Gpu(989e12, 80),
    "H100 NVL": Gpu(835e12, 94),
    "H100 PCIE": Gpu(756e12, 80),
    "H200": Gpu(989e12, 141),
    "L4": Gpu(121e12, 24),
    "L40S": Gpu(362e12, 48),
    "RTX 4090": Gpu(165e12, 24),
}


def find(name: str) -> Gpu | None:
    """The GPU of a name such as `h100`, `a100-40gb` or `NVIDIA A100-SXM4-80GB`, as the driver tells it."""
    words = set(re.split(r"[\s_-]+", name.upper()))
    known = [key for key in GPUS if set(key.split()) <= words]
    return GPUS[max(known, key=len)] if known else None
