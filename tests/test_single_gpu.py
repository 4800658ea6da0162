"""Lesson 16: clips that go on where the last one ended, avatars, FLOPs without a device."""

import json

import pytest
import torch
from helpers.autoencoder import inner_vae, wide_clips
from torch import nn

from minisora.diffusion import draw
from minisora.sampling import Counted, sample
from minisora.clips import Vocabulary
from minisora.single_gpu import (
    Avatar,
    Continuation,
    Given,
    chain,
    leading,
    sample_after,
    seams,
    told,
    training_flops,
)
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.video_vae import CausalVideoVAE
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.train import fit

SIZE = dict(size=(4, 2, 2), patch=(1, 1, 1), width=32, depth=2, heads=2)


def awake(config, seed=0):
    "A VideoDiT whose zero-initialised layers are redrawn: a fresh one answers 0, which would hide any fault."
    model, g = VideoDiT(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0:
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return awake(VideoDiTConfig(channels=4, vocab=3, slots=1, **SIZE))


def batch(n=6, step=0):
    z = torch.randn(n, 3, 4, 2, 2, generator=torch.Generator().manual_seed(step))
    noise, _ = draw(7, step, range(n), z.shape[1:])
    return z, torch.arange(n)[:, None] % 3, noise, torch.linspace(0.1, 0.9, n)


class Recorder(nn.Module):
    "Keeps what it was asked, answers with its input."

    def forward(self, x, t, y=None):
        self.x, self.t = x, t
        return x


def test_given_frames_are_clean_flagged_and_free_of_loss(model):
    z, y, noise, t = batch()
    objective, seen = Continuation(prediction="data", given=(2,)), Recorder()
    objective.loss(seen, z, y, noise, t)
    assert torch.equal(seen.x[:, :3, :2], z[:, :, :2]), "the given frames must be clean, whatever t"
    mixed = objective.mix(z, noise, t)
    assert torch.equal(seen.x[:, :3, 2:], mixed[:, :, 2:]), (
        "the others are mixed with noise as ever"
    )
    assert torch.equal(
        seen.x[:, 3], torch.tensor([1.0, 1, 0, 0]).view(1, 4, 1, 1).expand(6, 4, 2, 2)
    )
    # the loss does not see the noise of given frames: other noise there (but for the number that draws how many), the same loss
    other = noise.clone()
    other[:, :, :2] += 1
    other[:, 0, 0, 0, 0] = noise[:, 0, 0, 0, 0]
    a, b = (objective.loss(model, z, y, e, t) for e in (noise, other))
    assert torch.equal(a["loss"], b["loss"])
    free = Continuation(prediction="data", given=(0,)).loss(model, z, y, noise, t)["loss"]
    assert not torch.allclose(a["loss"], free)


def test_loss_is_the_error_of_the_free_frames_over_all(model):
    z, y, noise, t = batch()
    for prediction in ("data", "velocity"):
        objective = Continuation(prediction=prediction, given=(1,))
        mask = leading(torch.ones(6), 4, z)
        with torch.no_grad():
            x = objective.mix(z, noise, t)
            error = (1 - mask) * (told(model, x, z, mask, t, y) - objective.target(z, noise, t))
            got = objective.loss(model, z, y, noise, t)["mse"]
        assert torch.allclose(got, (error**2).flatten(1).mean(1), rtol=1e-5), prediction


@pytest.mark.parametrize("extra", [dict(delta=4.0), dict(steady=0.1)])
def test_extra_terms_take_given_frames_for_right(extra):
    "A model that answers rightly on the free frames has no loss at all, whatever it says of the given ones."
    z, y, noise, t = batch()

    class Right(nn.Module):
        def forward(self, x, t, y=None):
            out = torch.cat([z, z[:, :1]], 1)
            out[:, :, :1] = 99.0
            return out

    terms = Continuation(prediction="data", given=(1,), **extra).loss(Right(), z, y, noise, t)
    assert terms["loss"].abs().max() < 1e-6


def test_counts_are_even_repeatable_and_of_the_noise_alone():
    objective = Continuation(given=(0, 1, 3))
    noise, _ = draw(0, 5, range(3000), (2, 1, 1, 1))
    k = objective.counts(noise)
    for n in (0, 1, 3):
        assert abs((k == n).float().mean() - 1 / 3) < 0.03
    assert torch.equal(k[100:200], objective.counts(noise[100:200]))
    assert abs(torch.corrcoef(torch.stack([k.float(), noise[:, 0, 0, 0, 0]]))[0, 1]) < 0.06
    near = (noise[:, 0, 0, 0, 0] - 0.5).abs() < 0.5  # where the first digits alone would tell
    assert abs(torch.corrcoef(torch.stack([k.float(), noise[:, 0, 0, 0, 0]])[:, near])[0, 1]) < 0.1


@pytest.mark.parametrize(
    "given, message", [((), "given"), ((-1,), "given"), ((0.5,), "given"), ((4,), "leave nothing")]
)
def test_bad_given_is_named(model, given, message):
    with pytest.raises(ValueError, match=message):
        Continuation(given=given).loss(model, *batch())


def test_objective_round_trip():
    a = Continuation(prediction="data", given=(0, 2), shift=3.0)
    assert Continuation.from_dict(json.loads(json.dumps(a.to_dict()))) == a


@pytest.mark.parametrize("prediction", ["data", "velocity"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_keeps_what_is_given(model, prediction, guidance):
    objective, y = Continuation(prediction=prediction), torch.tensor([[0], [1], [2]])
    given = torch.randn(3, 3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    options = dict(steps=4, guidance=guidance, seed=5)
    z = sample_after(model, objective, y, given, **options)
    assert z.shape == (3, 3, 4, 2, 2) and torch.equal(z[:, :, :2], given)
    other = sample_after(model, objective, y, given + 1, **options)
    assert (z[:, :, 2:] - other[:, :, 2:]).abs().max() > 1e-2, (
        "what follows must depend on what is given"
    )
    parts = sample_after(model, objective, y, given, batch_size=2, **options)
    assert torch.allclose(z, parts, atol=1e-5), "rows of `given` must stay with their conditions"
    fresh = sample_after(model, objective, y, **options)
    assert torch.equal(fresh, sample(Given(model), objective, y, **options))
    assert (fresh - z).abs().max() > 1e-2


def test_every_call_sees_the_given_frames_clean():
    class Asked(Recorder):
        null_id, latent_shape, calls = None, (4, 4, 2, 2), []

        def forward(self, x, t, y=None):
            self.calls.append(x.clone())
            return x

    asked, given = Asked(), torch.ones(2, 3, 1, 2, 2)
    sample_after(asked, Continuation(prediction="data"), None, given, steps=3, guidance=1.0)
    assert len(asked.calls) == 3
    for x in asked.calls:
        assert (
            torch.equal(x[:, :3, :1], given)
            and (x[:, 3, 0] == 1).all()
            and (x[:, 3, 1:] == 0).all()
        )


@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 2), (2, 4, 1, 2, 2), (2, 3, 1, 2, 3), (3, 1, 2, 2)])
def test_given_of_a_wrong_shape_is_named(model, shape):
    with pytest.raises(ValueError, match="given must be"):
        sample_after(model, Continuation(), torch.zeros(2, 1, dtype=torch.long), torch.zeros(shape))


def test_given_of_another_number_is_named(model):
    with pytest.raises(ValueError, match="given holds 2 samples, 3"):
        sample_after(
            model, Continuation(), torch.zeros(3, 1, dtype=torch.long), torch.zeros(2, 3, 1, 2, 2)
        )


def test_a_model_learns_to_go_on():
    """Clips that are all +1 or all −1, no condition: only the first frame says which. One model, one training:
    given a frame it goes on with it; given none it begins clips of both kinds."""
    sign = 1 - 2.0 * (torch.arange(64) % 2)
    z = sign.view(-1, 1, 1, 1, 1).expand(64, 2, 3, 2, 2).clone()
    config = VideoDiTConfig(channels=3, size=(3, 2, 2), patch=(1, 1, 1), width=32, depth=2, heads=2)
    objective = Continuation(prediction="data", weight="velocity", max_weight=25.0, given=(0, 1))
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
    given = z[:8, :, :1]
    after = sample_after(model, objective, None, given, steps=8, guidance=1.0)
    assert (after - z[:8]).abs().mean() < 0.2
    fresh = sample_after(model, objective, n=16, steps=8, guidance=1.0).mean((1, 2, 3, 4))
    assert (fresh.abs() > 0.6).float().mean() > 0.7 and fresh.min() < -0.5 and fresh.max() > 0.5


# ---------------------------------------------------------------- films


class Blocks(nn.Module):
    "An autoencoder of means: 4×8×8 pixels a latent, frame 0 alone, 3 channels."

    def __init__(self):
        super().__init__()
        self.spec = CausalVideoVAE(channels=3, width=8).spec

    def encode(self, x):
        lead = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], 2)
        z = nn.functional.avg_pool3d(lead, (4, 8, 8))
        return type("M", (), dict(mode=z))

    def decode(self, z):
        return z.repeat_interleave(4, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)[:, :, 3:]


@pytest.mark.parametrize("overlap, tail", [(1, 1), (2, 5)])
def test_a_film_goes_on_where_it_was(model, overlap, tail):
    ae, y, objective = Blocks(), torch.tensor([[0], [1], [2]]), Continuation(prediction="data")
    options = dict(mean=0.1, std=0.5, overlap=overlap, steps=3, guidance=1.0, seed=3)
    film = chain(model, objective, ae, y, **options)
    clip = 13  # 1 + 4·3 frames
    assert film.shape == (3, clip + 2 * (clip - tail), 16, 16)
    first = chain(model, objective, ae, y[:1], **options)
    assert torch.equal(film[:, :clip], first), "the second clip must not change the first"
    # the second clip alone, begun from the first one's end, with its own seed
    again = chain(model, objective, ae, y[1:2], start=first, **dict(options, seed=4))
    assert torch.equal(film[:, : again.shape[1]], again)
    given = (ae.encode(first[None, :, -tail:]).mode - 0.1) / 0.5
    z = sample_after(model, objective, y[1:2], given, steps=3, guidance=1.0, seed=4)
    assert torch.allclose(
        film[:, clip : again.shape[1]], (ae.decode(z * 0.5 + 0.1)[0, :, tail:]).clamp(-1, 1)
    )


def test_a_film_decodes_as_it_is_told(model):
    ae, calls = Blocks(), []

    def decode(z):
        calls.append(z.shape)
        return ae.decode(z)

    chain(
        model, Continuation(prediction="data"), ae, torch.tensor([[0], [1]]), decode=decode, steps=2
    )
    assert calls == [(1, 3, 4, 2, 2)] * 2


def test_too_short_a_start_is_named(model):
    with pytest.raises(ValueError, match="start has 3 frames; overlap=2 needs 5"):
        chain(
            model,
            Continuation(),
            Blocks(),
            torch.tensor([[0]]),
            start=torch.zeros(3, 3, 16, 16),
            overlap=2,
        )


def test_seams_find_a_cut():
    film = torch.linspace(0, 1, 12).view(1, 12, 1, 1).expand(3, 12, 4, 4).clone()
    assert seams(film, [6])[0] == pytest.approx(1, abs=1e-4)
    film[:, 6:] += 0.5
    assert seams(film, [6])[0] > 5 and seams(film, [3])[0] < 0.5


# ---------------------------------------------------------------- the avatar


@pytest.fixture
def avatar():
    inner = inner_vae()
    ae = PCACompressedVAE.from_autoencoder(inner, 2, 3)
    with torch.no_grad():
        ae.init_pca([inner.encode(wide_clips()).mode])
    vocabulary = Vocabulary.from_captions(["hello", "you", "rest"])
    model = awake(
        VideoDiTConfig(
            channels=4,
            size=(3, 2, 4),
            patch=(1, 1, 1),
            width=32,
            depth=2,
            heads=2,
            vocab=len(vocabulary),
        )
    )
    return Avatar(
        model,
        ae,
        vocabulary,
        Continuation(prediction="data", given=(0, 1)),
        mean=0.1,
        std=2.0,
        fps=9.6,
        options=dict(steps=3, guidance=2.0, guidance_interval=(0.0, 0.5)),
    )


def test_an_avatar_makes_clips_and_goes_on_with_them(avatar):
    x = avatar.clips(["hello", "rest", "hello"], seed=4)
    assert x.shape == (3, 3, 9, 32, 64) and x.abs().max() <= 1
    assert torch.allclose(
        x, avatar.clips(["hello", "rest", "hello"], seed=4, batch_size=2), atol=1e-5
    )
    assert not torch.equal(x, avatar.clips(["hello", "rest", "hello"], seed=4, steps=1)), (
        "a call may name another option"
    )
    z = sample_after(
        avatar.model,
        avatar.objective,
        avatar.vocabulary.encode_batch(["you"]),
        seed=4,
        **avatar.options,
    )
    with torch.no_grad():
        assert torch.allclose(
            avatar.clips(["you"], seed=4),
            avatar.autoencoder.decode(z * 2 + 0.1).clamp(-1, 1),
            atol=1e-5,
        )
        ends = x[:, :, -1:]
        given = (avatar.autoencoder.encode(ends).mode - 0.1) / 2
        z = sample_after(
            avatar.model,
            avatar.objective,
            avatar.vocabulary.encode_batch(["rest"] * 3),
            given,
            **avatar.options,
        )
        on = avatar.clips(["rest"] * 3, ends)
        assert torch.allclose(on, avatar.autoencoder.decode(z * 2 + 0.1).clamp(-1, 1), atol=1e-5)


def test_an_avatars_film_is_its_clips_in_turn(avatar):
    film = avatar.film(["hello", "rest"], seed=4)
    assert film.shape == (3, 17, 32, 64)
    assert torch.allclose(film[:, :9], avatar.clips(["hello"], seed=4)[0], atol=1e-5)
    assert torch.allclose(
        film[:, 9:], avatar.clips(["rest"], film[None, :, 8:9], seed=5)[0, :, 1:], atol=1e-5
    )


def test_an_avatar_is_saved_and_loaded_whole(avatar, tmp_path):
    avatar.save_pretrained(tmp_path / "avatar")
    again = Avatar.from_pretrained(tmp_path / "avatar")
    assert (
        torch.equal(again.film(["you", "rest"]), avatar.film(["you", "rest"])) and again.fps == 9.6
    )
    with pytest.raises(ValueError, match="unknown word 'helo'.*did you mean 'hello'"):
        again.clips(["helo"])
    with pytest.raises(FileNotFoundError, match="avatar.json"):
        Avatar.from_pretrained(tmp_path)
    file = tmp_path / "avatar" / "avatar.json"
    for text, field in (("{", "JSONDecodeError"), ('{"mean": 0}', "vocabulary")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"(?s)avatar.json.*{field}"):
            Avatar.from_pretrained(tmp_path / "avatar")


# ---------------------------------------------------------------- FLOPs


def test_flops_are_those_of_the_matrices():
    config = VideoDiTConfig(channels=3, size=(2, 4, 4), patch=(1, 2, 2), width=32, depth=2, heads=2)
    D, N, p = 32, 8, 12
    block = N * 12 * D * D + 2 * N * N * D + 6 * D * D  # qkv, proj, MLP; attention; adaLN
    ends = N * 2 * p * D + 2 * D * D + 256 * D + D * D  # in and out; final adaLN; time
    forward = training_flops(config, backward=False)
    assert forward == 2 * (2 * block + ends)
    assert training_flops(config, batch=3, backward=False) == 3 * forward
    assert 2.8 < training_flops(config) / forward <= 3


def test_guided_sampling_calls_the_model_once_a_step(model):
    counted = Counted(model)
    sample_after(
        counted,
        Continuation(prediction="data"),
        torch.tensor([[1]]),
        torch.zeros(1, 3, 1, 2, 2),
        steps=5,
        guidance=2.0,
    )
    assert (counted.calls, counted.rows) == (5, 10)
