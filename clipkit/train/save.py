"""What a checkpoint of a training run holds."""

import json
from typing import Any

from clipkit import checkpoint, config, optim
from clipkit.models.load import TEXT_FOLDER
from clipkit.train.run import Run


def save(run: Run) -> None:
    """Write the state after `run.step` steps; called by the main process."""
    files: dict[str, Any] = {
        "model.safetensors": run.net.net.state_dict(),
        "model.yaml": config.to_yaml(run.net.spec),
        "optim.safetensors": optim.state(run.optimizer, run.net.net),
        "train.yaml": config.to_yaml(run.cfg),
        "data.json": json.dumps(run.stream.state(run.step), indent=1),
    }
    if run.ema:
        files["ema.safetensors"] = run.ema.average
    if run.net.text_folder:
        files[TEXT_FOLDER] = run.net.text_folder
    checkpoint.save(run.folder, run.step, files, run.cfg.keep)
