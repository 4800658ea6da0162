"""Self-conditioning: what the model sees in training and in all samplers; W.A.L.T presets."""

from dataclasses import replace

import pytest
import torch
from conftest import benchmark
from helpers.models import awake

from minisora.core.course import course_folder
from minisora.core.files import read_json
from minisora.core.hub import OBJECTIVES
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import Interpolant, objective_from_dict
from minisora.models.conditions import WordCondition
from minisora.sampling import sample
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit
from minisora.walt import (
    WALT_PRESETS,
    SelfConditionedDiffusion,
    SelfConditionedInterpolant,
    SelfConditionedModel,
)

OBJECTIVE_KINDS = {
    "velocity": SelfConditionedInterpolant(),
    "data": SelfConditionedInterpolant(prediction="data", loss_weighting="velocity"),
    "diffusion": SelfConditionedDiffusion(prediction="v", zero_snr=True, steps=40),
}


class Noting:
    "A model that remembers what it was asked, and answers by a formula in all that it sees."

    def __init__(self, channels=2):
        self.latent_shape = (2 * channels, 2, 3, 3)
        self.seen = []

    def __call__(self, both, t, y=None):
        x, estimate = both.chunk(2, 1)
        self.seen.append(estimate.clone())
        time = t.view(-1, 1, 1, 1, 1)
        shift = 0 if y is None else y.float().mean(1).view(-1, 1, 1, 1, 1)
        answer = 0.3 * x * (1 - time) + 0.5 * estimate + 0.1 * shift + time
        return torch.cat([answer, torch.full_like(answer, 7.0)], 1)

    def parameters(self):
        return iter(())


def noised(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    z, noise = torch.randn(2, n, 2, 2, 3, 3, generator=g)
    return z, noise


@pytest.mark.parametrize("objective", OBJECTIVE_KINDS.values(), ids=OBJECTIVE_KINDS)
def test_the_chosen_samples_see_their_own_first_answer(objective):
    model = Noting()
    z, noise = noised()
    t = objective.sample_times(torch.linspace(0.01, 0.99, 64))
    terms = objective.loss(model, z, None, noise, t)
    chosen = objective.sees_itself(noise)
    assert 20 < chosen.sum() < 60
    first, second = model.seen
    assert len(first) == chosen.sum() and (first == 0).all()
    assert (second[~chosen] == 0).all()
    x = objective.add_noise(z, noise, t)
    with torch.no_grad():
        out = Noting()(torch.cat([x, torch.zeros_like(x)], 1), t)[:, :2]
    own = objective.to_data_and_noise(out, x, t)[0]
    torch.testing.assert_close(second[chosen], own[chosen], rtol=1e-4, atol=1e-4)
    plain = {SelfConditionedInterpolant: Interpolant, SelfConditionedDiffusion: GaussianDiffusion}
    fields = {
        k: v for k, v in objective.to_dict().items() if k not in ("objective", "self_conditioning")
    }
    plain = plain[type(objective)](**fields)

    def told(x, t, y):
        return Noting()(torch.cat([x, second], 1), t)[:, :2]

    want = plain.loss(told, z, None, noise, t)
    torch.testing.assert_close(terms["loss"], want["loss"])


@pytest.mark.parametrize("objective", OBJECTIVE_KINDS.values(), ids=OBJECTIVE_KINDS)
def test_how_often_is_the_probability_and_a_function_of_the_noise(objective):
    _, noise = noised(4000)
    share = objective.sees_itself(noise).float().mean()
    assert abs(share - 0.6) < 0.04
    assert torch.equal(objective.sees_itself(noise[:7]), objective.sees_itself(noise)[:7])
    assert not replace(objective, self_conditioning=0.0).sees_itself(noise).any()
    assert replace(objective, self_conditioning=1.0).sees_itself(noise).all()


def test_no_gradient_flows_into_the_estimate():
    weight = torch.tensor(2.0, requires_grad=True)
    z, noise = noised()
    objective = SelfConditionedInterpolant(self_conditioning=1.0)
    t = torch.full((64,), 0.4)

    def model(both, t, y=None):
        x, estimate = both.chunk(2, 1)
        return torch.cat([weight * x + estimate, estimate], 1)

    objective.loss(model, z, None, noise, t)["loss"].mean().backward()
    x = objective.add_noise(z, noise, t)
    estimate = objective.to_data_and_noise(2 * x, x, t)[0]
    error = 2 * x + estimate - (z - noise)
    want = (2 * error * x).mean((1, 2, 3, 4)).mean()
    torch.testing.assert_close(weight.grad, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "rk4", "dopri5", "sde", "ddim"])
def test_every_solver_hands_the_last_answer_on(solver):
    model = Noting()
    objective = SelfConditionedInterpolant()
    options = dict(solver=solver, steps=4, guidance=1.0, seed=1)
    z = sample(model, objective, n=3, **options)
    assert z.shape == (3, 2, 2, 3, 3) and z.isfinite().all()
    assert (model.seen[0] == 0).all() and (model.seen[-1] != 0).any()


def test_a_sample_by_hand():
    "Three Euler steps, each shown the estimate of the one before."
    objective = SelfConditionedInterpolant()
    noise = torch.randn(2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    z = sample(Noting(), objective, noise=noise, steps=3, guidance=1.0, shift=1.0)
    x, estimate = noise, torch.zeros_like(noise)
    for k in range(3):
        t = torch.full((2,), k / 3)
        v = Noting()(torch.cat([x, estimate], 1), t)[:, :2]
        estimate = x + (1 - k / 3) * v
        x = x + v / 3
    torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.6)])
def test_guidance_keeps_an_estimate_for_each_half(interval):
    objective = SelfConditionedInterpolant()
    noise = torch.randn(2, 2, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([[1], [3]])
    model = Noting()
    model.null_id = 9
    z = sample(model, objective, y, noise=noise, steps=4, guidance=2.0, guidance_interval=interval)
    x, own = noise, torch.zeros(4, *noise.shape[1:])
    both = torch.cat([y, torch.full_like(y, 9)])
    for k in range(4):
        t = torch.full((4,), k / 4)
        inside = interval[0] <= k / 4 <= interval[1]
        asked, condition = (torch.cat([x, x]), both) if inside else (x, y)
        if len(own) < len(asked):
            own = torch.cat([own, own])
        v = Noting()(torch.cat([asked, own[: len(asked)]], 1), t[: len(asked)], condition)[:, :2]
        own = asked + (1 - k / 4) * v
        v = v[2:] + 2 * (v[:2] - v[2:]) if inside else v
        x = x + v / 4
    torch.testing.assert_close(z, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVE_KINDS.values(), ids=OBJECTIVE_KINDS)
def test_a_sample_is_the_same_in_any_batch(objective):
    options = dict(n=5, steps=4, guidance=1.0, seed=3)
    whole = sample(Noting(), objective, **options)
    torch.testing.assert_close(sample(Noting(), objective, batch_size=2, **options), whole)
    one = sample(Noting(), objective, index=[3], **{**options, "n": None})
    torch.testing.assert_close(one[0], whole[3])


def test_an_ode_adaptive_for_each_sample_begins_anew():
    objective = SelfConditionedInterpolant()
    options = dict(steps=3, solver="dopri5", guidance=1.0, seed=3)
    whole = sample(Noting(), objective, n=3, **options)
    for i in range(3):
        alone = sample(Noting(), objective, index=[i], **options)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-3, atol=1e-3)


def test_asked_only_once_it_sees_zeros():
    objective = SelfConditionedInterpolant()
    model = Noting()
    x, t = torch.randn(2, 2, 2, 3, 3), torch.tensor([0.3, 0.6])
    objective.velocity(model, x, t)
    objective.predict(model, x, t)
    assert all((seen == 0).all() for seen in model.seen)


def tiny(channels=4, **options):
    return VideoDiT(
        VideoDiTConfig(
            size=(2, 4, 4),
            patch=(1, 2, 2),
            width=24,
            heads=3,
            depth=2,
            channels=channels,
            **options,
        )
    )


@pytest.mark.parametrize("objective", OBJECTIVE_KINDS.values(), ids=OBJECTIVE_KINDS)
def test_fit_resumes_bit_equal(objective, tmp_path):
    g = torch.Generator().manual_seed(0)
    data = torch.randn(20, 2, 2, 4, 4, generator=g), torch.randint(3, (20, 1), generator=g)
    same = dict(batch_size=4, lr=1e-3, warmup=2, progress=False, log_every=2)
    words = WordCondition(3)
    whole = fit(tiny(condition=words), data, objective, steps=6, **same)
    out = dict(out=tmp_path / "run", save_every=3)
    fit(tiny(condition=words), data, objective, steps=6, stop_at=3, **same, **out)
    parts = fit(tiny(condition=words), data, objective, steps=6, **same, **out)
    for a, b in zip(whole.ema.state_dict().values(), parts.ema.state_dict().values()):
        assert torch.equal(a, b)


def test_16_bits_learn_as_32_do():
    "Weights that autocast keeps from the pass without gradients would have no gradients."
    g = torch.Generator().manual_seed(0)
    data = torch.randn(8, 2, 2, 4, 4, generator=g)
    found = []
    for precision in ("fp32", "bf16"):
        model = awake(tiny(), std=0.1)
        before = {k: v.clone() for k, v in model.named_parameters()}
        objective = SelfConditionedInterpolant(self_conditioning=1.0)
        fit(
            model,
            data,
            objective,
            steps=1,
            batch_size=8,
            lr=1e-3,
            warmup=0,
            precision=precision,
            progress=False,
            optimizer="adamw",
            betas=(0.0, 0.9),
        )
        found.append({k: not torch.equal(v, before[k]) for k, v in model.named_parameters()})
    assert found[0] == found[1] and all(found[1].values())


def test_the_model_needs_twice_the_channels():
    with pytest.raises(ValueError, match="latents have 3 channels, the model takes 2"):
        fit(tiny(), torch.randn(4, 3, 2, 4, 4), SelfConditionedInterpolant(), steps=1)


@pytest.mark.parametrize("kind", [SelfConditionedInterpolant, SelfConditionedDiffusion])
def test_it_is_saved_by_its_kind(kind):
    objective = kind(self_conditioning=0.25)
    values = objective.to_dict()
    assert values["objective"].startswith("self-conditioned-")
    assert objective_from_dict(values) == objective
    assert OBJECTIVES[values["objective"]] is kind
    for wrong in (-0.1, 1.1, float("nan"), "half"):
        with pytest.raises(ValueError, match="self_conditioning"):
            kind(self_conditioning=wrong)
    if kind is SelfConditionedDiffusion:
        with pytest.raises(ValueError, match="learned-range"):
            kind(variance="learned-range")


def test_the_sampling_model_passes_on_what_it_is_asked_for():
    model = SelfConditionedModel(tiny(condition=WordCondition(3)), SelfConditionedInterpolant())
    assert model.latent_shape == (2, 2, 4, 4) and model.null_id == 3
    assert next(model.parameters()) is next(model.model.parameters())


def test_presets_have_the_papers_weights():
    "313 M, 460 M and 3 B (Gupta et al. 2023); the record of what they cost is of these models."
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in VideoDiT(WALT_PRESETS[name]).parameters())
            for name in ("WALT-L", "WALT-XL", "WALT-3B")
        }
    assert counts["WALT-L"] == pytest.approx(313e6, rel=0.01)
    assert counts["WALT-XL"] == pytest.approx(460e6, rel=0.01)
    assert counts["WALT-3B"] == pytest.approx(3e9, rel=0.01)
    record = read_json(course_folder() / "benchmarks" / "walt_cost.json")
    assert {row["name"]: row["weights"] for row in record["rows"]} == counts


def test_the_record_of_costs_follows_from_its_own_figures():
    "FLOPs against the equations of a block, and seconds against FLOPs."
    record = read_json(course_folder() / "benchmarks" / "walt_cost.json")
    assert "PREDICTED" in record["note"]
    for row in record["rows"]:
        n, width, pairs = 1280, row["width"], (1280 * 256 + 1280 * 320) / 2
        block = 2 * (12 * n * width**2 + 2 * pairs * width)
        assert row["forward_gflop"] == pytest.approx(row["depth"] * block / 1e9, rel=0.01)
        still = 2 * (12 * 256 * width**2 + 2 * 256**2 * width) * row["depth"] / 2
        assert row["image_forward_gflop"] == pytest.approx(still / 1e9, rel=0.03)
        assert row["training_gflop"] == pytest.approx(3 * row["forward_gflop"], rel=0.01)
        assert row["always_gb"] == pytest.approx(16 * row["weights"] / 1e9, rel=0.001)
        for name, card in record["cards"].items():
            rate = record["utilization"] * card["bf16"]
            step = record["batch"] * row["training_gflop"] * 1e9 / rate
            assert row[name]["step_seconds"] == pytest.approx(step, rel=0.01)
            clip = 2 * record["steps"] * row["forward_gflop"] * 1e9 / rate
            assert row[name]["clip_seconds"] == pytest.approx(clip, rel=0.01)


def test_costs_are_counted_as_recorded():
    "Of a small model, by the functions that wrote the record."
    cost = benchmark("walt_cost")
    config = WALT_PRESETS["walt-small"]
    weights, forward, training = cost.count(config)
    assert weights == sum(p.numel() for p in VideoDiT(config).parameters())
    assert 2.8 < training / forward <= 3
    assert cost.count(cost.image_config(config))[1] == pytest.approx(forward / 10, rel=0.05)


def test_presets_have_learned_positions_and_older_files_still_load(tmp_path):
    config = WALT_PRESETS["walt-small"]
    assert config.positions.kind == "learned" and config.relative_bias and config.block.qk_norm
    values = config.to_dict() | dict(positions=dict(kind="sincos", base_size=[]))
    model = awake(VideoDiT(VideoDiTConfig(**VideoDiTConfig.upgrade(values))))
    model.save_pretrained(tmp_path / "m")  # as the presets were before
    assert VideoDiT.from_pretrained(tmp_path / "m").config.positions.kind == "sincos"


def test_the_small_preset_runs():
    config = WALT_PRESETS["walt-small"]
    model = awake(VideoDiT(config))
    x = torch.randn(1, config.channels, *config.size)
    assert model(x, torch.tensor([0.5])).shape == x.shape
