"""The autoencoders: one contract, scales, strict files, training that repeats."""

import importlib
import json
import os
import subprocess
import sys
import time
import warnings

import pytest
import torch
from conftest import ROOT
from helpers.autoencoder import awake, generator, noise_clips, scenes
from safetensors.torch import load_file, save_file

from minisora import autoencoder
from minisora.autoencoder import (
    ImageVAE,
    _train_step,
    load_autoencoder,
    train_autoencoder,
    vae_loss,
)
from minisora.core import files
from minisora.core.protocols import AutoencoderSpec, DiagonalGaussian
from minisora.core.renames import OLD_NAMES
from minisora.data.video import to_float
from minisora.latents.base import extract_patches
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.video_vae import CausalVideoVAE
from minisora.metrics import foreground_psnr

KINDS = {
    "image": lambda: ImageVAE(width=4, enc_width=4),
    "linear encoder": lambda: ImageVAE(channels=8, width=4, enc_width=0),
    "smooth": lambda: ImageVAE(width=4, enc_width=4, smooth=8),
    "video, first frame alone": lambda: CausalVideoVAE(width=16, depth=1),
    "video, 4k frames": lambda: CausalVideoVAE(width=16, depth=1, first_alone=False),
}


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
        (lambda x: x[:, :1], "3 color channels, these have 1"),
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
    spec = AutoencoderSpec((4, 8, 8), 16, True, "video", first_alone)
    if fits:
        assert spec.latent_shape(frames, 8, 8) == (16, fits, 1, 1)
    else:
        with pytest.raises(
            ValueError, match=f"number of frames must be .*multiple of 4, not {frames}"
        ):
            spec.latent_shape(frames, 8, 8)


def test_diagonal_gaussian():
    mean, logvar = (
        torch.randn(2, 3, 2, 4, 4, generator=generator()),
        torch.randn(2, 3, 2, 4, 4, generator=generator(1)),
    )
    m = DiagonalGaussian(mean, logvar)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0))
    assert torch.allclose(m.kl(), want, atol=1e-5)
    noise = torch.randn(mean.shape, generator=generator(5))
    assert torch.equal(m.sample(noise), m.sample(generator(5)))
    assert torch.equal(m.sample(noise), mean + (logvar / 2).exp() * noise)
    for bad in (None, 0, noise[:1]):
        with pytest.raises(ValueError, match="torch.Generator or noise of shape"):
            m.sample(bad)


# ---------------------------------------------------------------- PCA


def test_pca_start_is_the_best_linear_codec():
    "The error of the untrained net is what the discarded components hold, no more."
    x = noise_clips(2, 4)
    x[:, 1:] = x[:, :1] * torch.tensor([0.5, 0.2]).view(1, 2, 1, 1, 1)  # something to find
    ae = ImageVAE(channels=4, width=4, enc_width=4)
    ae.init_pca(x)
    rows = extract_patches(x, (1, 8, 8)).double()
    values = torch.linalg.eigvalsh((rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows))
    with torch.no_grad():
        y = ae(x)
    color = (
        (rows.mean(0).reshape(3, 64) - rows.mean(0).reshape(3, 64).mean(1, keepdim=True))
        .square()
        .mean()
    )
    assert ((x - y) ** 2).mean().item() == pytest.approx(
        (values[:-4].sum() / 192 + color).item(), rel=0.02
    )
    assert ae.encode(x).mean.var((0, 2, 3, 4)).mean().item() == pytest.approx(
        1, abs=0.1
    )  # one scale, mean variance 1


def test_patches_keep_every_pixel_once():
    x = torch.arange(2 * 3 * 4 * 16 * 8.0).reshape(2, 3, 4, 16, 8)
    p = extract_patches(x, (2, 8, 4))
    assert p.shape == (2 * 2 * 2 * 2, 3 * 2 * 8 * 4) and torch.equal(
        p.flatten().sort().values, x.flatten()
    )
    assert torch.equal(p[0].reshape(3, 2, 8, 4), x[0, :, :2, :8, :4])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_saved_and_loaded_is_bit_equal(make, tmp_path):
    ae = awake(make())
    ae.save_pretrained(tmp_path / "ae")
    again = load_autoencoder(tmp_path / "ae")
    assert type(again) is type(ae) and again.spec == ae.spec
    x = noise_clips(1, 5 if ae.spec.first_alone else 8)
    with torch.no_grad():
        assert torch.equal(again(x), ae(x))
    assert sorted(p.name for p in (tmp_path / "ae").iterdir()) == FILES


FILES = ["README.md", "config.json", "model.safetensors"]


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
            "missing key 'skip_in.bias'",
        ),
        (
            lambda f: edit_weights(f, lambda w: w.update(more=torch.zeros(1))),
            ValueError,
            "unexpected key 'more'",
        ),
        (
            lambda f: edit_weights(f, lambda w: w.update({"skip_in.bias": torch.zeros(9)})),
            ValueError,
            "'skip_in.bias' has shape",
        ),
        (lambda f: edit_config(f, channels=5), ValueError, r"has shape .*, not \("),
        (lambda f: edit_config(f, depth=3), ValueError, "ImageVAE has no field 'depth'"),
        (
            lambda f: edit_config(f, kind="CausalVideoVAE"),
            ValueError,
            "kind is 'CausalVideoVAE', not 'image-vae'",
        ),
        (cut, ValueError, "model.safetensors: holds no plain tensors"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            FileNotFoundError,
            "model.safetensors: no such file",
        ),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json: no such file"),
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
def test_a_damaged_folder_is_an_error_that_names_it(tmp_path, spoil, error, message):
    ImageVAE(width=4, enc_width=4).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message) as e:
        ImageVAE.from_pretrained(tmp_path)
    assert str(tmp_path) in str(e.value)


def test_by_name_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json of an autoencoder"):
        load_autoencoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_autoencoder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: is no JSON"):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="config.json: _class_name must be one of 'AutoencoderKL'"):
        load_autoencoder(tmp_path)


def test_a_kind_that_nobody_knows(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "image-vea"}')
    with pytest.raises(
        ValueError, match="config.json: kind must be one of .*did you mean 'image-vae'"
    ):
        load_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text('{"channels": 4}')
    with pytest.raises(ValueError, match="config.json: kind must be one of .*, not None"):
        load_autoencoder(tmp_path)


OURS = {
    "image-vae": ("ImageVAE", KINDS["image"]),
    "causal-video-vae": ("CausalVideoVAE", KINDS["video, first frame alone"]),
    "pca-compressed-vae": (
        "FoldedVAE",
        lambda: PCACompressedVAE(dict(channels=4, width=8, depth=1), fold=2, channels=6, refine=8),
    ),
}


@pytest.mark.parametrize("kind", OURS)
def test_a_file_says_its_kind_and_is_found_by_todays_and_earlier_ones(kind, tmp_path):
    earlier, make = OURS[kind]
    ae = make()
    ae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert list(config)[0] == "kind" and config["kind"] == kind and ae.spec.name == earlier
    for name in (kind, earlier):
        edit_config(tmp_path, kind=name)
        again = load_autoencoder(tmp_path)
        assert type(again) is type(ae) and not again.training
        for key, value in ae.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


def test_kinds_are_found_before_their_modules_are_imported():
    "The registry imports what it needs: nothing but core was asked for."
    code = """
from minisora.core.hub import AUTOENCODERS
kinds = "AutoencoderKL", "FoldedVAE", "causal-video-vae", "image-vae"
print(*(AUTOENCODERS[k].__name__ for k in kinds))"""
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.stdout.split() == ["DiffusersVAE", "PCACompressedVAE", "CausalVideoVAE", "ImageVAE"]


def test_the_avatars_autoencoder_loads_by_its_folder():
    ae = load_autoencoder(ROOT / "data" / "avatar" / "autoencoder")
    assert type(ae) is PCACompressedVAE and ae.spec.factors == (4, 96, 96) and ae.refiner


def test_a_failed_save_leaves_the_old_files(tmp_path, monkeypatch):
    ae = ImageVAE(width=4, enc_width=4)
    ae.save_pretrained(tmp_path)
    old = (tmp_path / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        awake(ae).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


# ---------------------------------------------------------------- training


def trained(seed=0, **options):
    ae = ImageVAE(width=4, enc_width=4)
    train_autoencoder(ae, scenes(), **dict(steps=5, batch=4, crop=16, seed=seed) | options)
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
    log = train_autoencoder(ae, x, steps=60, batch=4, crop=24, noise=0.0)
    with torch.no_grad():
        after = foreground_psnr(ae(to_float(x)), x)
    assert after > before + 0.3, (before, after)
    assert (
        log["steps"] == 60 and log["loss"] >= log["error"] > 0 and log["kl"] > 0 and not ae.training
    )


def test_a_linear_encoder_stays_linear():
    ae = ImageVAE(width=4, enc_width=0)
    train_autoencoder(ae, scenes(), steps=3, batch=2, crop=16)
    x = noise_clips(2, 2)
    with torch.no_grad():
        z = [ae.encode(v).mean for v in (x[:1], x[1:], (x[:1] + x[1:]) / 2)]
    assert torch.allclose((z[0] + z[1]) / 2, z[2], atol=1e-5)
    assert ae.encode(x).logvar.max() == -20 and not ae.skip_in.weight.requires_grad


def test_a_loss_that_is_not_finite_changes_nothing():
    ae = ImageVAE(width=4, enc_width=4)
    opt = torch.optim.AdamW(ae.parameters(), 1e-2)
    with torch.no_grad():
        ae.dec[-2].bias.fill_(1e30)
    before = [p.detach().clone() for p in ae.parameters()]
    with pytest.raises(FloatingPointError, match="lower lr"):
        _train_step(ae, opt, noise_clips(1, 2), generator(), noise=0.3)
    assert all(torch.equal(p, q) for p, q in zip(ae.parameters(), before))


def test_lowpass_weighs_the_means_of_blocks():
    ae, x = awake(ImageVAE(width=4, enc_width=4)), noise_clips(2, 2)
    with torch.no_grad():
        loss = [vae_loss(ae, x, generator(), lowpass=w)[0].item() for w in (0, 10, 20)]
        z = ae.encode(x).sample(torch.randn(2, 4, 2, 2, 3, generator=generator()))
        off = (
            vae_loss(ae, x, generator(), noise=0.0, lowpass=1.0)[0]
            - vae_loss(ae, x, generator(), noise=0.0)[0]
        )
        means = (ae.decode(z) - x).unflatten(3, (2, 8)).unflatten(5, (3, 8)).mean((4, 6))
    assert (
        loss[2] - loss[0] == pytest.approx(2 * (loss[1] - loss[0]), rel=1e-3) and loss[1] > loss[0]
    )
    assert off.item() == pytest.approx(means.square().mean().item(), rel=1e-2)


def test_what_training_refuses():
    ae = ImageVAE(width=4, enc_width=4)
    with pytest.raises(ValueError, match="either seconds or steps"):
        train_autoencoder(ae, scenes(2))
    with pytest.raises(ValueError, match="either seconds or steps"):
        train_autoencoder(ae, scenes(2), seconds=1, steps=1)
    with pytest.raises(ValueError, match="no clips"):
        train_autoencoder(ae, scenes(2)[:0], steps=1)
    with pytest.raises(ValueError, match="must be uint8"):
        train_autoencoder(ae, to_float(scenes(2)), steps=1)
    video = CausalVideoVAE(width=4, first_alone=False)
    with pytest.raises(ValueError, match="3 frames are too few"):
        train_autoencoder(video, scenes(2)[:, :, :3], steps=1)


def test_seconds_end_the_training(monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 0.125
        return now[0]

    monkeypatch.setattr(time, "perf_counter", clock)  # read once a step
    log = train_autoencoder(ImageVAE(width=4, enc_width=4), scenes(4), seconds=1, crop=16)
    assert log["steps"] == 8 and 1 <= log["seconds"] < 1.5


# ---------------------------------------------------------------- names of version 0.1

OLD = """
FAMILIES KINDS Moments Spec check_clips check_latents load_strict Pretrained Autoencoder to_frames
to_clips patches pca set_pca seeded zero ImageVAE Smoother hold likely_place random_window
window_length reconstruction_weight noisy_sample vae_loss descend train_step countdown
warm_and_decay train_autoencoder lit_windows tune_decoder image_family tiny_family wan_family
cogvideox_family ltx_family hunyuan_family per_channel find_config read_config load_diffusers
DiffusersVAE CausalConv3d FrameNorm CausalBlock Unfold3d CausalVideoVAE Past encode_pieces
decode_pieces tile_ramp tile_starts tiled_decode spoilt Eyes train_eyes Critic VideoLoss busy_window
save_state load_state recoloured mixed Windows train_video_vae mean_terms video_step
autoencoder_by_name
""".split()


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_still_there_and_warns(name):
    "What the table gives is also what the module gives, where it has that name itself."
    table = OLD_NAMES["minisora.autoencoder"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = getattr(autoencoder, name)
    if name in vars(autoencoder):
        home, _, new = table.get(name, f"minisora.autoencoder:{name}").partition(":")
        assert found is getattr(importlib.import_module(home), new) and not said
    else:
        assert table[name].replace(":", ".") in str(said[0].message)


def test_old_names_that_took_other_arguments(tmp_path):
    ae = ImageVAE(width=4, enc_width=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="must be"):
            autoencoder.check_clips(torch.zeros(1), ae.spec)
        with pytest.raises(ValueError, match="latents must be"):
            autoencoder.check_latents(torch.zeros(1), ae.spec)
        ae.save_pretrained(tmp_path)
        again = ImageVAE(width=4, enc_width=4, seed=3)
        autoencoder.load_strict(again, tmp_path / "model.safetensors")
        assert torch.equal(again.dec[0].weight, ae.dec[0].weight)
        cut(tmp_path)
        with pytest.raises(ValueError, match="model.safetensors"):
            autoencoder.load_strict(again, tmp_path / "model.safetensors")
        windows = autoencoder.Windows([(scenes(4), 1.0)], frames=5, crop=16, recolour=0.5, mix=0.25)
        assert (
            (windows.color_jitter, windows.mixup) == (windows.recolour, windows.mix) == (0.5, 0.25)
        )
        x, _ = windows.draw(2, generator())
        assert torch.equal(windows.frame(2, generator())[0], x[:, :, 0])
        eyes = autoencoder.Eyes(clips=4)
        video = autoencoder.CausalVideoVAE(channels=4, width=8, depth=1)
        log = autoencoder.train_video_vae(video, windows=windows, steps=1, batch=1, eyes=eyes)
        assert log["perceptual"] > 0
