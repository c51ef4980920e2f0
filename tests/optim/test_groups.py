"""Where decay and which rate belong, for the towers that there are."""

import timm
import torch
from timm.optim import param_groups_layer_decay
from transformers import AutoModel, BertConfig, GPT2Config, T5Config, T5EncoderModel

from clipkit import models, optim
from clipkit.optim import Settings
from clipkit.optim.groups import groups, places
from tests.optim.nets import Net


def test_weights_decay_but_not_gains_biases_scale_or_on_request_positions() -> None:
    net = Net()
    cfg = Settings(lr=0.01, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3, decay_positions=False)
    decayed, spared = optim.build(cfg, net).param_groups
    names = {p: name for name, p in net.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {
        "visual.proj", "visual.conv1.weight",
        *(f"visual.resblocks.{i}.{part}.weight" for i in (0, 1) for part in ("fc", "back")),
    }  # fmt: skip
    assert {names[p] for p in spared["params"]} == {
        "visual.positional_embedding", "visual.conv1.bias", "logit_scale",
        *(f"visual.resblocks.{i}.{part}" for i in (0, 1) for part in ("ln.weight", "ln.bias", "fc.bias", "back.bias")),
    }  # fmt: skip
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == (0.8, 0.9) and decayed["eps"] == 1e-3 and decayed["lr"] == spared["lr"] == 0.01


def test_decay_is_open_clips() -> None:
    """`exclude` of open_clip_train/main.py 3.3; later versions spare what `no_weight_decay` names."""
    net = models.create(models.Settings(arch="tiny")).net
    named = dict(net.named_parameters())
    names = {p: name for name, p in named.items()}
    theirs = {n for n, p in named.items() if p.ndim < 2 or any(x in n for x in ("bn", "ln", "bias", "logit_scale"))}
    for positions, more in ((True, set()), (False, {"positional_embedding", "visual.positional_embedding"})):
        _, spared = optim.build(Settings(decay_positions=positions), net).param_groups
        assert {names[p] for p in spared["params"]} == theirs | more


def test_layers_learn_more_slowly_the_deeper_they_lie() -> None:
    net = models.create(models.Settings(arch="tiny")).net  # 4 layers see, 3 read
    optimizer = optim.build(Settings(layer_decay=0.5), net)
    optim.set_lr(optimizer, 64.0)
    names = {p: name for name, p in net.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name in ("logit_scale", "visual.proj", "visual.ln_post.weight", "text_projection", "ln_final.bias"):
        assert rates[name] == 64.0
    assert [rates[f"visual.transformer.resblocks.{i}.attn.in_proj_weight"] for i in range(4)] == [4.0, 8.0, 16.0, 32.0]
    assert [rates[f"transformer.resblocks.{i}.ln_1.bias"] for i in range(3)] == [8.0, 16.0, 32.0]
    for name in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight"):
        assert rates[f"visual.{name}"] == 2.0
    assert rates["token_embedding.weight"] == rates["positional_embedding"] == 4.0
    assert optimizer.param_groups[0]["lr"] == 64.0  # the rate that is logged


def test_trunks_of_timm_decay_as_in_timm() -> None:
    for name in ("vit_tiny_patch16_224", "resnet18", "eva02_tiny_patch14_224"):
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=10)
        theirs = {
            p: group["lr_scale"] for group in param_groups_layer_decay(trunk, layer_decay=0.5) for p in group["params"]
        }
        ours = places(f"visual.trunk.{key}" for key, _ in trunk.named_parameters())
        for key, p in trunk.named_parameters():
            if not key.startswith("norm."):  # timm counts the last norm to the last block
                assert 0.5 ** ours[f"visual.trunk.{key}"].above == theirs[p], key


def test_text_towers_of_transformers_have_their_layers_found() -> None:
    sizes = {"vocab_size": 8, "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4}
    with torch.device("meta"):
        bert = AutoModel.from_config(BertConfig(num_hidden_layers=2, **sizes))
        gpt = AutoModel.from_config(GPT2Config(vocab_size=8, n_embd=4, n_layer=2, n_head=1))
        t5 = T5EncoderModel(T5Config(vocab_size=8, d_model=4, d_kv=4, d_ff=4, num_layers=2, num_heads=1))
    wanted = {
        "embeddings.LayerNorm.weight": 3, "encoder.layer.0.attention.self.query.weight": 2,
        "encoder.layer.1.output.dense.bias": 1, "wpe.weight": 3, "h.0.ln_1.weight": 2, "h.1.mlp.c_fc.weight": 1,
        "ln_f.weight": 0, "shared.weight": 3, "encoder.block.0.layer.0.SelfAttention.q.weight": 2,
        "encoder.block.1.layer.1.layer_norm.weight": 1, "encoder.final_layer_norm.weight": 0,
    }  # fmt: skip
    for model in (bert, gpt, t5):
        found = places([*(f"text.transformer.{key}" for key, _ in model.named_parameters()), "text.proj.0.weight"])
        assert found["text.proj.0.weight"].above == 0
        for key, above in wanted.items():
            if f"text.transformer.{key}" in found:
                assert found[f"text.transformer.{key}"].above == above, key
    assert sum(f"text.transformer.{key}" in found for key in wanted) == 4  # of T5, the last


def test_the_stem_of_a_resnet_and_the_last_norm_of_an_efficientnet_are_told_apart() -> None:
    names = [
        "conv1.weight",
        "bn3.weight",
        "layer1.0.conv1.weight",
        "layer2.0.bn2.weight",
        "attnpool.positional_embedding",
    ]
    assert [place.above for place in places(f"visual.{name}" for name in names).values()] == [3, 3, 2, 1, 0]
    last = places(["visual.trunk.blocks.0.0.conv.weight", "visual.trunk.bn2.weight"])
    assert [place.above for place in last.values()] == [1, 0]


def test_only_matrices_inside_layers_are_muons() -> None:
    net = Net()
    names = {p: name for name, p in net.named_parameters()}
    hidden = [names[p] for group in groups(Settings(), net, matrices=True) if group["hidden"] for p in group["params"]]
    assert hidden == [f"visual.resblocks.{i}.{part}.weight" for i in (0, 1) for part in ("fc", "back")]
