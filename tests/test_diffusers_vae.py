"""diffusers' autoencoders behind our three calls: scaled as their pipelines scale, causal where the
spec says so."""

import json

import pytest
import torch
from helpers.autoencoder import SIZES, generator, noise_clips, tiny, tiny_kl

from minisora.autoencoder import load_autoencoder
from minisora.latents import diffusers_vae
from minisora.latents.diffusers_vae import DiffusersVAE, _find_config, _per_channel


def row(values):
    return torch.tensor(values).view(1, -1, 1, 1, 1)


PIPELINES = dict(
    AutoencoderKLWan=(  # pipelines/wan/pipeline_wan_video2video.py
        lambda v, z: (z - row(v.config.latents_mean)) * (1.0 / row(v.config.latents_std)),
        lambda v, z: z / (1.0 / row(v.config.latents_std)) + row(v.config.latents_mean),
    ),
    AutoencoderKLCogVideoX=(  # pipelines/cogvideo/pipeline_cogvideox_video2video.py
        lambda v, z: v.config.scaling_factor * z,
        lambda v, z: 1 / v.config.scaling_factor * z,
    ),
    # pipelines/ltx/pipeline_ltx.py: _normalize_latents, _denormalize_latents
    AutoencoderKLLTXVideo=(
        lambda v, z: (
            (z - v.latents_mean.view(1, -1, 1, 1, 1))
            * v.config.scaling_factor
            / v.latents_std.view(1, -1, 1, 1, 1)
        ),
        lambda v, z: (
            z * v.latents_std.view(1, -1, 1, 1, 1) / v.config.scaling_factor
            + v.latents_mean.view(1, -1, 1, 1, 1)
        ),
    ),
    AutoencoderKLHunyuanVideo=(  # pipelines/hunyuan_video/pipeline_hunyuan_video_image2video.py
        lambda v, z: z * v.config.scaling_factor,
        lambda v, z: z / v.config.scaling_factor,
    ),
)


def clip_for(kind, frames=None):
    n, side = SIZES[kind]
    return noise_clips(1, frames or n, side, side)


def near(a, b, relative=1e-5):
    return ((a - b).abs().max() / b.abs().max()).item() < relative


@pytest.mark.parametrize(
    "options", [dict(), dict(scaling_factor=0.3611, shift_factor=0.1159)], ids=["SD", "FLUX-like"]
)
def test_diffusers_parity(options):
    vae = tiny_kl(**options)
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    ae = DiffusersVAE(vae, chunk=2)
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
        ae = load_autoencoder(tmp_path / folder)
        assert isinstance(ae, DiffusersVAE)
        with torch.no_grad():
            assert torch.equal(ae.encode(x).mean, DiffusersVAE(vae).encode(x).mean)
    with pytest.raises(ValueError, match="source must be one of 'AutoencoderKL', .*, not 'Linear'"):
        DiffusersVAE(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("kind", PIPELINES)
def test_scaled_as_the_pipeline_scales(kind):
    vae, (forth, back) = tiny(kind), PIPELINES[kind]
    ae, x = DiffusersVAE(vae), clip_for(kind)
    with torch.no_grad():
        m, dist = ae.encode(x), vae.encode(x).latent_dist
        noise = torch.randn(m.mean.shape, generator=torch.Generator().manual_seed(0))
        want = forth(
            vae, dist.mean + dist.std * noise
        )  # a sample, so that the variance is held too
        assert m.mean.shape[1:] == ae.spec.latent_shape(*x.shape[2:])
        assert near(m.sample(noise), want) and not near(
            m.sample(noise), dist.mean + dist.std * noise, 1e-2
        )
        options = (want.new_zeros(1),) if kind == "AutoencoderKLLTXVideo" else ()
        y = ae.decode(want)
        assert y.shape == x.shape == (1, *ae.spec.clip_shape(*m.mean.shape[2:]))
        assert near(y, vae.decode(back(vae, want), *options).sample)
        assert not near(y, vae.decode(want, *options).sample, 1e-3)


def test_tiny_has_no_variance_and_its_own_scale():
    vae = tiny("AutoencoderTiny")
    ae, x = DiffusersVAE(vae, chunk=2), noise_clips(2, 3)
    with torch.no_grad():
        m = ae.encode(x)
        for t in range(3):
            want = vae.encode(x[:, :, t]).latents * 0.7
            assert near(m.mean[:, :, t], want) and near(
                ae.decode(m.mean)[:, :, t], vae.decode(want / 0.7).sample
            )
    assert ae.spec.factors == (1, 4, 4) and ae.spec.causal and (m.logvar < -20).all()


@pytest.mark.parametrize(
    "options",
    [dict(scaling_factor=0.18215), dict(scaling_factor=1.5305, shift_factor=0.0609)],
    ids=["SD", "SD3"],
)
def test_kl_scale_and_shift(options):
    vae = tiny_kl(**options)
    ae, x = DiffusersVAE(vae), noise_clips(1, 1)
    with torch.no_grad():
        raw = vae.encode(x[:, :, 0]).latent_dist.mean
        want = (raw - options.get("shift_factor", 0.0)) * options["scaling_factor"]
        assert near(ae.encode(x).mean[:, :, 0], want)


def test_kl_with_statistics_per_channel():
    "As pipelines/stable_diffusion_xl does it where the config has latents_mean and latents_std."
    vae = tiny_kl(scaling_factor=0.5, latents_mean=[1.0, 2.0, -1.0], latents_std=[2.0, 3.0, 4.0])
    ae, x = DiffusersVAE(vae), noise_clips(1, 1)
    mean, std = row([1.0, 2.0, -1.0]), row([2.0, 3.0, 4.0])
    with torch.no_grad():
        raw = vae.encode(x[:, :, 0]).latent_dist.mean[:, :, None]
        z = (raw - mean) * 0.5 / std
        assert near(ae.encode(x).mean, z)
        assert near(ae.decode(z)[:, :, 0], vae.decode((z * std / 0.5 + mean)[:, :, 0]).sample)


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_spec_says_truly_whether_a_latent_sees_the_future(kind):
    vae = tiny(kind)
    ae, frames = DiffusersVAE(vae), 17
    x = clip_for(kind, frames)
    y = x.clone()
    y[:, :, 9:] *= -1  # from here on another clip
    first = 1 + 8 // ae.spec.factors[0]  # the first latent that may know
    with torch.no_grad():
        a, b = ae.encode(x).mean, ae.encode(y).mean
    assert not torch.allclose(a[:, :, first:], b[:, :, first:], atol=1e-4)
    unmoved = torch.allclose(a[:, :, :first], b[:, :, :first], atol=1e-6)
    if kind == "AutoencoderKLCogVideoX":  # it goes by pieces of eight: look inside one
        y = x.clone()
        y[:, :, 8] *= -1
        with torch.no_grad():
            unmoved = torch.allclose(a[:, :, :2], ae.encode(y).mean[:, :, :2], atol=1e-6)
    assert ae.spec.causal == unmoved == (kind in ("AutoencoderKLWan", "AutoencoderKLLTXVideo"))


@pytest.mark.parametrize("kind", PIPELINES)
def test_an_image_is_a_clip_of_one_frame(kind):
    ae = DiffusersVAE(tiny(kind))
    x = clip_for(kind)
    with torch.no_grad():
        image, clip = ae.encode(x[:, :, :1]).mean, ae.encode(x).mean
        assert image.shape[2] == 1 and ae.decode(image).shape == x[:, :, :1].shape
    if ae.spec.causal:
        assert torch.allclose(image, clip[:, :, :1], atol=1e-5)


@pytest.mark.parametrize("kind", PIPELINES)
def test_number_of_frames(kind):
    ae = DiffusersVAE(tiny(kind))
    factor = ae.spec.factors[0]
    with pytest.raises(
        ValueError, match=rf"number of frames must be 1 \+ a multiple of {factor}, not {2 + factor}"
    ):
        ae.encode(clip_for(kind, 2 + factor))


def test_cogvideox_refuses_what_would_come_back_longer():
    "Its decoder turns an even number of latents into 4 frames each: 5 frames would come back as 8."
    ae = DiffusersVAE(tiny("AutoencoderKLCogVideoX"))
    with pytest.raises(ValueError, match=r"number of frames must be 1 \+ a multiple of 8, not 5"):
        ae.encode(clip_for("AutoencoderKLCogVideoX", 5))
    with pytest.raises(ValueError, match=r"number of latents must be 1 \+ a multiple of 2, not 2"):
        ae.decode(torch.zeros(1, 4, 2, 2, 2))


def test_a_decoder_that_draws_noise_repeats_and_leaves_the_global_generator():
    "LTX-Video 0.9.1: noise inside the decoder, and a time step, which its pipeline leaves at 0."
    vae = tiny(
        "AutoencoderKLLTXVideo", decoder_inject_noise=(True,) * 5, timestep_conditioning=True
    )
    with torch.no_grad():
        for name, p in vae.named_parameters():
            if "per_channel_scale" in name:
                p.fill_(1.0)
    ae, z = (
        DiffusersVAE(vae),
        torch.randn(1, 8, 2, 2, 2, generator=torch.Generator().manual_seed(0)),
    )
    raw = z / _per_channel(ae.spec.scale, z) + _per_channel(ae.spec.shift, z)
    with torch.no_grad():
        torch.manual_seed(3)
        before = torch.get_rng_state()
        a = ae.decode(z)
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(4)
        b, other = ae.decode(z), vae.decode(raw, torch.zeros(1)).sample
    assert torch.equal(a, b) and not torch.allclose(a, other, atol=1e-3)


@pytest.mark.parametrize("kind", ["AutoencoderTiny", *PIPELINES])
def test_from_a_folder_by_name(kind, tmp_path):
    vae = tiny(kind)
    vae.save_pretrained(tmp_path / "plain")
    vae.save_pretrained(tmp_path / "pipeline" / "vae")
    x = noise_clips(1, 1, 32, 32)
    with torch.no_grad():
        want = DiffusersVAE(vae).encode(x).mean
        for folder in ("plain", "pipeline"):
            ae = load_autoencoder(tmp_path / folder)
            assert ae.family == kind and torch.equal(ae.encode(x).mean, want)
    assert torch.equal(DiffusersVAE(tmp_path / "pipeline").encode(x).mean, want)


def test_a_family_that_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(_class_name="AutoencoderOobleck")))
    with pytest.raises(
        ValueError, match="_class_name must be one of 'AutoencoderKL', .*, not 'AutoencoderOobleck'"
    ):
        DiffusersVAE(tmp_path)
    with pytest.raises(
        ValueError, match="_class_name must be one of .*HunyuanVideo', not 'AutoencoderOobleck'"
    ):
        load_autoencoder(tmp_path)


def test_a_pipeline_on_the_hub(tmp_path, monkeypatch):
    """A pipeline has no config.json at its top: its vae is looked for there too, and loaded from
    there."""
    import diffusers

    vae, asked = tiny_kl(), []
    vae.save_pretrained(tmp_path / "vae")

    def download(name, inside):
        asked.append(inside)
        if inside == "config.json":
            raise OSError("404")
        return tmp_path / inside

    def load(name, subfolder, **options):
        assert (name, subfolder) == ("someone/pipeline", "vae") and options["use_safetensors"]
        return vae

    monkeypatch.setattr(diffusers_vae, "hf_hub_download", download)
    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", load)
    assert load_autoencoder("someone/pipeline").vae is vae
    assert asked[:2] == ["config.json", "vae/config.json"]
    with pytest.raises(
        FileNotFoundError, match="no such folder, and not found on the hub .OSError"
    ):
        _find_config("someone/other", ("",))
