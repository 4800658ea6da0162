"""What makes objects move evenly: the loss on uneven motion, the tuned decoder, samples that settle."""

import pytest
import torch

from minisora.autoencoder import ImageVAE, lit_windows, train_autoencoder, tune_decoder
from minisora.clips import SceneClips, to_float
from minisora.interpolants import Interpolant, time_slip
from minisora.sampling import settle

AT = 2 + torch.arange(8.0)


def bump(at):
    "One bump at place `at` (T,) of a row of 16: (1, 1, T, 1, 16)."
    return 4 * torch.exp(-((torch.arange(16.0) - at[:, None]) ** 2) / 4)[None, None, :, None]


def test_slip_is_the_shift_in_time():
    late = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.05, 0.1])
    error = bump(AT + late) - bump(AT)  # moves one place a frame: places are frames
    torch.testing.assert_close(time_slip(error, bump(AT))[0], late, atol=0.03, rtol=0.1)
    assert (
        time_slip(torch.ones(1, 1, 4, 1, 16), torch.ones(1, 1, 4, 1, 16)).abs().max() == 0
    )  # nothing moves


def test_only_uneven_slip_costs():
    t, noise = (
        torch.full((1,), 0.5),
        torch.randn(1, 1, 8, 1, 16, generator=torch.Generator().manual_seed(0)),
    )
    o = Interpolant(prediction="data", steady=2.0)

    def terms(late):
        return o.loss(lambda *_: bump(AT + late), bump(AT), None, noise, t)

    even, uneven = terms(torch.full((8,), 0.3)), terms(0.3 * torch.tensor([1.0, -1.0] * 4))
    torch.testing.assert_close(even["mse"], uneven["mse"], rtol=0.05, atol=0)
    assert even["jerk"] < 0.02 < 0.8 < uneven["jerk"] < 1.2
    torch.testing.assert_close(uneven["loss"], uneven["mse"] + 2 * uneven["jerk"])
    # a velocity that is wrong by `d` is data that is wrong by d · (1 - t): the same clip, the same slip
    v = Interpolant(steady=2.0).loss(
        lambda x, *_: (bump(AT + 0.3 * torch.tensor([1.0, -1.0] * 4)) - x) / 0.5,
        bump(AT),
        None,
        noise,
        t,
    )
    torch.testing.assert_close(v["jerk"], uneven["jerk"])
    short = o.loss(lambda *_: noise[:, :, :2], noise[:, :, :2], None, noise[:, :, :2], t)
    assert "jerk" not in short  # two frames have no second difference
    with pytest.raises(ValueError, match="steady must be .*-1"):
        Interpolant(steady=-1.0)


def test_settled_samples_are_the_mean_of_fresh_predictions():
    o, x = (
        Interpolant(prediction="data"),
        torch.randn(6, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )

    def echo(x, t, y=None):
        return x + (0 if y is None else y.view(-1, 1, 1, 1, 1))

    many = settle(echo, o, x, times=400)  # mean of t x + (1 - t) noise
    torch.testing.assert_close(many, x / 2, atol=0.12, rtol=0)
    y = torch.arange(6.0)
    whole = settle(echo, o, x, y, times=3, seed=4)
    assert torch.equal(whole, settle(echo, o, x, y, times=3, seed=4, batch_size=4))
    assert torch.equal(whole[2:4], settle(echo, o, x[2:4], y[2:4], times=3, seed=4, index=[2, 3]))
    assert not torch.equal(whole, settle(echo, o, x, y, times=3, seed=5))


def test_windows_of_clip_and_latents_agree():
    clips = SceneClips(4, seed=1)
    x = to_float(torch.stack([clips[i].frames for i in range(4)]))
    z = x[:, :1, :, ::8, ::8]  # a cell's first pixel stands for its latent
    a, b = lit_windows(x, z, 5, torch.Generator().manual_seed(0))
    assert a.shape == (4, 3, 16, 40, 40) and torch.equal(a[:, :1, :, ::8, ::8], b)
    assert all(k.max() > 0 for k in a)  # something is to be seen in each
    assert lit_windows(x, z, 99, torch.Generator())[0].shape == x.shape


def test_a_tuned_decoder_mends_what_a_model_gets_wrong():
    clips = SceneClips(32, seed=1)
    ae = ImageVAE(channels=4, enc_width=0, width=8, smooth=8)
    train_autoencoder(ae, clips, steps=30)
    x = to_float(torch.stack([clips[i].frames for i in range(8)]))
    wrong = lambda z: 0.8 * z + 0.3  # a model with one habit

    def predict(index, generator):
        return wrong(ae.encode(to_float(torch.stack([clips[int(i)].frames for i in index]))).mode)

    def error():
        with torch.no_grad():
            return ((ae.decode(wrong(ae.encode(x).mode)) - x) ** 2).mean().item()

    before, encoder = error(), ae.skip_in.weight.clone()
    with torch.no_grad():
        kept = ae.encode(x).mode
    tune_decoder(ae, clips, predict, steps=40, batch=2)
    assert error() < 0.7 * before
    assert (
        torch.equal(encoder, ae.skip_in.weight)
        and torch.equal(kept, ae.encode(x).mode)
        and not ae.training
    )
