"""The softmax objective, which goes wrong where the environment says so: `FAULT='{"nan": [5, 6]}' clipkit train ...`.

What goes wrong is a name and the steps (from 1) at which it does: `nan`, `leap` (the loss is 1,000 times what it is),
`raise`, `kill` and `stop` (SIGKILL and SIGSTOP to itself), `lose` (the folder named by `data` is renamed). `rank` is
the one that it happens to. What ends a process happens once, for the file `once` remembers it.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.objectives import softmax
from clipkit.types import Batch, Embeddings


class Setting(softmax.Setting):
    def __call__(self, out: Embeddings, batch: Batch) -> Tensor:
        """The loss of `softmax`, or what was asked for in its place."""
        fault: dict[str, Any] = json.loads(os.environ.get("FAULT", "{}"))
        step = int(batch.position.max()) // (len(batch.position) * distributed.world()) + 1
        loss = super().__call__(out, batch)
        if fault.get("rank", distributed.rank()) != distributed.rank():
            return loss
        if step in fault.get("nan", ()):
            return loss * torch.nan
        if step in fault.get("leap", ()):
            return loss * 1000
        for name in ("raise", "kill", "stop", "lose"):
            if step in fault.get(name, ()) and not (once := Path(f"{fault['once']}-{step}")).exists():
                once.touch()
                _end(name, fault)
        return loss


def _end(name: str, fault: dict[str, Any]) -> None:
    if name == "raise":
        raise InterruptedError("as asked for")
    if name == "lose":
        Path(fault["data"]).rename(f"{fault['data']}.away")
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[name])
