"""Building a dual encoder from settings, or again from the model.yaml of a checkpoint."""

import copy
import dataclasses
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from clipkit import config
from clipkit.captions import FolderEncode, Tokenizer
from clipkit.errors import UserError
from clipkit.models.hf import FolderText, Pool
from clipkit.models.towers import DualEncoder
from clipkit.types import Preprocess

LOCATIONS = ("hf-hub:", "local-dir:")


@config.settings
class Settings:
    arch: str
    """An open_clip name (ViT-B-32), one of configs/archs, a .json file, local-dir:FOLDER or hf-hub:NAME."""
    pretrained: str | None = None
    """Weights to start from: an open_clip tag (laion2b_s34b_b79k) or a file; null starts from random weights."""
    image_size: Annotated[int, Field(gt=0)] | None = None
    """Side of the pictures in pixels; null takes the architecture's."""
    context: Annotated[int, Field(gt=0)] | None = None
    """Longest text in tokens; null takes the architecture's."""
    text: str | None = None
    """A local Hugging Face folder whose model replaces the text tower."""
    text_pool: Pool = "mean"
    """How that tower's states become one vector: mean over the words, cls (first) or last."""
    text_pretrained: bool = True
    """Start that tower from the folder's weights."""


def create(cfg: Settings, scale: float, bias: float | None) -> DualEncoder:
    """A dual encoder with the given first scale (the factor) and bias (null: none).

    Raises: UserError when the architecture, its weights or the text folder are not to be had.
    """
    name, model_cfg = _architecture(cfg)
    spec = {"arch": cfg.arch, "model_cfg": model_cfg, "text_pool": cfg.text_pool if cfg.text else None}
    weights = None if name is None else {"name": name, "pretrained": cfg.pretrained}
    if name is None and cfg.pretrained:
        weights = {"pretrained_file": cfg.pretrained}
    text_folder = Path(cfg.text) if cfg.text else None
    return _build(spec, scale, bias, weights, text_folder, cfg.text_pretrained)


def rebuild(spec: dict[str, Any], text_folder: Path | None) -> DualEncoder:
    """The dual encoder of a model.yaml, with random weights for the caller to replace."""
    return _build(spec, 1.0, 0.0 if spec["bias"] else None, None, text_folder, False)


def _architecture(cfg: Settings) -> tuple[str | None, dict[str, Any]]:
    """(name that open_clip knows it by or None, its model_cfg with the settings' sizes)."""
    import open_clip

    if cfg.arch.startswith(LOCATIONS) or cfg.arch in open_clip.list_models():
        try:
            name, model_cfg = cfg.arch, open_clip.get_model_config(cfg.arch)
        except Exception as error:  # whatever a hub or a folder may answer, the user reads it in one line
            raise UserError(f"{cfg.arch}: {' '.join(str(error).split())}") from None
    else:
        path = config.find("configs/archs", cfg.arch, ".json")
        try:
            name, model_cfg = None, json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(model_cfg, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model_cfg.keys():
        raise UserError(f"{cfg.arch}: embed_dim, vision_cfg and text_cfg are needed, as in open_clip's model configs")
    model_cfg = copy.deepcopy(model_cfg)
    if cfg.image_size:
        model_cfg["vision_cfg"]["image_size"] = cfg.image_size
    if cfg.context:
        model_cfg["text_cfg"]["context_length"] = cfg.context
    return name, model_cfg


def _build(
    spec: dict[str, Any],
    scale: float,
    bias: float | None,
    weights: dict[str, Any] | None,
    text_folder: Path | None,
    text_pretrained: bool,
) -> DualEncoder:
    import open_clip
    import torch

    model_cfg, size = spec["model_cfg"], spec["model_cfg"]["vision_cfg"].get("image_size", 224)
    options: dict[str, Any] = {
        "nonscalar_logit_scale": True,
        "init_logit_scale": math.log(scale),
        "init_logit_bias": bias,
        "pretrained_image": False,
        "pretrained_text": bool(weights),
        "force_image_size": size,
        "force_custom_text": text_folder is not None,
    }
    with _quiet(), _as_folder(model_cfg, spec.get("preprocess")) as location:
        try:
            if weights and "name" in weights:
                options["force_context_length"] = model_cfg["text_cfg"].get("context_length")
                net: Any = open_clip.create_model(weights["name"], pretrained=weights["pretrained"], **options)
            else:
                net = open_clip.create_model(location, load_weights=False, **options)
                if weights:
                    open_clip.load_checkpoint(net, weights["pretrained_file"])
        except Exception as error:  # open_clip raises many kinds; each means that this model cannot be had
            raise UserError(f"{spec['arch']}: {' '.join(str(error).split())}") from error
    if text_folder is not None:
        net.text = FolderText(text_folder, model_cfg["embed_dim"], spec["text_pool"], text_pretrained)
    shape = _shape(net.visual.preprocess_cfg)
    spec = {**spec, "preprocess": {**net.visual.preprocess_cfg}, "bias": bias is not None}
    with torch.no_grad():  # pretrained weights carry their own scale; a fresh bias must be what the objective asked for
        if weights is None:
            net.logit_scale.fill_(math.log(scale))
    return DualEncoder(net, spec, shape, _tokenizer(spec, text_folder), text_folder)


@contextmanager
def _as_folder(model_cfg: dict[str, Any], preprocess: dict[str, Any] | None) -> Iterator[str]:
    """The configuration as a `local-dir:` location, the public way to give open_clip one that it does not ship."""
    with tempfile.TemporaryDirectory() as folder:
        content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(content))
        yield f"local-dir:{folder}"


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns that a model without weights is random; here that is what was asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _shape(facts: dict[str, Any]) -> Preprocess:
    size = facts["size"]
    side = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and len(set(size)) != 1:
        raise UserError(f"pictures of {size} pixels: only square inputs are supported")
    known = {f.name for f in dataclasses.fields(Preprocess)}
    fill = facts.get("fill_color", 0)
    rest: dict[str, Any] = {k: v for k, v in facts.items() if k in known and k not in ("size", "mean", "std")}
    mean, std = tuple(facts["mean"]), tuple(facts["std"])
    return Preprocess(size=side, mean=mean, std=std, fill=fill if isinstance(fill, int) else 0, **rest)


def _tokenizer(spec: dict[str, Any], text_folder: Path | None) -> Tokenizer:
    import open_clip

    text = spec["model_cfg"]["text_cfg"]
    context = text.get("context_length", 77)
    if text_folder is not None:
        return Tokenizer(FolderEncode(text_folder, context), context, -1, True)
    if text.get("hf_tokenizer_name") or "siglip" in spec["arch"].lower():
        return Tokenizer(open_clip.get_tokenizer(spec["arch"], context_length=context), context, 0, False)
    encode = open_clip.SimpleTokenizer(context_length=context, **text.get("tokenizer_kwargs", {}))
    causal = not (text.get("no_causal_mask") or text.get("embed_cls") or text.get("hf_model_name"))
    pooled_at_end = text.get("pool_type", "argmax") in ("argmax", "eos") and "multimodal_cfg" not in spec["model_cfg"]
    return Tokenizer(encode, context, 0, causal and pooled_at_end)
