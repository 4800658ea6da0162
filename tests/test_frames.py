"""Lesson 13: frame prediction, sampling after frames that are known, films of several clips, and
their joints."""

import json

import pytest
import torch
from helpers.pipeline import SIZE, Blocks, awake
from torch import nn

from minisora.core.noise import indexed_noise
from minisora.frames import (
    FrameConditionedModel,
    FramePrediction,
    call_with_known_frames,
    generate_long,
    joint_discontinuity,
    prefix_mask,
    sample_continuation,
)
from minisora.interpolants import objective_from_dict
from minisora.models.conditions import WordCondition
from minisora.sampling import CallCounter, renoise_average, sample
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit


@pytest.fixture(scope="module")
def model():
    return awake(VideoDiTConfig(channels=4, condition=WordCondition(3), **SIZE))


def batch(n=6, step=0):
    z = torch.randn(n, 3, 4, 2, 2, generator=torch.Generator().manual_seed(step))
    noise, _ = indexed_noise(7, step, range(n), z.shape[1:])
    return z, torch.arange(n)[:, None] % 3, noise, torch.linspace(0.1, 0.9, n)


class Recorder(nn.Module):
    "Keeps what it was asked, answers with its input."

    def forward(self, x, t, y=None):
        self.x = x
        self.t = t
        return x


def test_known_frames_are_clean_flagged_and_free_of_loss(model):
    z, y, noise, t = batch()
    objective = FramePrediction(prediction="data", known_frames=(2,))
    seen = Recorder()
    objective.loss(seen, z, y, noise, t)
    assert torch.equal(seen.x[:, :3, :2], z[:, :, :2]), "the known frames must be clean, whatever t"
    mixed = objective.add_noise(z, noise, t)
    assert torch.equal(seen.x[:, :3, 2:], mixed[:, :, 2:]), "the others get noise as ever"
    flags = torch.tensor([1.0, 1, 0, 0]).view(1, 4, 1, 1).expand(6, 4, 2, 2)
    assert torch.equal(seen.x[:, 3], flags)
    # the loss does not see the noise of known frames: other noise there (but for the number that
    # draws how many), the same loss
    other = noise.clone()
    other[:, :, :2] += 1
    other[:, 0, 0, 0, 0] = noise[:, 0, 0, 0, 0]
    a, b = (objective.loss(model, z, y, e, t) for e in (noise, other))
    assert torch.equal(a["loss"], b["loss"])
    none = FramePrediction(prediction="data", known_frames=(0,))
    assert not torch.allclose(a["loss"], none.loss(model, z, y, noise, t)["loss"])


def test_loss_is_the_error_of_the_unknown_frames_over_all(model):
    z, y, noise, t = batch()
    for prediction in ("data", "velocity"):
        objective = FramePrediction(prediction=prediction, known_frames=(1,))
        mask = prefix_mask(torch.ones(6), 4, z)
        with torch.no_grad():
            x = objective.add_noise(z, noise, t)
            answer = call_with_known_frames(model, x, z, mask, t, y)
            error = (1 - mask) * (answer - objective.target(z, noise, t))
            got = objective.loss(model, z, y, noise, t)["mse"]
        assert torch.allclose(got, (error**2).flatten(1).mean(1), rtol=1e-5), prediction


@pytest.mark.parametrize("extra", [dict(temporal_diff_weight=4.0), dict(jerk_weight=0.1)])
def test_extra_terms_take_known_frames_for_right(extra):
    """A model that answers rightly on the other frames has no loss at all, whatever it says of the
    known ones."""
    z, y, noise, t = batch()

    class Right(nn.Module):
        def forward(self, x, t, y=None):
            out = torch.cat([z, z[:, :1]], 1)
            out[:, :, :1] = 99.0
            return out

    objective = FramePrediction(prediction="data", known_frames=(1,), **extra)
    assert objective.loss(Right(), z, y, noise, t)["loss"].abs().max() < 1e-6


def test_counts_are_even_repeatable_and_of_the_noise_alone():
    objective = FramePrediction(known_frames=(0, 1, 3))
    noise, _ = indexed_noise(0, 5, range(3000), (2, 1, 1, 1))
    k = objective.num_known(noise)
    for n in (0, 1, 3):
        assert abs((k == n).float().mean() - 1 / 3) < 0.03
    assert torch.equal(k[100:200], objective.num_known(noise[100:200]))
    pairs = torch.stack([k.float(), noise[:, 0, 0, 0, 0]])
    assert abs(torch.corrcoef(pairs)[0, 1]) < 0.06
    near = (noise[:, 0, 0, 0, 0] - 0.5).abs() < 0.5  # where the first digits alone would tell
    assert abs(torch.corrcoef(pairs[:, near])[0, 1]) < 0.1


@pytest.mark.parametrize(
    "known, message",
    [
        ((), r"known_frames must be whole numbers, 0 or more, not \(\)"),
        ((-1,), r"not \(-1,\)"),
        ((0.5,), r"not \(0.5,\)"),
        ((4,), "known_frames: 4 of 4 frames leave nothing"),
    ],
)
def test_bad_known_frames_are_named(model, known, message):
    with pytest.raises(ValueError, match=message):
        FramePrediction(known_frames=known).loss(model, *batch())


def test_objective_round_trip():
    a = FramePrediction(prediction="data", known_frames=(0, 2), shift=3.0)
    values = json.loads(json.dumps(a.to_dict()))
    assert FramePrediction.from_dict(values) == a == objective_from_dict(values)


def test_guidance_on_what_is_known_moves_away_from_the_answer_without_it(model):
    x = torch.randn(3, 3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    known = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.2, 0.5, 0.9])
    y = torch.tensor([[0], [1], [2]])
    with torch.no_grad():
        given, alone = (FrameConditionedModel(model, k)(x, t, y) for k in (known, None))
        assert torch.equal(FrameConditionedModel(model, known, 1.0)(x, t, y), given)
        assert torch.equal(FrameConditionedModel(model, None, 2.0)(x, t, y), alone)
        for scale in (0.0, 2.0, 3.5):
            guided = FrameConditionedModel(model, known, scale)(x, t, y)
            torch.testing.assert_close(guided, alone + scale * (given - alone))
        assert (given - alone).abs().max() > 0.1
        # beside guidance on the condition, whose batch is doubled
        both = FrameConditionedModel(model, known, 2.0)(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, y])
        )
        torch.testing.assert_close(both[3:], alone + 2 * (given - alone), rtol=1e-4, atol=1e-5)


def test_sampling_with_guidance_on_what_is_known(model):
    objective = FramePrediction(prediction="data")
    y = torch.tensor([[0], [1], [2]])
    known = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    options = dict(steps=3, guidance=2.0, seed=5)
    plain = sample_continuation(model, objective, y, known, **options)
    assert torch.equal(
        sample_continuation(model, objective, y, known, known_guidance=1, **options), plain
    )
    more = sample_continuation(model, objective, y, known, known_guidance=2.0, **options)
    assert torch.equal(more[:, :, :2], known) and (more - plain).abs().max() > 1e-2
    by_one = sample_continuation(
        model, objective, y, known, known_guidance=2.0, batch_size=1, **options
    )
    torch.testing.assert_close(by_one, more, rtol=1e-4, atol=1e-4)
    fresh = sample_continuation(model, objective, y, **options)
    assert torch.equal(sample_continuation(model, objective, y, known_guidance=2, **options), fresh)
    with pytest.raises(ValueError, match="known_guidance must be a finite number, not 'a'"):
        sample_continuation(model, objective, y, known, known_guidance="a", **options)


def test_an_adaptive_solver_asks_about_each_sample_with_its_own_frames(model):
    pytest.importorskip("torchdiffeq")
    objective = FramePrediction(prediction="velocity")
    y = torch.tensor([[0], [1]])
    known = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    options = dict(solver="dopri5", atol=0.1, rtol=0.1, guidance=1.0)
    z = sample_continuation(model, objective, y, known, **options)
    one = sample_continuation(model, objective, y[1:], known[1:], index=[1], **options)
    torch.testing.assert_close(one, z[1:], rtol=1e-3, atol=1e-3)
    assert (
        sample_continuation(model, objective, y, known, together=True, **options).shape == z.shape
    )


@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_keeps_what_is_known(model, prediction, guidance):
    objective = FramePrediction(prediction=prediction)
    y = torch.tensor([[0], [1], [2]])
    known = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    options = dict(steps=4, guidance=guidance, seed=5)
    z = sample_continuation(model, objective, y, known, **options)
    assert z.shape == (3, 3, 4, 2, 2) and torch.equal(z[:, :, :2], known)
    other = sample_continuation(model, objective, y, known + 1, **options)
    what_follows = (z[:, :, 2:] - other[:, :, 2:]).abs().max()
    assert what_follows > 1e-2, "what follows must depend on what is known"
    parts = sample_continuation(model, objective, y, known, batch_size=2, **options)
    assert torch.allclose(z, parts, atol=1e-5), "rows of `known` must stay with their conditions"
    fresh = sample_continuation(model, objective, y, **options)
    assert torch.equal(fresh, sample(FrameConditionedModel(model), objective, y, **options))
    assert (fresh - z).abs().max() > 1e-2


def test_every_call_sees_the_known_frames_clean():
    class Asked(Recorder):
        null_id = None
        latent_shape = (4, 4, 2, 2)
        calls = []

        def forward(self, x, t, y=None):
            self.calls.append(x.clone())
            return x

    asked = Asked()
    known = torch.ones(2, 3, 1, 2, 2)
    objective = FramePrediction(prediction="data")
    sample_continuation(asked, objective, None, known, steps=3, guidance=1.0)
    assert len(asked.calls) == 3
    for x in asked.calls:
        assert torch.equal(x[:, :3, :1], known)
        assert (x[:, 3, 0] == 1).all() and (x[:, 3, 1:] == 0).all()


def test_a_conditioned_model_is_a_model(model):
    "Guidance's doubled batch, null id, settings and weights are those of the model inside."
    known = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    conditioned = FrameConditionedModel(model, known)
    assert conditioned.latent_shape == (3, 4, 2, 2) and conditioned.null_id == 3
    assert conditioned.config is model.config and not hasattr(conditioned, "nothing")
    x, y, _, t = (v[:2] for v in batch())
    with torch.no_grad():
        doubled = conditioned(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, y]))
        assert torch.allclose(doubled, conditioned(x, t, y).repeat(2, 1, 1, 1, 1), atol=1e-5)
    z = renoise_average(conditioned, FramePrediction(prediction="data"), x, y, times=2)
    assert z.shape == x.shape


@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 2), (2, 4, 1, 2, 2), (2, 3, 1, 2, 3), (3, 1, 2, 2)])
def test_known_frames_of_a_wrong_shape_are_named(model, shape):
    y = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"known must be \(B, 3, 1 … 3, 2, 2\), not"):
        sample_continuation(model, FramePrediction(), y, torch.zeros(shape))


def test_known_frames_of_another_number_are_named(model):
    y = torch.zeros(3, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="known holds 2 samples, 3"):
        sample_continuation(model, FramePrediction(), y, torch.zeros(2, 3, 1, 2, 2))


def test_a_model_learns_to_continue():
    """Clips that are all +1 or all −1, no condition: only the first frame says which. One model,
    one training: given a frame it continues it; given none it begins clips of both kinds."""
    sign = 1 - 2.0 * (torch.arange(64) % 2)
    z = sign.view(-1, 1, 1, 1, 1).expand(64, 2, 3, 2, 2).clone()
    config = VideoDiTConfig(channels=3, **dict(SIZE, size=(3, 2, 2)))
    objective = FramePrediction(
        prediction="data", loss_weighting="velocity", max_weight=25.0, known_frames=(0, 1)
    )
    model = fit(
        VideoDiT(config),
        z,
        objective,
        steps=150,
        batch_size=16,
        lr=3e-3,
        warmup=20,
        ema=0.9,
        condition_dropout=0.0,
        progress=False,
    ).ema
    after = sample_continuation(model, objective, None, z[:8, :, :1], steps=8, guidance=1.0)
    assert (after - z[:8]).abs().mean() < 0.2
    fresh = sample_continuation(model, objective, n=16, steps=8, guidance=1.0).mean((1, 2, 3, 4))
    assert (fresh.abs() > 0.6).float().mean() > 0.7 and fresh.min() < -0.5 and fresh.max() > 0.5


def test_guided_sampling_calls_the_model_once_per_step(model):
    counter = CallCounter(model)
    objective = FramePrediction(prediction="data")
    known = torch.zeros(1, 3, 1, 2, 2)
    sample_continuation(counter, objective, torch.tensor([[1]]), known, steps=5, guidance=2.0)
    assert (counter.calls, counter.rows) == (5, 10)


# ---------------------------------------------------------------- films


@pytest.mark.parametrize("overlap, tail", [(1, 1), (2, 5)])
def test_a_film_continues_where_it_was(model, overlap, tail):
    ae = Blocks()
    y = torch.tensor([[0], [1], [2]])
    objective = FramePrediction(prediction="data")
    options = dict(mean=0.1, std=0.5, overlap=overlap, steps=3, guidance=1.0, seed=3)
    film = generate_long(model, objective, ae, y, **options)
    clip = 13  # 1 + 4·3 frames
    assert film.shape == (3, clip + 2 * (clip - tail), 16, 16)
    first = generate_long(model, objective, ae, y[:1], **options)
    assert torch.equal(film[:, :clip], first), "the second clip must not change the first"
    # the second clip alone, begun from the first one's end, with its own seed
    again = generate_long(model, objective, ae, y[1:2], start=first, **dict(options, seed=4))
    assert torch.equal(film[:, : again.shape[1]], again)
    known = (ae.encode(first[None, :, -tail:]).mode - 0.1) / 0.5
    z = sample_continuation(model, objective, y[1:2], known, steps=3, guidance=1.0, seed=4)
    decoded = ae.decode(z * 0.5 + 0.1)[0, :, tail:].clamp(-1, 1)
    assert torch.allclose(film[:, clip : again.shape[1]], decoded)


def test_a_film_decodes_as_it_is_told(model):
    ae = Blocks()
    calls = []

    def decode(z):
        calls.append(z.shape)
        return ae.decode(z)

    objective = FramePrediction(prediction="data")
    generate_long(model, objective, ae, torch.tensor([[0], [1]]), decode=decode, steps=2)
    assert calls == [(1, 3, 4, 2, 2)] * 2


def test_a_start_that_is_no_whole_latents_is_named(model):
    y = torch.tensor([[0]])
    start = torch.zeros(3, 3, 16, 16)
    with pytest.raises(ValueError, match=r"1 \+ a multiple of 4, not 3"):
        generate_long(model, FramePrediction(), Blocks(), y, start=start, overlap=2)


def test_a_film_from_a_picture_goes_on_from_more_frames(model):
    """Of a start of one frame, one is given; of the clip before, as many as two latents hold."""
    y = torch.tensor([[0], [1]])
    start = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    objective = FramePrediction(prediction="data")
    film = generate_long(model, objective, Blocks(), y, start=start, overlap=2, steps=2)
    assert film.shape[1] == 13 + 13 - 5
    assert torch.equal(film[:, 0], start[:, 0])


def test_joints_that_cut_are_found():
    film = torch.linspace(0, 1, 12).view(1, 12, 1, 1).expand(3, 12, 4, 4).clone()
    assert joint_discontinuity(film, [6])[0] == pytest.approx(1, abs=1e-4)
    film[:, 6:] += 0.5
    assert joint_discontinuity(film, [6])[0] > 5 and joint_discontinuity(film, [3])[0] < 0.5
