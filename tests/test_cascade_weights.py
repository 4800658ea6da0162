"""StableCascade's stages B and C and Wuerstchen's prior beside diffusers, every weight random: the
same answers, gradients, loss and sample, under the names of diffusers and of the original."""

import json
import math
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from helpers.models import Bomb, awake, close, edit, rewrite, same
from safetensors.torch import save_file

from minisora import cascade_folders as F
from minisora.cascade import CASCADE_PRESETS, CascadeUNet, CascadeUNetConfig, add_time
from minisora.core.hub import MODELS
from minisora.models import cascade_weights as W
from minisora.models.cascade_blocks import ResidualBlock
from minisora.models.wuerstchen import WuerstchenPrior, WuerstchenPriorConfig

ATTENDS = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]
PLAIN = ATTENDS[:2]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLOSE = 1e-5

C = dict(
    in_channels=4,
    out_channels=4,
    conditioning_dim=24,
    block_out_channels=[32, 48],
    num_attention_heads=[2, 3],
    down_num_layers_per_block=[1, 2],
    up_num_layers_per_block=[2, 1],
    block_types_per_layer=[ATTENDS, ATTENDS],
    clip_text_in_channels=6,
    clip_text_pooled_in_channels=8,
    clip_image_in_channels=5,
    clip_seq=3,
    switch_level=[False],
    timestep_ratio_embedding_dim=16,
)
B = dict(
    in_channels=4,
    out_channels=4,
    patch_size=2,
    conditioning_dim=24,
    block_out_channels=[16, 32, 48],
    num_attention_heads=[-1, 2, 3],
    down_num_layers_per_block=[1, 2, 1],
    up_num_layers_per_block=[1, 2, 1],
    down_blocks_repeat_mappers=[1, 1, 1],
    up_blocks_repeat_mappers=[3, 2, 2],
    block_types_per_layer=[PLAIN, PLAIN, ATTENDS],
    clip_text_pooled_in_channels=8,
    effnet_in_channels=6,
    pixel_mapper_in_channels=3,
    dropout=[0.0, 0.0, 0.1],
    timestep_conditioning_type=["sca"],
    timestep_ratio_embedding_dim=16,
)


def pair(config, seed=1):
    "diffusers' network with random weights, and ours with the same."
    from diffusers import StableCascadeUNet

    theirs = awake(StableCascadeUNet(**config), std=0.15, seed=seed).eval()
    return theirs, F.from_diffusers_cascade(theirs.state_dict(), dict(theirs.config))


def inputs(config, size=(8, 8), seed=2, n=2):
    "What diffusers is given, and the same for ours: x, t, y and more."
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(n, *shape, generator=g)

    x = rand(config["in_channels"], *size)
    ratio = torch.rand(n, generator=g)
    pooled = rand(1, 8)
    told = dict(clip_text_pooled=pooled)
    y = pooled[:, 0]
    if config.get("clip_text_in_channels"):
        told |= dict(clip_text=rand(7, 6), clip_img=rand(1, 5))
        y = torch.cat([y, told["clip_text"].flatten(1), told["clip_img"][:, 0]], 1)
    more = {}
    if config.get("effnet_in_channels"):
        told |= dict(effnet=rand(6, 3, 2))
        more |= dict(code=told["effnet"][:, :, None])
    if config.get("pixel_mapper_in_channels"):
        told |= dict(pixels=rand(3, 5, 7))
        more |= dict(pixels=told["pixels"][:, :, None])
    # the times of ours run the other way; in float64 none of the ratio's digits are lost
    return (x, ratio, told), (1 - ratio.double(), y, more)


def answers(theirs, ours, x, ratio, told, t, y, more):
    "The two networks' answers to the same question, (B, C, H, W)."
    return ours(x[:, :, None], t, y, **more)[:, :, 0], theirs(x, ratio, **told).sample


def both(config, size=(8, 8), seed=1):
    theirs, ours = pair(config, seed)
    given, mine = inputs(config, size)
    return answers(theirs, ours, *given, *mine)


# ---------------------------------------------------------------- the same answers

VARIANTS = {
    "C": C,
    "C, bilinear": C | dict(switch_level=[True]),
    "C, strided": C | dict(switch_level=None),
    "C, repeats": C | dict(down_blocks_repeat_mappers=[1, 2], up_blocks_repeat_mappers=[3, 2]),
    "C, no self-attention": C | dict(self_attn=False),
    "C, of each level": C | dict(self_attn=[False, False], dropout=[0.2, 0.0]),
    "C, one ratio": C | dict(timestep_conditioning_type=[]),
    "C, crp": C | dict(timestep_conditioning_type=["crp"]),
    "C, one token": C | dict(clip_seq=1),
    "C, kernel": C | dict(kernel_size=5),
    "C, odd numbers": C | dict(timestep_ratio_embedding_dim=15),
    "C, pooled alone": C | dict(clip_text_in_channels=None, clip_image_in_channels=None),
    "C, patches": C | dict(patch_size=2),
    "C, one level": C
    | dict(
        block_out_channels=[32],
        num_attention_heads=[2],
        down_num_layers_per_block=[1],
        up_num_layers_per_block=[2],
        block_types_per_layer=[ATTENDS],
        down_blocks_repeat_mappers=[1],
        up_blocks_repeat_mappers=[1],
        switch_level=None,
        dropout=[0.1],
    ),
    "B": B,
    "B, no pixels": B | dict(pixel_mapper_in_channels=None),
    "B, attends on top": B
    | dict(block_types_per_layer=[PLAIN, ATTENDS, PLAIN], self_attn=[True, False, True]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_answers(name):
    with torch.no_grad():
        close(*both(VARIANTS[name]), rel=CLOSE)


@pytest.mark.parametrize("name, size", [("C, bilinear", (7, 9)), ("C", (5, 3)), ("B", (18, 14))])
def test_answers_of_odd_sizes(name, size):
    "What comes up again is larger or smaller than what went down, and is resized."
    with torch.no_grad():
        close(*both(VARIANTS[name], size), rel=CLOSE)


def test_what_stage_b_is_not_told():
    "No pixels are black ones; no code is the original's dropped one, zeros (diffusers skips it)."
    theirs, ours = pair(B)
    (x, ratio, told), (t, y, more) = inputs(B)
    with torch.no_grad():
        del told["pixels"], more["pixels"]
        close(*answers(theirs, ours, x, ratio, told, t, y, more), rel=CLOSE)
        told["effnet"] = torch.zeros_like(told["effnet"])
        close(*answers(theirs, ours, x, ratio, told, t, y, {}), rel=CLOSE)


def test_a_clip_is_answered_frame_by_frame():
    theirs, ours = pair(C)
    (x, ratio, told), (t, y, _) = inputs(C)
    (x2, *_), _ = inputs(C, seed=3)
    with torch.no_grad():
        clip = ours(torch.stack([x, x2], 2), t, y)
        close(clip[:, :, 1], theirs(x2, ratio, **told).sample, rel=CLOSE)


def test_half_precision():
    _, ours = pair(B)
    _, (t, y, more) = inputs(B)
    (x, *_), _ = inputs(B)
    more = {k: v.bfloat16() for k, v in more.items()}
    with torch.no_grad():
        full = ours(x[:, :, None], t, y, **{k: v.float() for k, v in more.items()})
        half = ours.bfloat16()(x[:, :, None].bfloat16(), t, y, **more)
    assert half.dtype == torch.bfloat16
    assert (half - full).abs().mean() < 0.1 * full.abs().mean()


# ---------------------------------------------------------------- training


def noisy(x, ratio):
    "The original's noisy x and its noise: cosine schedule, variance preserving."
    from diffusers import DDPMWuerstchenScheduler

    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    return DDPMWuerstchenScheduler().add_noise(x, noise, ratio), noise


@pytest.mark.parametrize("name", ["C, bilinear", "C, repeats", "B"])
def test_one_training_step(name):
    "Loss, gradients of all weights and of the input, and the loss after a step along them."
    config = VARIANTS[name]
    theirs, ours = pair(config)
    (x, ratio, told), (t, y, more) = inputs(config)
    x, noise = noisy(x, ratio)
    inside = [x.clone().requires_grad_() for _ in range(2)]

    def losses():
        mine = ours(inside[0][:, :, None], t, y, **more)[:, :, 0]
        yours = theirs(inside[1], ratio, **told).sample
        return [(answer - noise).square().mean() for answer in (mine, yours)]

    before = losses()
    for loss in before:
        loss.backward()
    close(*[x.grad for x in inside], rel=3 * CLOSE)
    gradients = {k: p.grad for k, p in theirs.named_parameters()}
    most = max(g.abs().max() for g in gradients.values())
    for key, (name, _) in W.diffusers_names(ours.state_dict()).items():
        own = ours.get_parameter(key).grad
        assert (own - gradients[name]).abs().max() <= CLOSE * most, key
    for model in (ours, theirs):
        torch.optim.SGD(model.parameters(), 1e-3).step()
    after = losses()
    for mine, yours in (before, after):
        assert mine.item() == pytest.approx(yours.item(), rel=CLOSE)
    assert after[0] < before[0]


def test_dropout_of_a_level():
    "Without attention the two drop the same numbers, drawn in the same order."
    config = B | dict(block_types_per_layer=[PLAIN] * 3, dropout=[0.0, 0.3, 0.0])
    theirs, ours = pair(config)
    assert ours.config.dropouts == (0.0, 0.3, 0.0)
    (x, ratio, told), (t, y, more) = inputs(config)
    found = []
    for model in (ours.train(), theirs.train()):
        torch.manual_seed(5)
        with torch.no_grad():
            one = model is ours
            found.append(
                model(x[:, :, None], t, y, **more)[:, :, 0]
                if one
                else model(x, ratio, **told).sample
            )
    close(*found, rel=CLOSE)
    with torch.no_grad():
        assert (ours.eval()(x[:, :, None], t, y, **more)[:, :, 0] - found[0]).abs().max() > 0.01


def test_dropout_of_attention():
    "The original drops weights of attention; diffusers drops numbers behind it. In use neither."
    _, ours = pair(C | dict(dropout=[0.0, 0.5]))
    blocks = [b for layers in (*ours.down, *ours.up) for layer in layers for b in layer]
    for block in blocks:
        if isinstance(block, ResidualBlock):
            block.channelwise[3].p = 0.0
    (x, *_), (t, y, _) = inputs(C)
    with torch.no_grad():
        a, b = [ours.train()(x[:, :, None], t, y) for _ in range(2)]
        assert not torch.equal(a, b)
        a, b = [ours.eval()(x[:, :, None], t, y) for _ in range(2)]
    assert torch.equal(a, b)


# ---------------------------------------------------------------- a whole sample


def sampled(model, start, steps=20):
    "diffusers' own sampler with a model (x, ratio) -> noise."
    from diffusers import DDPMWuerstchenScheduler

    scheduler = DDPMWuerstchenScheduler()
    scheduler.set_timesteps(steps)
    g = torch.Generator().manual_seed(4)
    x = start
    for ratio in scheduler.timesteps[:-1]:
        ratio = ratio.expand(len(x))
        with torch.no_grad():
            x = scheduler.step(model(x, ratio), ratio, x, generator=g).prev_sample
    return x


@pytest.mark.parametrize("config, size", [(C, (6, 6)), (B, (16, 16))], ids=["C", "B"])
def test_a_sample_of_20_steps(config, size):
    theirs, ours = pair(config)
    (x, _, told), (_, y, more) = inputs(config, size)

    def mine(x, ratio):
        return ours(x[:, :, None], 1 - ratio.double(), y, **more)[:, :, 0]

    yours = sampled(lambda x, ratio: theirs(x, ratio, **told).sample, x)
    close(sampled(mine, x), yours, rel=CLOSE)


# ---------------------------------------------------------------- folders of diffusers


@pytest.mark.parametrize("config", [C, B, VARIANTS["C, strided"]], ids=["C", "B", "strided"])
def test_a_folder_there_and_back(tmp_path, config):
    from diffusers import StableCascadeUNet

    theirs, ours = pair(config)
    F.save_diffusers_cascade(ours, tmp_path / "ours")
    again = StableCascadeUNet.from_pretrained(tmp_path / "ours")
    assert same(again.state_dict(), theirs.state_dict())
    public = {k: v for k, v in theirs.config.items() if k[0] != "_"}
    heads = [max(n, 0) for n in public.pop("num_attention_heads")]
    heads = [n if len(kinds) > 2 else 0 for n, kinds in zip(heads, public["block_types_per_layer"])]
    plain = json.loads(json.dumps({k: v for k, v in again.config.items() if k[0] != "_"}))
    assert plain.pop("num_attention_heads") == heads
    assert plain == json.loads(json.dumps(public))
    theirs.save_pretrained(tmp_path / "theirs")
    back = F.load_diffusers_cascade(tmp_path / "theirs", size=(2, 16, 16))
    assert same(back.state_dict(), ours.state_dict()) and not back.training
    assert back.config == replace(ours.config, size=(2, 16, 16))


def test_shards_variants_and_parts(tmp_path):
    "As the published ones lie there: in a pipeline's folder, in shards, in bfloat16."
    theirs, ours = pair(C)
    theirs.save_pretrained(tmp_path / "prior", max_shard_size="100kB", variant="bf16")
    assert len(list((tmp_path / "prior").glob("*.safetensors"))) > 1
    back = F.load_diffusers_cascade(tmp_path, variant="bf16", torch_dtype="bfloat16")
    assert same(back.state_dict(), ours.bfloat16().state_dict())
    lite, other = pair(B, seed=7)
    lite.save_pretrained(tmp_path / "decoder_lite", safe_serialization=False)  # a pickle
    back = F.load_diffusers_cascade(tmp_path, "decoder_lite")
    assert same(back.state_dict(), other.state_dict()) and back.config.size == (1, 256, 256)
    with pytest.raises(FileNotFoundError, match="prior.*fp16"):
        F.load_diffusers_cascade(tmp_path, variant="fp16")
    with pytest.raises(FileNotFoundError, match="config.json"):
        F.load_diffusers_cascade(tmp_path, "decoder")


def spoil(folder, change):
    edit(folder, change, WEIGHTS)


def test_weights_that_do_not_fit(tmp_path):
    theirs, _ = pair(C)
    theirs.save_pretrained(tmp_path / "whole")
    key = "down_blocks.1.2.attention.to_out.0.weight"
    cases = {
        f"missing key '{key}'": lambda s: s.pop(key),
        "unexpected key 'up_blocks.9.0.x'": lambda s: s.update({"up_blocks.9.0.x": torch.ones(2)}),
        rf"'{key}' has shape \(48, 24\), not \(48, 48\)": lambda s: s.update(
            {key: s[key][:, :24].contiguous()}
        ),
        "NaN": lambda s: s[key].fill_(math.nan),
    }
    for i, (said, change) in enumerate(cases.items()):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        spoil(folder, change)
        with pytest.raises(ValueError, match=said) as e:
            F.load_diffusers_cascade(folder)
        assert str(folder) in str(e.value) and "\n" not in str(e.value)


FIELDS = {
    "self_atn": (dict(self_atn=True), "no StableCascadeUNet has 'self_atn'; did you mean 'self_at"),
    "class": (dict(_class_name="UNet2DModel"), "_class_name must be one of 'StableCascadeUNet'"),
    "channels": (dict(out_channels=8), "out_channels=8 must be in_channels=4"),
    "image": (dict(clip_image_in_channels=None), "diffusers ignores either alone"),
    "block": (dict(block_types_per_layer=[["F"], ATTENDS]), "block_types_per_layer must be"),
    "blocks": (dict(block_types_per_layer=3), "block_types_per_layer must be a list, not 3"),
    "mixed": (dict(self_attn=[True, False]), "self_attn must be one for all levels"),
    "attn": (dict(self_attn="yes"), "self_attn must be true, false"),
    "heads": (dict(num_attention_heads=[5, 3]), "heads: 5 do not divide the width 32"),
    "no heads": (dict(num_attention_heads=[2]), "heads must have 2 entries"),
    "widths": (dict(block_out_channels=7), "config.json"),
    "repeats": (dict(up_blocks_repeat_mappers=[1]), "up_repeats must have 2 entries"),
    "dropout": (dict(dropout=[0.1]), "dropout must have 2 entries"),
    "large": (dict(block_out_channels=[9000, 9000]), "config.json"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_that_do_not_fit(tmp_path, name):
    fields, said = FIELDS[name]
    pair(C)[0].save_pretrained(tmp_path)
    rewrite(tmp_path, **fields)
    with pytest.raises(ValueError, match=said) as e:
        F.load_diffusers_cascade(tmp_path)
    assert "config.json" in str(e.value) and "\n" not in str(e.value)


def test_nothing_is_unpickled(tmp_path):
    theirs, ours = pair(C)
    theirs.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({"clf.1.weight": Bomb()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="nothing is unpickled"):
        F.load_diffusers_cascade(tmp_path)
    with pytest.raises(ValueError, match="nothing is unpickled"):
        F.load_original_cascade(tmp_path / "diffusion_pytorch_model.bin", ours.config)


def test_what_others_cannot_hold(tmp_path):
    _, ours = pair(C)
    seeing = dict(code_channels=4, pixel_channels=108, preview=8)
    for model, said in (
        (add_time(ours, 2), "CascadeUNetConfig.temporal"),
        (CascadeUNet(replace(ours.config, **seeing)), "CascadeUNetConfig.preview"),
        (CascadeUNet(CASCADE_PRESETS["c-tiny"]), "CascadeUNetConfig.prompt"),
    ):
        for save in (F.save_diffusers_cascade, F.save_original_cascade):
            with pytest.raises(ValueError, match=said):
                save(model, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the original's names

# one layer a level, read off modules/stage_c.py and modules/common.py at 7a7d341
RESIDUAL = """depthwise.weight depthwise.bias channelwise.0.weight channelwise.0.bias
 channelwise.2.gamma channelwise.2.beta channelwise.4.weight channelwise.4.bias""".split()
ATTENTION = """attention.attn.in_proj_weight attention.attn.in_proj_bias
 attention.attn.out_proj.weight attention.attn.out_proj.bias kv_mapper.1.weight
 kv_mapper.1.bias""".split()


def layers(*names):
    return {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}


def blocks(place, first, attends, *conds):
    "The names of one layer of the original, whose first block is number `first` of its level."
    names = {f"{place}.{first}.{k}" for k in RESIDUAL}
    names |= layers(*(f"{place}.{first + 1}.{k}" for k in ("mapper", *conds)))
    return names | {f"{place}.{first + 2}.{k}" for k in ATTENTION * attends}


ORIGINAL_C = (
    layers("clip_txt_mapper", "clip_txt_pooled_mapper", "clip_img_mapper", "embedding.1", "clf.1")
    | blocks("down_blocks.0", 0, True, "mapper_sca", "mapper_crp")
    | blocks("down_blocks.1", 0, True, "mapper_sca", "mapper_crp")
    | blocks("down_blocks.1", 3, True, "mapper_sca", "mapper_crp")
    | blocks("up_blocks.0", 0, True, "mapper_sca", "mapper_crp")
    | blocks("up_blocks.0", 3, True, "mapper_sca", "mapper_crp")
    | blocks("up_blocks.1", 0, True, "mapper_sca", "mapper_crp")
    | layers("down_downscalers.1.1.blocks.0", "up_upscalers.0.1.blocks.1")
)
ORIGINAL_B = (
    layers("clip_mapper", "embedding.1", "clf.1")
    | layers("effnet_mapper.0", "effnet_mapper.2", "pixels_mapper.0", "pixels_mapper.2")
    | blocks("down_blocks.0", 0, False, "mapper_sca")
    | blocks("down_blocks.1", 0, False, "mapper_sca")
    | blocks("down_blocks.1", 2, False, "mapper_sca")
    | blocks("down_blocks.2", 0, True, "mapper_sca")
    | blocks("up_blocks.0", 0, True, "mapper_sca")
    | blocks("up_blocks.1", 0, False, "mapper_sca")
    | blocks("up_blocks.1", 2, False, "mapper_sca")
    | blocks("up_blocks.2", 0, False, "mapper_sca")
    | layers("down_downscalers.1.1", "down_downscalers.2.1", "up_upscalers.0.1", "up_upscalers.1.1")
    | layers("up_repeat_mappers.0.0", "up_repeat_mappers.0.1")
    | layers("up_repeat_mappers.1.0", "up_repeat_mappers.2.0")
)
STAGES = dict(C=(C, ORIGINAL_C), B=(B, ORIGINAL_B))


@pytest.mark.parametrize("stage", STAGES)
def test_the_original_names_there_and_back(tmp_path, stage):
    from diffusers import StableCascadeUNet
    from diffusers.loaders import single_file_utils as S

    config, names = STAGES[stage]
    theirs, ours = pair(config)
    state = F.original_cascade_state(ours)
    assert set(state) == names
    place = "down_blocks.1.2." if stage == "C" else "down_blocks.2.2."
    assert state[f"{place}attention.attn.in_proj_weight"].shape == (144, 48)
    assert state[f"{place}attention.attn.in_proj_bias"].shape == (144,)
    # diffusers' own way from the original's names to its own
    found = StableCascadeUNet(**config)
    found.load_state_dict(S.convert_stable_cascade_unet_single_file_to_diffusers(dict(state)))
    assert same(found.state_dict(), theirs.state_dict())
    F.save_original_cascade(ours, tmp_path / "stage.safetensors")
    torch.save(dict(state_dict=state), tmp_path / "stage.pt")
    for file in ("stage.safetensors", "stage.pt"):
        back = F.load_original_cascade(tmp_path / file, ours.config)
        assert same(back.state_dict(), ours.state_dict()) and not back.training
    wrapped = {f"module.{k}": v for k, v in state.items()}
    assert same(
        F.load_original_cascade(wrapped, ours.config).state_dict(),
        ours.state_dict(),
    )


def test_original_weights_that_do_not_fit(tmp_path):
    _, ours = pair(C)
    state = F.original_cascade_state(ours)
    key = "up_blocks.0.5.attention.attn.in_proj_weight"
    cases = {
        f"missing key '{key}'": lambda s: s.pop(key),
        "unexpected key 'clip_mapper.bias'": lambda s: s.update({"clip_mapper.bias": s[key] + 1}),
        rf"'{key}' has shape \(48, 48\), not \(144, 48\)": lambda s: s.update({key: s[key][:48]}),
    }
    for said, change in cases.items():
        broken = dict(state)
        change(broken)
        with pytest.raises(ValueError, match=said):
            F.load_original_cascade(broken, ours.config)
        file = tmp_path / "w.safetensors"
        save_file({k: v.contiguous() for k, v in broken.items()}, file)
        with pytest.raises(ValueError, match=said) as e:
            F.load_original_cascade(file, ours.config)
        assert str(file) in str(e.value)
    with pytest.raises(ValueError, match="did|must be one of"):
        F.load_original_cascade(state, "c-ful")
    with pytest.raises(ValueError, match="must end in .safetensors"):
        F.save_original_cascade(ours, tmp_path / "a.pt")


NEITHER = {
    "pixel_channels": dict(pixel_channels=3),
    "resize": dict(resize=()),
}


@pytest.mark.parametrize("field", NEITHER)
def test_what_neither_stage_of_the_original_has(field):
    _, ours = pair(C)
    with pytest.raises(ValueError, match=f"CascadeUNetConfig.{field}: the original's stage C"):
        W.check_original(replace(ours.config, **NEITHER[field]))


def test_what_stage_b_of_the_original_has():
    _, ours = pair(B)
    for field, value in dict(pixel_channels=0, resize=(True, True)).items():
        with pytest.raises(ValueError, match=f"CascadeUNetConfig.{field}: the original's stage B"):
            W.check_original(replace(ours.config, **{field: value}))
    with pytest.raises(ValueError, match="stage C is told words"):
        config = replace(ours.config, code_channels=0, pixel_channels=0, resize=(True, True))
        W.check_original(config)


# ---------------------------------------------------------------- the published networks

SCRIPTS_C = dict(
    in_channels=16,
    out_channels=16,
    timestep_ratio_embedding_dim=64,
    patch_size=1,
    down_blocks_repeat_mappers=[1, 1],
    up_blocks_repeat_mappers=[1, 1],
    block_types_per_layer=[ATTENDS, ATTENDS],
    clip_text_in_channels=1280,
    clip_text_pooled_in_channels=1280,
    clip_image_in_channels=768,
    clip_seq=4,
    effnet_in_channels=None,
    pixel_mapper_in_channels=None,
    kernel_size=3,
    dropout=[0.1, 0.1],
    self_attn=True,
    timestep_conditioning_type=["sca", "crp"],
    switch_level=[False],
)
SCRIPTS_B = dict(
    in_channels=4,
    out_channels=4,
    timestep_ratio_embedding_dim=64,
    patch_size=2,
    conditioning_dim=1280,
    down_blocks_repeat_mappers=[1, 1, 1, 1],
    block_types_per_layer=[PLAIN, PLAIN, ATTENDS, ATTENDS],
    clip_text_in_channels=None,
    clip_text_pooled_in_channels=1280,
    clip_image_in_channels=None,
    clip_seq=4,
    effnet_in_channels=16,
    pixel_mapper_in_channels=3,
    kernel_size=3,
    dropout=[0, 0, 0.1, 0.1],
    self_attn=True,
    timestep_conditioning_type=["sca"],
    switch_level=None,
)
# what diffusers' scripts convert_stable_cascade.py and convert_stable_cascade_lite.py pass, and the
# number of weights that the original's classes have as train_c.py and train_b.py build them
PUBLISHED = {
    "c-full": (
        3_589_103_632,
        SCRIPTS_C
        | dict(
            conditioning_dim=2048,
            block_out_channels=[2048, 2048],
            num_attention_heads=[32, 32],
            down_num_layers_per_block=[8, 24],
            up_num_layers_per_block=[24, 8],
        ),
    ),
    "c-lite": (
        1_030_785_040,
        SCRIPTS_C
        | dict(
            conditioning_dim=1536,
            block_out_channels=[1536, 1536],
            num_attention_heads=[24, 24],
            down_num_layers_per_block=[4, 12],
            up_num_layers_per_block=[12, 4],
        ),
    ),
    "b-full": (
        1_562_941_136,
        SCRIPTS_B
        | dict(
            block_out_channels=[320, 640, 1280, 1280],
            num_attention_heads=[0, 0, 20, 20],
            down_num_layers_per_block=[2, 6, 28, 6],
            up_num_layers_per_block=[6, 28, 6, 2],
            up_blocks_repeat_mappers=[3, 3, 2, 2],
        ),
    ),
    "b-lite": (
        699_471_248,
        SCRIPTS_B
        | dict(
            block_out_channels=[320, 576, 1152, 1152],
            num_attention_heads=[0, 9, 18, 18],
            down_num_layers_per_block=[2, 4, 14, 4],
            up_num_layers_per_block=[4, 14, 4, 2],
            up_blocks_repeat_mappers=[2, 2, 2, 2],
        ),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_networks(name):
    from diffusers import StableCascadeUNet

    numbers, config = PUBLISHED[name]
    preset = CASCADE_PRESETS[name]
    W.check_original(preset)
    fields = W.fields_from_diffusers_cascade(config)
    assert CascadeUNetConfig(**fields, size=preset.size) == replace(
        preset, dropout=config["dropout"]
    )
    assert preset.dropouts == tuple(config["dropout"])
    written = W.diffusers_cascade_config(preset)
    assert written.pop("_class_name") == "StableCascadeUNet"
    kinds = config["block_types_per_layer"]
    heads = [n * (len(b) > 2) for n, b in zip(config["num_attention_heads"], kinds)]
    assert written == config | dict(num_attention_heads=heads)
    with torch.device("meta"):
        ours, theirs = CascadeUNet(preset), StableCascadeUNet(**config)
    assert sum(p.numel() for p in ours.parameters()) == numbers
    state = theirs.state_dict()
    own = ours.state_dict()
    names = W.diffusers_names(own)
    assert {names[k][0]: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}


def test_sizes_of_the_published():
    "A picture of 1024 pixels: 256 latents of stage A a side, 24 of the code."
    for name in PUBLISHED:
        assert CASCADE_PRESETS[name].size == ((1, 24, 24) if name[0] == "c" else (1, 256, 256))


# ---------------------------------------------------------------- how training starts


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_at_first(stage):
    "As the original's `_init_weights` and what follows it: bounds of Xavier's rule, and zeros."
    _, tiny = pair(STAGES[stage][0])
    state = F.original_cascade_state(CascadeUNet(tiny.config, seed=3))
    depth = sum(tiny.config.down)
    for name, value in state.items():
        transposed = name.startswith("up_upscalers.") and value.ndim == 4 and stage == "B"
        if name.startswith("up_upscalers.") and stage == "B" and not transposed:
            assert value.abs().max() > 0, name  # torch's own start
        elif value.ndim == 1 or "mapper.weight" in name or "mapper_" in name or "clf" in name:
            if "clip_" in name and value.ndim == 2:
                assert 0.015 < value.std() < 0.025, name
            else:
                assert not value.any(), name
        elif name.startswith(("effnet_mapper", "pixels_mapper")):
            assert 0.015 < value.std() < 0.025, name
        elif "channelwise.2" in name:
            assert not value.any(), name
        else:
            area = value[0, 0].numel() if value.ndim == 4 else 1
            bound = math.sqrt(6 / (area * (value.shape[0] + value.shape[1])))
            bound *= 0.02 if name.startswith("embedding") else 1
            bound *= depth**-0.5 if "channelwise.4" in name else 1
            if transposed:  # torch's: uniform, of the root of the fan in
                bound = (area * value.shape[1]) ** -0.5
            assert 0.8 * bound < value.abs().max() <= 1.0001 * bound, name


# ---------------------------------------------------------------- Wuerstchen's prior

PRIOR = dict(c_in=4, c=32, c_cond=12, c_r=16, depth=2, nhead=2, dropout=0.1)


def priors(seed=1):
    from diffusers.pipelines.deprecated.wuerstchen.modeling_wuerstchen_prior import (
        WuerstchenPrior as Theirs,
    )

    model = awake(Theirs(**PRIOR), std=0.15, seed=seed).eval()
    for p in model.out.parameters():
        p.data[4:] *= 0.1  # b: the answer is divided by |1 - b|, which should not be near zero
    return model


def test_the_prior_answers_alike(tmp_path):
    theirs = priors()
    theirs.save_pretrained(tmp_path / "prior")
    ours = F.load_wuerstchen_prior(tmp_path, size=(1, 6, 5))
    assert ours.config == WuerstchenPriorConfig((1, 6, 5), 4, 32, 2, 2, 12, 16, 0.1)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 6, 5, generator=g)
    ratio = torch.rand(3, generator=g)
    y = torch.randn(3, 7, 12, generator=g)
    inside = [x.clone().requires_grad_() for _ in range(2)]
    mine = ours(inside[0][:, :, None], 1 - ratio.double(), y)[:, :, 0]
    yours = theirs(inside[1], ratio, y)
    close(mine, yours, rel=CLOSE)
    flat = ours(x[:, :, None], 1 - ratio.double(), y.flatten(1))[:, :, 0]
    close(flat, mine, rel=CLOSE)
    for answer in (mine, yours):
        answer.square().mean().backward()
    close(*[x.grad for x in inside], rel=3 * CLOSE)
    gradients = {k: p.grad for k, p in theirs.named_parameters()}
    most = max(g.abs().max() for g in gradients.values())
    for key, (name, _) in W.prior_names(ours.state_dict()).items():
        assert (ours.get_parameter(key).grad - gradients[name]).abs().max() <= CLOSE * most, key


def test_a_sample_of_the_prior(tmp_path):
    theirs = priors()
    theirs.save_pretrained(tmp_path)
    ours = F.load_wuerstchen_prior(tmp_path)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 5, 6, generator=g)
    y = torch.randn(2, 7, 12, generator=g)
    yours = sampled(lambda x, ratio: theirs(x, ratio, y), x)
    mine = sampled(lambda x, ratio: ours(x[:, :, None], 1 - ratio.double(), y)[:, :, 0], x)
    close(mine, yours, rel=CLOSE)


def test_the_prior_there_and_back(tmp_path):
    theirs = priors()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = F.load_wuerstchen_prior(tmp_path / "theirs")
    F.save_wuerstchen_prior(ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert same(again.state_dict(), theirs.state_dict())
    assert all(again.config[k] == v for k, v in PRIOR.items())
    ours.save_pretrained(tmp_path / "own")
    assert MODELS["wuerstchen-prior"] is WuerstchenPrior
    assert same(
        WuerstchenPrior.from_pretrained(tmp_path / "own").state_dict(),
        ours.state_dict(),
    )
    rewrite(tmp_path / "theirs", dept=3)
    with pytest.raises(ValueError, match="no WuerstchenPrior has 'dept'"):
        F.load_wuerstchen_prior(tmp_path / "theirs")
    spoil(tmp_path / "ours", lambda s: s.update({"blocks.4.mapper.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"'blocks.4.mapper.bias' has shape \(3,\), not \(64,\)"):
        F.load_wuerstchen_prior(tmp_path / "ours")


def test_what_the_prior_refuses():
    ours = WuerstchenPrior(WuerstchenPriorConfig((1, 4, 4), 4, 32, 1, 2, 12, 16))
    x = torch.zeros(2, 4, 1, 4, 4)
    assert ours(x, torch.zeros(2)).shape == x.shape  # told nothing
    with pytest.raises(ValueError, match=r"x must be \(B, 4, T, H, W\)"):
        ours(x[:, :2], torch.zeros(2))
    with pytest.raises(ValueError, match=r"y must be \(2, M, 12\), flat or not, not \(2, 13\)"):
        ours(x, torch.zeros(2), torch.zeros(2, 13))
    with pytest.raises(ValueError, match="heads: 5 do not divide the width 32"):
        WuerstchenPriorConfig(width=32, heads=5)


# ---------------------------------------------------------------- the original's compressor


@pytest.fixture(scope="module")
def compressor():
    from minisora.latents.efficientnet import EfficientNetCompressor

    try:
        model = EfficientNetCompressor(chunk=2)
    except ImportError:
        pytest.skip("optional package torchvision is not installed")
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    return model


def test_the_compressor_beside_its_layers(compressor):
    "Written out with torchvision's own network, a picture at a time."
    import torchvision

    net = torchvision.models.efficientnet_v2_s(weights=None).eval()
    net.features.load_state_dict(compressor.backbone.state_dict())
    clips = torch.rand(2, 3, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    code = compressor.train().encode(clips)
    assert code.shape == (2, 16, 3, 2, 3) and not compressor.training
    picture = torchvision.transforms.functional.normalize(
        (clips[1:, :, 2] + 1) / 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        h = net.features(picture)
        conv, norm = compressor.mapper
        h = torch.einsum("bchw,dc->bdhw", h, conv.weight[:, :, 0, 0])
        mean, var = (b[:, None, None] for b in (norm.running_mean, norm.running_var))
        h = (h - mean) / (var + 1e-5).sqrt()
    close(code[1:, :, 2], h)
    with pytest.raises(ValueError, match="multiples of 32"):
        compressor.encode(clips[..., :90])


def test_the_compressor_reads_the_original(compressor, tmp_path):
    from minisora.latents.efficientnet import EfficientNetCompressor

    state = compressor.state_dict()
    assert {k.split(".")[0] for k in state} == {"backbone", "mapper"}
    assert {k for k in state if k.startswith("mapper")} == {
        "mapper.0.weight",
        "mapper.1.running_mean",
        "mapper.1.running_var",
        "mapper.1.num_batches_tracked",
    }
    save_file(state, tmp_path / "effnet_encoder.safetensors")
    again = EfficientNetCompressor.from_file(tmp_path / "effnet_encoder.safetensors")
    assert same(again.state_dict(), state)
    assert same(EfficientNetCompressor.from_file(dict(state_dict=state)).state_dict(), state)
    edit(tmp_path, lambda s: s.pop("mapper.0.weight"), "effnet_encoder.safetensors")
    with pytest.raises(ValueError, match="missing key 'mapper.0.weight'"):
        EfficientNetCompressor.from_file(tmp_path / "effnet_encoder.safetensors")


def test_the_compressor_without_its_package(monkeypatch):
    from minisora.latents.efficientnet import EfficientNetCompressor

    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        EfficientNetCompressor()
