"""Training of the video autoencoder: every term, data from several sources, runs that resume to the
bit."""

import pytest
import torch
from helpers.autoencoder import generator, noise_clips, scenes, small_vae
from safetensors.torch import load_file, save_file

from minisora.core.protocols import DiagonalGaussian
from minisora.data.video import to_clips, to_frames
from minisora.latents.video_vae import CausalVideoVAE
from minisora.latents.video_vae_training import (
    CropSampler,
    PatchDiscriminator3d,
    VideoVAELoss,
    _degrade,
    _video_step,
    color_jitter,
    mixup,
    train_perceptual_net,
    train_video_vae,
)


def sampler(frames=5, crop=16):
    return CropSampler([(scenes(8), 3.0), (scenes(5, size=40, frames=9), 1.0)], frames, crop)


# ---------------------------------------------------------------- perceptual net and discriminator


def test_mixup_lies_between_two_clips_and_color_jitter_keeps_black():
    x = torch.rand(64, 3, 1, 2, 2, generator=generator()) * 2 - 1
    share = (mixup(x, generator()) - x) / (x.roll(1, 0) - x)
    assert (share - share[:, :1, :1, :1, :1]).abs().max() < 1e-3 and share.min() > -1e-3
    assert 0.4 < share.max() < 0.501
    black = -torch.ones(2, 3, 1, 2, 2)
    assert torch.equal(color_jitter(black, generator()), black)
    plain, some = (
        CropSampler([(scenes(8), 1.0)], 5, 16, mixup=m).sample(40, generator())[0]
        for m in (0.0, 0.4)
    )
    changed = (plain != some).flatten(1).any(1).float().mean()
    assert 0.15 < changed < 0.65, "about mix of the crops, and no others"


def test_a_perceptual_net_learns_and_sees_a_blur():
    texture = (
        (torch.rand(6, 3, 1, 24, 24, generator=generator()) * 255).byte().expand(-1, -1, 5, -1, -1)
    )
    w = CropSampler([(texture, 1.0)], 5, 16)
    net, (clip, kind) = train_perceptual_net(w.sample_frames, 6, steps=100, batch=24)
    assert kind > 0.6, "by chance it would be one in four"
    x = w.sample(4, generator())[0]
    blurred = _degrade(to_frames(x), torch.ones(20, dtype=torch.long))
    assert net.distance(x, x) == 0 and net.distance(to_clips(blurred, 4), x) > 10 * net.distance(
        x + 0.02, x
    )
    assert not any(p.requires_grad for p in net.parameters())


def test_degrade_does_what_it_says():
    f = torch.rand(4, 3, 16, 16, generator=generator())
    out = _degrade(f, torch.arange(4))
    assert torch.equal(out[0], f[0]) and torch.allclose(out[3], 0.8 * f[3])
    assert out[1].std() < f[1].std() and out[2].std() < f[2].std()
    blocks = _degrade(f, torch.full((4,), 2)) - 0.5 * f
    assert torch.allclose(blocks[..., ::4, ::4], blocks[..., 3::4, 3::4])


def test_hinge_loss_of_the_discriminator():
    discriminator, x = PatchDiscriminator3d(width=4), noise_clips(2, 4)
    with torch.no_grad():
        for p in discriminator.parameters():
            p.zero_()
        discriminator[-1].bias.fill_(3.0)
        assert discriminator.loss(x, x).item() == pytest.approx(
            0 + 4
        )  # real above 1 costs nothing, fake above -1 does
        discriminator[-1].bias.fill_(-0.5)
        assert discriminator.loss(x, x).item() == pytest.approx(1.5 + 0.5)


def test_terms_of_the_loss():
    ae, x = small_vae(), noise_clips(2, 5)
    quiet = VideoVAELoss(noise=0.0, foreground=0.0)
    with torch.no_grad():
        total, terms, y = quiet(ae, x, generator())
        want = dict(
            l1=(y - x).abs().mean().item(),
            l2=((y - x) ** 2).mean().item(),
            kl=ae.encode(x).kl().mean().item(),
        )
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(want, rel=1e-4)
    assert total.item() == pytest.approx(want["l1"] + 5 * want["l2"] + 1e-6 * want["kl"], rel=1e-4)


def test_each_clip_counts_the_same_whatever_its_background():
    "Weights have mean 1 per clip: black around an object must not make a clip count more or less."
    x = torch.full((2, 3, 5, 32, 32), -1.0)
    x[0, :, :, :4, :4] = 1.0
    x[1] = 0.5

    class Off:
        def encode(self, x):
            return DiagonalGaussian(torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1))

        def decode(self, z):
            return x + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1, 1)

    _, terms, _ = VideoVAELoss(foreground=8.0)(Off(), x, generator())
    assert terms["l1"].item() == pytest.approx(0.2, rel=1e-3)


# ---------------------------------------------------------------- training


def run(ae=None, **options):
    ae = ae or CausalVideoVAE(channels=4, width=8, depth=1)
    log = train_video_vae(ae, sampler(), **dict(steps=6, batch=2, every=3) | options)
    return torch.cat([p.detach().flatten() for p in ae.parameters()]), log


def test_video_training_repeats_and_leaves_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    (a, log), (b, _), (c, _) = run(), run(), run(seed=1)
    assert (
        torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())
    )
    assert (
        log["steps"] == 6
        and log.keys() >= {"l1", "l2", "kl", "seconds"}
        and "perceptual" not in log
    )


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_stopped_run_resumes_to_the_bit(tmp_path, adversarial):
    loss = VideoVAELoss(adversarial=adversarial)
    whole, log = run(loss=loss)
    state = tmp_path / "state.safetensors"

    class Stop(Exception):
        pass

    def stop(step, done, terms):
        if state.is_file():
            raise Stop  # at step 6, after the state of step 3

    with pytest.raises(Stop):
        run(loss=loss, state=state, report=stop)
    again, more = run(loss=loss, state=state)
    assert torch.equal(again, whole) and more["steps"] == 6 and more["l1"] == log["l1"]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    finished, none = run(loss=loss, state=state)
    assert torch.equal(finished, whole) and none["steps"] == 6, (
        "a finished run has nothing left to do"
    )


def test_a_damaged_state_is_an_error_that_names_it(tmp_path):
    state = tmp_path / "state.safetensors"
    run(steps=1, state=state)
    with pytest.raises(ValueError, match="state.safetensors: another model's state"):
        run(CausalVideoVAE(channels=5, width=8, depth=1), state=state)
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match="state.safetensors: not a whole safetensors file"):
        run(state=state)


def test_each_term_is_used():
    net = train_perceptual_net(sampler().sample_frames, 13, steps=2)[0]
    plain, _ = run()
    seen, log = run(perceptual_net=net)
    assert not torch.equal(plain, seen) and log["perceptual"] > 0
    fooled, log = run(loss=VideoVAELoss(adversarial=0.5))
    assert not torch.equal(plain, fooled) and "adversarial" in log


def test_video_training_beats_the_pca():
    ae, w = CausalVideoVAE(channels=4, width=32, depth=1), sampler()
    x = w.sample(16, generator(3))[0]
    ae.init_pca(w.sample(256, generator())[0])
    with torch.no_grad():
        before = (ae(x) - x).square().mean().item()
    train_video_vae(ae, w, steps=80, batch=4, lr=5e-3)
    with torch.no_grad():
        after = (ae(x) - x).square().mean().item()
    assert after < 0.9 * before, (before, after)


def test_a_video_loss_that_is_not_finite_changes_nothing():
    ae = CausalVideoVAE(channels=4, width=8, depth=1)
    opt = torch.optim.AdamW(ae.parameters(), 1e-2)
    with torch.no_grad():
        ae.dec[-2].bias.fill_(1e30)
    before = [p.detach().clone() for p in ae.parameters()]
    with pytest.raises(FloatingPointError, match="lower lr"):
        _video_step(ae, None, [opt], noise_clips(1, 5), generator(), VideoVAELoss(), None)
    assert all(torch.equal(p, q) for p, q in zip(ae.parameters(), before))


def test_crops_come_from_sources_by_their_share():
    w = sampler()
    x, which = w.sample(200, generator())
    assert x.shape == (200, 3, 5, 16, 16) and -1 <= x.min() and x.max() <= 1
    assert 0.6 < (which < 8).float().mean() < 0.9 and which.max() < 13
    assert set(which.tolist()) == set(range(13))


def test_crops_refuse_by_name():
    with pytest.raises(ValueError, match="must be uint8"):
        CropSampler([(scenes(2).float(), 1.0)], 5, 16)
    with pytest.raises(ValueError, match="crops of 9 frames, 16 pixels do not fit"):
        CropSampler([(scenes(2), 1.0)], 9, 16)
    with pytest.raises(ValueError, match="crops of 5 frames, 48 pixels do not fit"):
        CropSampler([(scenes(2), 1.0)], 5, 48)


def test_a_state_holds_no_more_than_tensors(tmp_path):
    """Nothing is pickled; the file opens as safetensors, and holds weights, moments and the
    generator."""
    run(steps=2, state=tmp_path / "s.safetensors")
    held = load_file(tmp_path / "s.safetensors")
    assert (
        "generator" in held
        and any(k.endswith("exp_avg_sq") for k in held)
        and any(k.startswith("ae.") for k in held)
    )
    save_file(
        {k: v for k, v in held.items() if k != "ae.skip_in.bias"},
        tmp_path / "s.safetensors",
        metadata=dict(step="2", seconds="1"),
    )
    with pytest.raises(ValueError, match="another model's state"):
        run(state=tmp_path / "s.safetensors")
