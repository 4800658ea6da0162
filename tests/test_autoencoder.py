"""The autoencoders: one contract, causality, scales, strict files, training that repeats."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisora import autoencoder as A
from minisora.clips import to_float
from minisora.metrics import foreground_psnr

KINDS = {
    "image": lambda: A.ImageVAE(width=4, enc_width=4),
    "linear encoder": lambda: A.ImageVAE(channels=8, width=4, enc_width=0),
    "smooth": lambda: A.ImageVAE(width=4, enc_width=4, smooth=8),
    "video, first frame alone": lambda: A.CausalVideoVAE(width=16, depth=1),
    "video, 4k frames": lambda: A.CausalVideoVAE(width=16, depth=1, first_alone=False),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def awake(ae):
    "The same net with random weights everywhere: layers that start at zero would hide a leak."
    with torch.no_grad():
        for p in ae.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator()))
    return ae.eval()


def noise_clips(b, frames, h=16, w=24):
    return torch.rand(b, 3, frames, h, w, generator=generator(1)) * 2 - 1


def tiny_kl(**options):
    from diffusers import AutoencoderKL

    with A.seeded(0):
        return AutoencoderKL(
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            latent_channels=3,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            **options,
        ).eval()


def scenes(n=24, size=32, frames=8):
    "Bright squares on black that move: uint8 (n, 3, frames, size, size)."
    x = torch.zeros(n, 3, frames, size, size, dtype=torch.uint8)
    for i in range(n):
        top, left = (int(v) for v in torch.randint(2, size - 20, (2,), generator=generator(i)))
        for t in range(frames):
            x[i, i % 3, t, top : top + 8, left + t : left + t + 8] = 230
    return x


# ---------------------------------------------------------------- the contract


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_shapes_are_those_the_spec_says(make):
    ae = awake(make())
    frames = 5 if ae.spec.first_alone else 8
    x = noise_clips(2, frames)
    with torch.no_grad():
        m = ae.encode(x)
        y = ae.decode(m.mode)
    assert m.mean.shape == m.logvar.shape == (2, *ae.spec.latent_shape(frames, 16, 24))
    assert y.shape == x.shape and tuple(y.shape[1:]) == ae.spec.clip_shape(*m.mean.shape[2:])
    assert m.logvar.min() >= -20 and torch.isfinite(y).all()


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda x: x[0], r"must be \(B, 3, T, H, W\)"),
        (lambda x: x[:, :1], "3 colour channels, these have 1"),
        (lambda x: x[..., :20], "multiples of 8 and 8, not 16 and 20"),
        (lambda x: x * float("nan"), "NaN or infinite"),
        (lambda x: (x * 100).byte(), "must be float in"),
    ],
    ids=["one clip", "channels", "size", "nan", "uint8"],
)
def test_bad_clips_are_refused_by_name(make, spoil, message):
    ae = make()
    x = noise_clips(1, 5 if ae.spec.first_alone else 8)
    with pytest.raises(ValueError, match=message):
        ae.encode(spoil(x))


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_bad_latents_are_refused_by_name(make):
    ae = make()
    z = torch.zeros(1, ae.spec.channels, 2, 2, 2)
    with pytest.raises(
        ValueError,
        match=f"latents have {ae.spec.channels} channels, these have {ae.spec.channels + 1}",
    ):
        ae.decode(torch.cat([z, z[:, :1]], 1))
    with pytest.raises(ValueError, match="latents must be"):
        ae.decode(z[0])
    with pytest.raises(ValueError, match="NaN"):
        ae.decode(z / 0)


@pytest.mark.parametrize(
    "first_alone, frames, fits",
    [
        (True, 1, 1),
        (True, 13, 4),
        (True, 16, None),
        (False, 16, 4),
        (False, 13, None),
        (False, 1, None),
        (True, 0, None),
    ],
)
def test_number_of_frames(first_alone, frames, fits):
    spec = A.Spec((4, 8, 8), 16, True, "video", first_alone)
    if fits:
        assert spec.latent_shape(frames, 8, 8) == (16, fits, 1, 1)
    else:
        with pytest.raises(
            ValueError, match=f"number of frames must be .*multiple of 4, not {frames}"
        ):
            spec.latent_shape(frames, 8, 8)


def test_moments():
    mean, logvar = (
        torch.randn(2, 3, 2, 4, 4, generator=generator()),
        torch.randn(2, 3, 2, 4, 4, generator=generator(1)),
    )
    m = A.Moments(mean, logvar)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0))
    assert torch.allclose(m.kl(), want, atol=1e-5)
    noise = torch.randn(mean.shape, generator=generator(5))
    assert torch.equal(m.sample(noise), m.sample(generator(5)))
    assert torch.equal(m.sample(noise), mean + (logvar / 2).exp() * noise)
    for bad in (None, 0, noise[:1]):
        with pytest.raises(ValueError, match="torch.Generator or noise of shape"):
            m.sample(bad)


# ---------------------------------------------------------------- causality


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8])
def test_a_latent_sees_no_later_frame(first_alone, frame):
    ae = awake(A.CausalVideoVAE(width=4, first_alone=first_alone))
    x = noise_clips(1, 13 if first_alone else 12)
    y = x.clone()
    y[:, :, frame] += 1
    with torch.no_grad():
        a, b = ae.encode(x), ae.encode(y)
    first = (frame + 3) // 4 if first_alone else frame // 4
    for p, q in zip(a, b):
        assert torch.allclose(p[:, :, :first], q[:, :, :first], atol=1e-6), (
            "an earlier latent knows of the frame"
        )
        assert (p[:, :, first] - q[:, :, first]).abs().max() > 1e-3, (
            "the frame's own latent does not know of it"
        )


@pytest.mark.parametrize("first_alone", [True, False])
def test_a_frame_sees_no_later_latent(first_alone):
    ae = awake(A.CausalVideoVAE(width=4, first_alone=first_alone))
    z = torch.randn(1, 16, 4, 2, 2, generator=generator())
    w = z.clone()
    w[:, :, 2] += 1
    with torch.no_grad():
        a, b = ae.decode(z), ae.decode(w)
    first = 5 if first_alone else 8
    assert torch.allclose(a[:, :, :first], b[:, :, :first], atol=1e-6)
    assert (a[:, :, first : first + 4] - b[:, :, first : first + 4]).abs().amax(
        (0, 1, 3, 4)
    ).min() > 1e-3


def test_the_causality_test_can_fail():
    "A decoder that looks at neighbours is not causal, says so, and is caught by the same comparison."
    ae = awake(A.ImageVAE(width=4, enc_width=4, smooth=8))
    assert not ae.spec.causal and A.ImageVAE(width=4).spec.causal
    z = torch.randn(1, 4, 4, 2, 2, generator=generator())
    w = z.clone()
    w[:, :, 2] += 1
    with torch.no_grad():
        a, b = ae.decode(z), ae.decode(w)
    assert not torch.allclose(a[:, :, 1], b[:, :, 1], atol=1e-4)


def test_an_image_is_a_clip_of_one_frame():
    ae = awake(A.CausalVideoVAE(width=4))
    x = noise_clips(1, 9)
    with torch.no_grad():
        clip, image = ae.encode(x), ae.encode(x[:, :, :1])
    assert torch.allclose(clip.mean[:, :, :1], image.mean, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(
            ae.decode(clip.mean)[:, :, :1], ae.decode(image.mean), atol=1e-3
        )  # values of ±50


# ---------------------------------------------------------------- PCA


def test_pca_start_is_the_best_linear_codec():
    "The error of the untrained net is what the discarded components hold, no more."
    x = noise_clips(2, 4)
    x[:, 1:] = x[:, :1] * torch.tensor([0.5, 0.2]).view(1, 2, 1, 1, 1)  # something to find
    ae = A.ImageVAE(channels=4, width=4, enc_width=4)
    ae.init_pca(x)
    rows = A.patches(x, (1, 8, 8)).double()
    values = torch.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows))
    with torch.no_grad():
        y = ae(x)
    colour = (
        (rows.mean(0).reshape(3, 64) - rows.mean(0).reshape(3, 64).mean(1, keepdim=True))
        .square()
        .mean()
    )
    assert ((x - y) ** 2).mean().item() == pytest.approx(
        (values[:-4].sum() / 192 + colour).item(), rel=0.02
    )
    assert ae.encode(x).mean.var((0, 2, 3, 4)).mean().item() == pytest.approx(
        1, abs=0.1
    )  # one scale, mean variance 1


def test_patches_keep_every_pixel_once():
    x = torch.arange(2 * 3 * 4 * 16 * 8.0).reshape(2, 3, 4, 16, 8)
    p = A.patches(x, (2, 8, 4))
    assert p.shape == (2 * 2 * 2 * 2, 3 * 2 * 8 * 4) and torch.equal(
        p.flatten().sort().values, x.flatten()
    )
    assert torch.equal(p[0].reshape(3, 2, 8, 4), x[0, :, :2, :8, :4])


def test_video_pca_start_reconstructs():
    x = to_float(scenes(12))
    ae = A.CausalVideoVAE(width=4, first_alone=False)
    ae.init_pca(x)
    with torch.no_grad():
        assert foreground_psnr(ae(x), x) > foreground_psnr(torch.full_like(x, -1), x) + 5


# ---------------------------------------------------------------- diffusers


@pytest.mark.parametrize(
    "options", [dict(), dict(scaling_factor=0.3611, shift_factor=0.1159)], ids=["SD", "FLUX-like"]
)
def test_diffusers_parity(options):
    vae = tiny_kl(**options)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    ae = A.DiffusersVAE(vae, chunk=2)
    assert ae.spec.factors == (1, 4, 4) and (ae.spec.scale, ae.spec.shift) == (scale, shift)
    x = noise_clips(2, 3)
    with torch.no_grad():
        m = ae.encode(x)
        z = m.sample(noise := torch.randn(m.mean.shape, generator=generator()))
        for t in range(3):  # what a pipeline does, frame by frame
            dist = vae.encode(x[:, :, t]).latent_dist
            want = (dist.mean + dist.std * noise[:, :, t] - shift) * scale
            assert torch.allclose(z[:, :, t], want, atol=1e-5)
            assert not torch.allclose(z[:, :, t], dist.mean + dist.std * noise[:, :, t], atol=1e-2)
            assert torch.allclose(
                ae.decode(z)[:, :, t], vae.decode(want / scale + shift).sample, atol=1e-3
            )


def test_diffusers_from_a_folder(tmp_path):
    vae = tiny_kl()
    vae.save_pretrained(tmp_path / "plain")
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    x = noise_clips(1, 1)
    for folder in ("plain", "pipeline"):
        ae = A.autoencoder_by_name(tmp_path / folder)
        assert isinstance(ae, A.DiffusersVAE)
        with torch.no_grad():
            assert torch.equal(ae.encode(x).mean, A.DiffusersVAE(vae).encode(x).mean)
    with pytest.raises(ValueError, match="Linear: not a diffusers AutoencoderKL"):
        A.DiffusersVAE(torch.nn.Linear(1, 1))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_saved_and_loaded_is_bit_equal(make, tmp_path):
    ae = awake(make())
    ae.save_pretrained(tmp_path / "ae")
    again = A.autoencoder_by_name(tmp_path / "ae")
    assert type(again) is type(ae) and again.spec == ae.spec
    x = noise_clips(1, 5 if ae.spec.first_alone else 8)
    with torch.no_grad():
        assert torch.equal(again(x), ae(x))
    assert sorted(p.name for p in (tmp_path / "ae").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def edit_config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (
            lambda f: edit_weights(f, lambda w: w.pop("skip_in.bias")),
            ValueError,
            "missing tensor 'skip_in.bias'",
        ),
        (
            lambda f: edit_weights(f, lambda w: w.update(more=torch.zeros(1))),
            ValueError,
            "unknown tensor 'more'",
        ),
        (
            lambda f: edit_weights(f, lambda w: w.update({"skip_in.bias": torch.zeros(9)})),
            ValueError,
            "skip_in.bias has shape",
        ),
        (lambda f: edit_config(f, channels=5), ValueError, r"has shape .*, not \("),
        (lambda f: edit_config(f, depth=3), ValueError, "unknown field 'depth'"),
        (
            lambda f: edit_config(f, kind="CausalVideoVAE"),
            ValueError,
            "kind is 'CausalVideoVAE', not 'ImageVAE'",
        ),
        (cut, ValueError, "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no weights"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json"),
    ],
    ids=[
        "missing",
        "unknown",
        "shape",
        "config",
        "field",
        "kind",
        "cut",
        "no weights",
        "no config",
    ],
)
def test_a_spoilt_folder_is_an_error_that_names_it(tmp_path, spoil, error, message):
    A.ImageVAE(width=4, enc_width=4).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message) as e:
        A.ImageVAE.from_pretrained(tmp_path)
    assert str(tmp_path) in str(e.value)


def test_by_name_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json of an autoencoder"):
        A.autoencoder_by_name(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        A.autoencoder_by_name(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        A.autoencoder_by_name(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="kind is 'UNet2DModel'; known kinds: ImageVAE"):
        A.autoencoder_by_name(tmp_path)


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    ae = A.ImageVAE(width=4, enc_width=4)
    ae.save_pretrained(tmp_path)
    old = (tmp_path / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(A, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        awake(ae).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# ---------------------------------------------------------------- training


def trained(seed=0, **options):
    ae = A.ImageVAE(width=4, enc_width=4)
    A.train_autoencoder(ae, scenes(), **dict(steps=5, batch=4, crop=16, seed=seed) | options)
    return torch.cat([p.detach().flatten() for p in ae.parameters()])


def test_training_repeats_and_leaves_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    a, b, c = trained(), trained(), trained(seed=1)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_training_beats_the_pca(make):
    ae = make()
    x = scenes()[:, :, : 5 if ae.spec.first_alone else 4]
    ae.init_pca(to_float(x))
    with torch.no_grad():
        before = foreground_psnr(ae(to_float(x)), x)
    log = A.train_autoencoder(ae, x, steps=60, batch=4, crop=24, noise=0.0)
    with torch.no_grad():
        after = foreground_psnr(ae(to_float(x)), x)
    assert after > before + 0.3, (before, after)
    assert (
        log["steps"] == 60 and log["loss"] >= log["error"] > 0 and log["kl"] > 0 and not ae.training
    )


def test_a_linear_encoder_stays_linear():
    ae = A.ImageVAE(width=4, enc_width=0)
    A.train_autoencoder(ae, scenes(), steps=3, batch=2, crop=16)
    x = noise_clips(2, 2)
    with torch.no_grad():
        z = [ae.encode(v).mean for v in (x[:1], x[1:], (x[:1] + x[1:]) / 2)]
    assert torch.allclose((z[0] + z[1]) / 2, z[2], atol=1e-5)
    assert ae.encode(x).logvar.max() == -20 and not ae.skip_in.weight.requires_grad


def test_a_loss_that_is_not_finite_changes_nothing():
    ae = A.ImageVAE(width=4, enc_width=4)
    opt = torch.optim.AdamW(ae.parameters(), 1e-2)
    with torch.no_grad():
        ae.dec[-2].bias.fill_(1e30)
    before = [p.detach().clone() for p in ae.parameters()]
    with pytest.raises(FloatingPointError, match="lower lr"):
        A.train_step(ae, opt, noise_clips(1, 2), generator(), noise=0.3)
    assert all(torch.equal(p, q) for p, q in zip(ae.parameters(), before))


def test_lowpass_weighs_the_means_of_blocks():
    ae, x = awake(A.ImageVAE(width=4, enc_width=4)), noise_clips(2, 2)
    with torch.no_grad():
        loss = [A.vae_loss(ae, x, generator(), lowpass=w)[0].item() for w in (0, 10, 20)]
        z = ae.encode(x).sample(torch.randn(2, 4, 2, 2, 3, generator=generator()))
        off = (
            A.vae_loss(ae, x, generator(), noise=0.0, lowpass=1.0)[0]
            - A.vae_loss(ae, x, generator(), noise=0.0)[0]
        )
        means = (ae.decode(z) - x).unflatten(3, (2, 8)).unflatten(5, (3, 8)).mean((4, 6))
    assert (
        loss[2] - loss[0] == pytest.approx(2 * (loss[1] - loss[0]), rel=1e-3) and loss[1] > loss[0]
    )
    assert off.item() == pytest.approx(means.square().mean().item(), rel=1e-2)


def test_windows_lie_where_there_is_light():
    x = torch.zeros(3, 4, 64, 64, dtype=torch.uint8)
    x[:, :, 48:56, 8:16] = 255
    seen = [A.random_window(x, 2, 16, generator(s)) for s in range(20)]
    assert all(w.shape == (3, 2, 16, 16) for w in seen)
    assert sum(w.max() > 0 for w in seen) > 15  # by chance it would be two
    black = [A.random_window(x[..., :40, 20:] * 0, 4, 64, generator(s)) for s in range(2)]
    assert all(w.shape == (3, 4, 40, 44) for w in black)  # no light, and smaller than the crop


def test_what_training_refuses():
    ae = A.ImageVAE(width=4, enc_width=4)
    with pytest.raises(ValueError, match="either seconds or steps"):
        A.train_autoencoder(ae, scenes(2))
    with pytest.raises(ValueError, match="either seconds or steps"):
        A.train_autoencoder(ae, scenes(2), seconds=1, steps=1)
    with pytest.raises(ValueError, match="no clips"):
        A.train_autoencoder(ae, scenes(2)[:0], steps=1)
    with pytest.raises(ValueError, match="must be uint8"):
        A.train_autoencoder(ae, to_float(scenes(2)), steps=1)
    video = A.CausalVideoVAE(width=4, first_alone=False)
    with pytest.raises(ValueError, match="3 frames are too few"):
        A.train_autoencoder(video, scenes(2)[:, :, :3], steps=1)


def test_seconds_end_the_training():
    assert (
        0
        < A.train_autoencoder(A.ImageVAE(width=4, enc_width=4), scenes(4), seconds=0.5, crop=16)[
            "seconds"
        ]
        < 20
    )
