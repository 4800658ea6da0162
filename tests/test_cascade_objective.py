"""The objective of a cascade: its path, targets and weights against StableCascade's; a stage that
is told a code."""

import pytest
import torch
from helpers.latent_cache import SMALL, Clips, Tiny
from helpers.models import same
from helpers.train import same as same_run
from helpers.upsampling import noise_like

from minisora.cascade_objective import (
    CodeConditionedInterpolant,
    CodeConditionedModel,
    PairedCodes,
    gather_code,
    spread_code,
)
from minisora.interpolants import Interpolant, objective_from_dict
from minisora.latent_cache import LatentCache, write_cache
from minisora.sampling import sample
from minisora.train import fit

CODED = dict(code_channels=5, code_height=2, code_width=2)


class Coded(torch.nn.Module):
    "A small model of 5 channels that is told a code of 5, and looks at all that it is given."

    null_id = 7
    latent_shape = (5, 2, 4, 4)

    def __init__(self, seed=0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.codes = []
        layers = [torch.nn.Conv3d(10, 8, 1), torch.nn.SiLU(), torch.nn.Conv3d(8, 5, 1)]
        self.net = torch.nn.Sequential(*layers, torch.nn.Conv3d(5, 5, (1, 3, 3), padding=(0, 1, 1)))
        self.words = torch.nn.Parameter(torch.randn(8, 5, generator=g))
        with torch.no_grad():
            for p in self.net.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)

    def forward(self, x, t, y=None, *, code):
        self.codes = [*self.codes[-3:], code]
        told = spread_code(code, x.shape[-2:])
        out = self.net(torch.cat([x, told], 1)) + t.view(-1, 1, 1, 1, 1)
        return out if y is None else out + self.words[y[:, 0]][..., None, None, None]


# ---------------------------------------------------------------- a code among the channels


@pytest.mark.parametrize("small, large", [((3, 3), (32, 32)), ((2, 3), (7, 3)), ((4, 5), (8, 10))])
def test_a_code_is_spread_to_the_nearest_and_taken_back(small, large):
    code = noise_like(2, 3, 2, *small)
    spread = spread_code(code, large)
    frames = code.transpose(1, 2).flatten(0, 1)
    wanted = torch.nn.functional.interpolate(frames, large, mode="nearest")
    assert torch.equal(spread.transpose(1, 2).flatten(0, 1), wanted)
    assert torch.equal(gather_code(spread, small), code)
    with pytest.raises(ValueError, match="spread_code: a code of .* does not fit into"):
        spread_code(spread, small)


def test_a_code_is_noised_and_dropped_as_often_as_asked():
    objective = CodeConditionedInterpolant(max_level=0.4, code_drop=0.1)
    code = torch.ones(4000, 16, 1, 3, 3)
    noise = noise_like(4000, 2, 1, 2, 2)
    told = objective.told_code(code, torch.zeros_like(code), noise)[:, 0, 0, 0, 0]
    dropped = told == 0
    assert abs(dropped.float().mean() - 0.1) < 0.02
    level = 1 - told[~dropped]
    assert level.min() >= 0 and 0.39 < level.max() <= 0.4 and abs(level.mean() - 0.2) < 0.01
    for i in (0, 7):  # alone as in company
        alone = objective.told_code(code[i : i + 1], torch.zeros(1, 16, 1, 3, 3), noise[i : i + 1])
        assert torch.equal(alone[0, 0, 0, 0, 0], told[i])
    assert not objective.told_code(code, code, noise)[dropped].any()
    exact = CodeConditionedInterpolant(max_level=0.0, code_drop=0.0)
    assert torch.equal(exact.told_code(code, 2 * code, noise), code)


def test_the_loss_is_the_interpolant_s_with_the_code_told():
    options = dict(prediction="data", loss_weighting="velocity", max_weight=25.0)
    objective = CodeConditionedInterpolant(**CODED, **options)
    model = Coded()
    latents = noise_like(6, 5, 2, 4, 4)
    code = noise_like(6, 5, 2, 2, 2, seed=1)
    noise = noise_like(6, 10, 2, 4, 4, seed=2)
    t = torch.linspace(0.1, 0.9, 6)
    both = torch.cat([latents, spread_code(code, (4, 4))], 1)
    y = torch.tensor([[0], [1], [2], [3], [0], [1]])
    terms = objective.loss(model, both, y, noise, t)
    told = objective.told_code(code, gather_code(noise[:, 5:], (2, 2)), noise[:, :5])
    assert torch.equal(model.codes[-1], told) and not torch.equal(told, code)

    def plain(x, t, y):
        return model(x, t, y, code=told)

    wanted = Interpolant(**options).loss(plain, latents, y, noise[:, :5], t)
    assert same(terms, wanted)


def test_it_comes_back_from_json_and_a_wrong_field_is_named():
    objective = CodeConditionedInterpolant(prediction="data", **CODED)
    assert objective_from_dict(objective.to_dict()) == objective
    assert objective.to_dict()["objective"] == "code-conditioned-interpolant"
    for wrong in (dict(code_height=0), dict(max_level=1.5), dict(code_drop=-0.1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CodeConditionedInterpolant(**wrong)


# ---------------------------------------------------------------- pairs of caches


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    "Caches of the same 12 clips: codes of 2×2 and latents of 4×4 places, 5 channels each."
    root = tmp_path_factory.mktemp("caches")
    for size in (16, 32):
        write_cache(root / str(size), Clips(12, size), Tiny(), **SMALL)
        write_cache(root / f"{size}-flips", Clips(12, size), Tiny(), flips=True, **SMALL)
    write_cache(root / "few", Clips(11, 16), Tiny(), **SMALL)
    return root


def pairs(caches, codes="16", latents="32", **options):
    return PairedCodes(
        LatentCache(caches / codes), LatentCache(caches / latents, "digit", **options)
    )


def test_a_sample_is_the_latents_then_the_code_each_by_its_own_scale(caches):
    data = pairs(caches)
    codes, latents = LatentCache(caches / "16"), LatentCache(caches / "32")
    assert len(data) == 12 and data.shape == (10, 2, 4, 4) and data.codes.mean == codes.mean
    sample = data[3]["latents"]
    assert torch.equal(sample[:5], latents[3]["latents"])
    assert torch.equal(gather_code(sample[None, 5:], (2, 2))[0], codes[3]["latents"])
    assert data.mean == latents.mean and data.captions == latents.captions
    assert data.__getitems__([5, 3])["index"].tolist() == [5, 3]


def test_codes_of_other_clips_or_sizes_are_named(caches):
    with pytest.raises(ValueError, match="PairedCodes: a cache of 11 clips and one of 12"):
        pairs(caches, "few")
    with pytest.raises(ValueError, match="PairedCodes: only one of the caches is flipped"):
        pairs(caches, "16-flips")
    with pytest.raises(ValueError, match=r"\(5, 2, 2, 2\) need codes of 2 frames that are no la"):
        pairs(caches, "32", "16")


def test_mirror_images_of_both_go_together(caches):
    data = pairs(caches, "32-flips", "32-flips")
    for epoch in range(4):
        data.set_epoch(epoch)
        z = data.__getitems__(range(12))["latents"]
        assert torch.equal(z[:, :5], z[:, 5:])


OBJECTIVE = CodeConditionedInterpolant(prediction="data", **CODED)


def train(caches, out=None, **changes):
    options = dict(
        steps=24, batch_size=4, lr=1e-2, warmup=2, log_every=3, save_every=5, progress=False
    )
    data = changes.pop("data", None) or pairs(caches, "16-flips", "32-flips")
    objective = changes.pop("objective", OBJECTIVE)
    return fit(Coded(), data, objective, out=out, **options | changes)


def test_a_training_with_codes_resumes_exactly(caches, tmp_path):
    train(caches, tmp_path / "whole")
    for stop in (4, 13, None):
        train(caches, tmp_path / "parts", stop_at=stop)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_training_with_codes_runs_in_16_bits_and_sees_other_codes(caches, tmp_path):
    run = train(caches, tmp_path / "run", precision="bf16", stop_at=5)
    assert run.log[-1]["loss"] > 0
    with pytest.raises(ValueError, match="trained on other data"):
        train(
            caches, tmp_path / "run", precision="bf16", data=pairs(caches, "32-flips", "32-flips")
        )


# ---------------------------------------------------------------- sampling


def test_guidance_follows_the_code_only_where_it_is_asked_to():
    model = Coded()
    codes = noise_like(3, 5, 2, 2, 2)
    x = noise_like(6, 5, 2, 4, 4)
    t = torch.full((6,), 0.5)
    y = torch.tensor([[0], [1], [2], [3], [3], [3]])
    CodeConditionedModel(model, codes)(x, t, y)
    assert torch.equal(model.codes[-1], torch.cat([codes, codes]))
    CodeConditionedModel(model, codes, code_guidance=True)(x, t, y)
    assert torch.equal(model.codes[-1], torch.cat([codes, 0 * codes]))
    CodeConditionedModel(model, codes, code_guidance=True)(x[:3], t[:3], y[:3])
    assert torch.equal(model.codes[-1], codes)
    with pytest.raises(ValueError, match="CodeConditionedModel: 3 codes for 4 samples"):
        CodeConditionedModel(model, codes)(x[:4], t[:4], y[:4])


@pytest.mark.parametrize("solver", ["euler", "heun", "sde", "ddim"])
def test_a_sample_depends_on_its_code_and_index_alone(solver):
    codes = noise_like(3, 5, 2, 2, 2)
    ask = dict(steps=3, seed=1, guidance=2.0, solver=solver)
    y = torch.tensor([[0], [1], [2]])
    whole = sample(CodeConditionedModel(Coded(), codes, True), OBJECTIVE, y, **ask)
    alone = CodeConditionedModel(Coded(), codes[1:2], True)
    alone = sample(alone, OBJECTIVE, y[1:2], index=[1], **ask)
    torch.testing.assert_close(whole[1:2], alone, atol=1e-4, rtol=1e-4)
    other = sample(CodeConditionedModel(Coded(), codes + 1, True), OBJECTIVE, y, **ask)
    assert (whole - other).abs().max() > 0.01
