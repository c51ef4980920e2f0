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

import torch
from pydantic import Field

from clipkit import config
from clipkit.captions import FolderEncode, Tokenizer, clip_encode
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


def create(cfg: Settings, scale: float | None = None, bias: float | None = None) -> DualEncoder:
    """A dual encoder whose similarities start with `scale` (the factor) and `bias` (null: it has none), unless weights
    that it starts from carry their own; without a `scale`, both are as the architecture has them.

    Raises: UserError when the architecture, its weights or the text folder are not to be had.
    """
    import open_clip

    name, model_cfg = _architecture(cfg)
    text_folder = Path(cfg.text) if cfg.text else None
    options = _options(model_cfg, text_folder)
    if scale is not None:
        options["init_logit_scale"] = math.log(scale)
        if bias is not None:
            options["init_logit_bias"] = bias
    with _as_folder(model_cfg, None) as location, _one_line(cfg.arch):
        if name is None:
            net: Any = open_clip.create_model(location, load_weights=False, **options)
            if cfg.pretrained:
                open_clip.load_checkpoint(net, cfg.pretrained)
        else:
            options["force_context_length"] = model_cfg["text_cfg"].get("context_length")
            net = open_clip.create_model(name, pretrained=cfg.pretrained, **{**options, "pretrained_text": True})
    if scale is not None and bias is None:
        net.logit_bias = None  # an unused weight would break training on several ranks
    spec = {"arch": cfg.arch, "model_cfg": model_cfg, "text_pool": cfg.text_pool if cfg.text else None}
    return _dress(net, spec, text_folder, cfg.text_pretrained)


def rebuild(spec: dict[str, Any], text_folder: Path | None) -> DualEncoder:
    """The dual encoder of a model.yaml, with random weights for the caller to replace."""
    import open_clip

    options = _options(spec["model_cfg"], text_folder)
    with _as_folder(spec["model_cfg"], spec["preprocess"]) as location, _one_line(spec["arch"]):
        bias = 0.0 if spec["bias"] else None
        net = open_clip.create_model(location, load_weights=False, init_logit_bias=bias, **options)
    return _dress(net, spec, text_folder, False)


def outline(cfg: Settings, bias: bool) -> DualEncoder:
    """The dual encoder of `cfg`, with or without a bias, whose weights are read from nowhere.

    Raises: UserError when there is no such architecture or text folder.
    """
    text_folder = Path(cfg.text) if cfg.text else None
    _, model_cfg = _architecture(cfg)
    pool = cfg.text_pool if cfg.text else None
    spec = {"arch": cfg.arch, "model_cfg": model_cfg, "text_pool": pool, "preprocess": None, "bias": bias}
    return rebuild(spec, text_folder)


def needs(cfg: Settings) -> tuple[Tokenizer, int]:
    """What a model asks of its data, without building it: its tokenizer, and the side of its pictures in pixels.

    Raises: UserError when there is no such architecture or text folder.
    """
    if cfg.text and not Path(cfg.text).is_dir():
        raise UserError(f"model.text={cfg.text}: no such folder")
    _, model_cfg = _architecture(cfg)
    side = model_cfg["vision_cfg"].get("image_size", 224)
    spec = {"arch": cfg.arch, "model_cfg": model_cfg}
    return _tokenizer(spec, Path(cfg.text) if cfg.text else None), side if isinstance(side, int) else side[0]


def _options(model_cfg: dict[str, Any], text_folder: Path | None) -> dict[str, Any]:
    """What every model is built with: a scale of one dimension, which FSDP needs, and no towers fetched from a hub."""
    return {
        "device": torch.get_default_device(),
        "nonscalar_logit_scale": True,
        "pretrained_image": False,
        "pretrained_text": False,
        "force_image_size": model_cfg["vision_cfg"].get("image_size", 224),
        "force_custom_text": text_folder is not None,
    }


def _dress(net: Any, spec: dict[str, Any], text_folder: Path | None, text_pretrained: bool) -> DualEncoder:
    """An open_clip model with its text tower replaced where there is a folder, and all that is needed to feed it."""
    if text_folder is not None:
        net.text = FolderText(text_folder, spec["model_cfg"]["embed_dim"], spec["text_pool"], text_pretrained)
    preprocess = net.visual.preprocess_cfg
    spec = {**spec, "preprocess": {**preprocess}, "bias": net.logit_bias is not None}
    return DualEncoder(net, spec, _shape(preprocess), _tokenizer(spec, text_folder), text_folder)


def _architecture(cfg: Settings) -> tuple[str | None, dict[str, Any]]:
    """(name that open_clip knows it by or None, its model_cfg with the settings' sizes)."""
    import open_clip

    if cfg.arch.startswith(LOCATIONS) or cfg.arch in open_clip.list_models():
        with _one_line(cfg.arch):
            name, model_cfg = cfg.arch, open_clip.get_model_config(cfg.arch)
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


@contextmanager
def _as_folder(model_cfg: dict[str, Any], preprocess: dict[str, Any] | None) -> Iterator[str]:
    """The configuration as a `local-dir:` location, the public way to give open_clip one that it does not ship."""
    with tempfile.TemporaryDirectory() as folder:
        content = {"model_cfg": model_cfg, "preprocess_cfg": preprocess or {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(content))
        yield f"local-dir:{folder}"


@contextmanager
def _one_line(arch: str) -> Iterator[None]:
    """Whatever open_clip raises becomes one line for the user; its warning that weights are random, as was asked for,
    goes unsaid."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except Exception as error:  # open_clip raises many kinds; each means that this model cannot be had
        raise UserError(f"{arch}: {' '.join(str(error).split())}") from error
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
    from open_clip.tokenizer import HFTokenizer

    text = spec["model_cfg"]["text_cfg"]
    context = text.get("context_length", 77)
    if text_folder is not None:
        return Tokenizer(FolderEncode(text_folder, context), context, -1, True)
    known = spec["arch"].startswith(LOCATIONS) or spec["arch"] in open_clip.list_models()
    if text.get("hf_tokenizer_name") or (known and "siglip" in spec["arch"].lower()):
        with _one_line(spec["arch"]):
            if known:
                encode = open_clip.get_tokenizer(spec["arch"], context_length=context)
            else:  # open_clip would give CLIP's for a name that it does not know
                kwargs = text.get("tokenizer_kwargs", {})
                encode = HFTokenizer(text["hf_tokenizer_name"], context_length=context, **kwargs)
        return Tokenizer(encode, context, 0, False)
    encode = clip_encode(open_clip.SimpleTokenizer(context_length=context, **text.get("tokenizer_kwargs", {})))
    causal = not (text.get("no_causal_mask") or text.get("embed_cls") or text.get("hf_model_name"))
    pooled_at_end = text.get("pool_type", "argmax") in ("argmax", "eos") and "multimodal_cfg" not in spec["model_cfg"]
    return Tokenizer(encode, context, 0, causal and pooled_at_end)
