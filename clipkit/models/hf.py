"""A text tower from a local Hugging Face folder (config.json, tokenizer files, model.safetensors)."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from clipkit.errors import UserError

Pool = Literal["mean", "cls", "last"]


class FolderText(nn.Module):
    """`transformer` of the folder, pooled over the words and projected: ids int64 [B, T], -1 for padding, -> [B, dim].

    Only safetensors weights are read and no code of the folder is run.
    """

    def __init__(self, folder: Path, dim: int, pool: Pool, pretrained: bool) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: no config.json; model.text needs a folder that transformers has saved")
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise UserError(
                f"{folder}: an encoder-decoder ({config.model_type}); model.text needs an encoder or a decoder"
            )
        if pretrained:
            try:
                self.transformer = AutoModel.from_pretrained(
                    str(folder),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                )
            except OSError as error:
                raise UserError(
                    f"{folder}: {' '.join(str(error).split())}; or set model.text_pretrained=false"
                ) from None
        else:
            self.transformer = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
        for name in ("pooler", "lm_head"):  # never used here, and an unused weight breaks training on several ranks
            if getattr(self.transformer, name, None) is not None:
                setattr(self.transformer, name, None)
        self.pool: Pool = pool
        self.projection = nn.Linear(config.hidden_size, dim, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """ids [B, T] -> [B, dim], not yet of unit length."""
        words = text >= 0
        states = self.transformer(input_ids=text.clamp(min=0), attention_mask=words.long()).last_hidden_state
        return self.projection(_pool(states, words, self.pool))


def _pool(states: Tensor, words: Tensor, pool: Pool) -> Tensor:
    if pool == "cls":
        return states[:, 0]
    if pool == "last":
        return states[torch.arange(len(states), device=states.device), words.sum(1) - 1]
    weight = words.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
