"""Clips, autoencoders, devices, indices and objectives that are nearly right: taken, or named."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from minisora import (
    LatentCache,
    VideoDiT,
    VideoDiTConfig,
    VideoPipeline,
    cli,
    fit,
    metrics,
    sample,
    viz,
)
from minisora.autoencoder import ImageVAE, train_autoencoder
from minisora.clips import SceneClips
from minisora.core.checks import parse_texts
from minisora.core.devices import as_device, devices_here
from minisora.core.files import sha256_file, write_tensors
from minisora.core.hub import OBJECTIVES
from minisora.core.protocols import AutoencoderSpec, Clip, DiagonalGaussian
from minisora.core.tensors import load_tensors
from minisora.data.buckets import BucketSampler
from minisora.data.folders import FolderClips
from minisora.data.opening import open_clips
from minisora.data.video import read_video, to_uint8, write_video
from minisora.data.vocabulary import Vocabulary
from minisora.dit import DiT, DiTConfig
from minisora.experiment import Experiment
from minisora.interpolants import Interpolant
from minisora.latent_cache import repair_cache, write_cache
from minisora.latents.cache_import import NpyFolder
from minisora.latents.sharded_sampler import ShardedSampler
from minisora.latents.video_vae import CausalVideoVAE
from minisora.models.conditions import WordCondition
from minisora.recipe import parse_field

GREY = torch.full((3, 4, 32, 32), 90, dtype=torch.uint8)


def clip(frames=GREY, caption="a ball"):
    return Clip(frames, caption, 8.0, source="here")


def write(path, clips, autoencoder=None):
    return write_cache(path, clips, autoencoder or ImageVAE(), progress=False)


# ---- what write_cache is given


def test_clips_of_any_float_or_of_numpy_are_the_same_clips(tmp_path):
    floats = GREY.float() / 127.5 - 1
    same = [GREY, GREY.numpy(), floats, floats.double(), floats.numpy(), floats.half()]
    caches = [write(tmp_path / f"{i}", [clip(frames)]) for i, frames in enumerate(same)]
    for cache in caches:
        assert torch.allclose(cache[0]["latents"], caches[0][0]["latents"], atol=2e-2)


@pytest.mark.parametrize(
    "item, error",
    [
        (clip(GREY.float()), r"clip 0 \(here\): its float frames go from 90 to 90"),
        (clip(GREY.numpy().astype("f4")), "give uint8, or floats in"),
        (clip(GREY.long()), r"frames must be uint8 \(3, T, H, W\), or floats.*not torch.int64"),
        (clip(GREY[:1]), r"frames must be uint8 \(3, T, H, W\)"),
        (clip(GREY.movedim(0, -1).numpy()), r"frames must be uint8 \(3, T, H, W\)"),
        (clip(GREY.tolist()), "frames must be a tensor, not list"),
        ((GREY, "a ball"), "clip 0 must be a Clip .frames, caption.*, not tuple without frames"),
        (dict(frames=GREY, caption="x"), "not dict without frames"),
        (GREY, "not Tensor without frames"),
        (SimpleNamespace(frames=GREY, caption="x"), "not SimpleNamespace without fps"),
    ],
)
def test_what_is_no_clip_is_named_before_work(tmp_path, item, error):
    with pytest.raises(ValueError, match=error):
        write(tmp_path / "c", [item, item])
    assert not list(tmp_path.iterdir())


def test_a_later_clip_that_is_none_is_named(tmp_path):
    clips = [clip(), (GREY, "a ball"), clip()]
    with pytest.raises(ValueError, match="clip 1 must be a Clip"):
        write(tmp_path / "c", clips)
    with pytest.raises(ValueError, match="clip 1 .here.: its float frames go from 90"):
        write(tmp_path / "d", [clip(), clip(GREY.float()), clip()])


class Foreign(nn.Module):
    "Somebody's own autoencoder: 8 pixels a latent."

    def __init__(self, channels=4, dtype=torch.float32, spec=None):
        super().__init__()
        self.conv = nn.Conv3d(3, channels, (1, 8, 8), (1, 8, 8)).to(dtype)
        self.spec = spec

    def encode(self, x):
        mean = self.conv(x)
        return DiagonalGaussian(mean, torch.zeros_like(mean))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_foreign_autoencoder_of_another_precision_is_given_its_own(tmp_path, dtype):
    torch.manual_seed(0)
    ae = Foreign(dtype=dtype)
    cache = write(tmp_path / "c", [clip(), clip(GREY // 2)], ae)
    want = ae.encode((GREY.float() / 127.5 - 1)[None].to(dtype)).mean[0].float()
    assert torch.allclose(cache.denormalize(cache[0]["latents"]), want, atol=1e-2)


@pytest.mark.parametrize(
    "ae, error",
    [
        (
            Foreign(spec=AutoencoderSpec((1, 8, 8), 5, False, "x")),
            r"promises latents of \(5, 4, 4, 4\)",
        ),
        (Foreign(spec=AutoencoderSpec((1, 4, 4), 4, False, "x")), r"\(4, 4, 8, 8\) for clips"),
        (nn.Conv3d(3, 4, 1), "must have a method encode, and Conv3d has none"),
        (SimpleNamespace(encode=lambda x: x.mean(1)), "must give mean and log-v"),
        (SimpleNamespace(encode=lambda x: x @ torch.ones(5, 5)), "encode cannot take"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_named_before_work(tmp_path, ae, error):
    with pytest.raises(ValueError, match=error):
        write(tmp_path / "c", [clip()], ae)
    assert not list(tmp_path.iterdir())


# ---- samples by number


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    clips = [clip(GREY // (i + 1), f"{i}") for i in range(3)]
    return write(tmp_path_factory.mktemp("c") / "cache", clips)


@pytest.mark.parametrize(
    "index",
    [True, 1.0, 1.5, "1", np.float32(1), np.bool_(True), torch.tensor(1.0), torch.tensor(True),
     None, [0.5, 1], [True, False, True], torch.tensor([True, False]), np.array([0.0]), ["1"]],
    ids=repr,
)  # fmt: skip
def test_a_sample_is_asked_for_by_a_whole_number(cache, index):
    with pytest.raises((IndexError, ValueError), match="whole numbers, not"):
        cache[index]


def test_whole_numbers_of_every_type_are_taken(cache):
    for i in (2, -1, np.int64(2), np.uint8(2), torch.tensor(2)):
        assert cache[i]["index"] == 2
    for index in ([0, 2], (0, 2), np.array([0, 2]), torch.tensor([0, 2], dtype=torch.int32)):
        assert cache[index]["index"].tolist() == [0, 2]
    assert len(cache[[]]["index"]) == 0 and len(cache[:2]["index"]) == 2


# ---- a condition for nobody


def test_a_condition_that_nobody_hears_is_an_error(cache):
    size = dict(channels=4, size=(4, 4, 4), width=24, depth=1, heads=2)
    model = VideoDiT(VideoDiTConfig(**size))
    data = torch.randn(4, 4, 4, 4, 4), torch.zeros(4, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="data: it has conditions, and the model takes none"):
        fit(model, data, Interpolant(), steps=1, progress=False)
    for model in (model, DiT(DiTConfig(size=(4, 4), width=24, depth=1, heads=2, num_classes=0))):
        with pytest.raises(
            ValueError, match="condition is given, and the model takes none: say n="
        ):
            sample(model, Interpolant(), data[1], steps=1)
    told = VideoDiT(VideoDiTConfig(**size, condition=WordCondition(vocab=2, slots=1)))
    fit(told, data, Interpolant(), steps=1, progress=False, warmup=0)
    assert sample(told, Interpolant(), data[1], steps=1).shape == (4, 4, 4, 4, 4)


# ---- a pipeline with an objective of one's own


class Mine(Interpolant):
    "Nobody else's."


def pipeline(objective):
    model = VideoDiT(VideoDiTConfig(channels=4, size=(4, 4, 4), width=24, depth=1, heads=2))
    return VideoPipeline(model, ImageVAE(), None, objective)


def test_an_objective_of_ones_own_is_not_saved_as_another(tmp_path):
    with pytest.raises(ValueError, match="Mine is an objective of your own"):
        pipeline(Mine()).save_pretrained(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_an_objective_that_is_given_wins(tmp_path):
    pipeline(Interpolant()).save_pretrained(tmp_path / "p")
    assert isinstance(
        VideoPipeline.from_pretrained(tmp_path / "p", objective=Mine()).objective, Mine
    )
    file = tmp_path / "p/pipeline.json"
    file.write_text(file.read_text().replace('"interpolant"', '"of another"'))
    with pytest.raises(ValueError, match="of another"):
        VideoPipeline.from_pretrained(tmp_path / "p")
    assert isinstance(
        VideoPipeline.from_pretrained(tmp_path / "p", objective=Mine()).objective, Mine
    )


def test_an_objective_of_ones_own_that_is_registered_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "classes", dict(OBJECTIVES.classes))

    @OBJECTIVES.register("ours")
    class Ours(Interpolant):
        pass

    pipeline(Ours()).save_pretrained(tmp_path / "p")
    assert type(VideoPipeline.from_pretrained(tmp_path / "p").objective) is Ours


# ---- devices


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:77", "tpu", True, 3.5, "", "GPU"])
def test_a_device_that_is_not_there_is_one_sentence_everywhere(tmp_path, device):
    if device in devices_here():
        pytest.skip("this machine has it")
    write_tensors(tmp_path / "x.safetensors", dict(a=torch.zeros(1)))
    pipeline(Interpolant()).save_pretrained(tmp_path / "p")
    pipe = pipeline(Interpolant())
    model, data = pipe.model, (torch.randn(2, 4, 4, 4, 4),)
    calls = [
        lambda: as_device(device),
        lambda: Experiment(tmp_path / "r", device=device),
        lambda: fit(model, data, Interpolant(), steps=1, device=device, progress=False),
        lambda: sample(model, Interpolant(), n=1, steps=1, device=device),
        lambda: pipe.to(device),
        lambda: VideoPipeline.from_pretrained(tmp_path / "p", device=device),
        lambda: load_tensors(tmp_path / "x.safetensors", device),
        lambda: train_autoencoder(ImageVAE(), SceneClips(2, size=32), steps=1, device=device),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=f"device={device!r} cannot be used: this machine has .*cpu"
        ):
            call()
    assert not (tmp_path / "r").exists()


def test_devices_that_are_there():
    assert as_device("cpu").type == "cpu" and devices_here()[-1] == "cpu"
    assert as_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        as_device("gpu")


# ---- pictures of nothing


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "8", 1e6])
def test_a_clip_is_shown_at_a_rate(fps, tmp_path):
    for show in (viz.animation_bytes, viz.clip_html, viz.show_clips):
        with pytest.raises(ValueError, match="fps must be a number above 0"):
            show(GREY, fps=fps)
    with pytest.raises(ValueError, match="fps must be"):
        viz.save_gif(tmp_path / "x.gif", GREY, fps)


@pytest.mark.parametrize(
    "clips, error",
    [
        ([], "clips must be"),
        (GREY[:, :0], "hold no pixels"),
        (GREY[None][:0], "hold no pixels"),
        (torch.full((3, 2, 8, 8), float("nan")), "hold NaN"),
    ],
)
def test_what_cannot_be_shown_is_named(clips, error):
    for show in (viz.animation_bytes, viz.contact_sheet, viz.show_clips):
        with pytest.raises(ValueError, match=error):
            show(clips)


def test_nan_is_not_black():
    with pytest.raises(ValueError, match="hold NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))
    assert to_uint8(torch.tensor([float("inf"), -5.0])).tolist() == [255, 0]


# ---- numbers as text


@pytest.mark.parametrize("text", ["96x", "x96", "96xx160", "96,,160", ",", "x", ""])
def test_a_size_that_lacks_a_side_is_refused(text):
    with pytest.raises(ValueError, match="size takes"):
        parse_field(f"size={text}")


def test_a_size_of_one_or_two_sides():
    assert parse_field("size=96x160") == ("size", (96, 160))
    assert parse_field("size=(96, 160)") == ("size", (96, 160))
    assert parse_field("size=96") == ("size", 96)
    assert parse_texts("a", "(96,)", int) == (96,)


# ---- pipes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_file_and_nothing_waits_for_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.mp4", "b.txt", "c.safetensors", "d.npz", "e.csv", "f.tar", "g.gif", "h.png"):
        os.mkfifo(data / name)
    code = f"""
import contextlib, sys
sys.path.insert(0, {str(ROOT)!r})
from minisora import LatentCache, VideoPipeline, load_autoencoder
from minisora.core.files import sha256_file, write_tensors
from minisora.core.tensors import load_tensors
from minisora.data.opening import open_clips
from minisora.data.video import probe, read_video
from minisora.experiment import Experiment
from minisora.training.init_from import find_weights
d = {str(data)!r}
calls = [lambda: open_clips(d), lambda: read_video(d + '/a.mp4'), lambda: probe(d + '/g.gif'),
         lambda: read_video(d + '/h.png'), lambda: load_tensors(d + '/c.safetensors'),
         lambda: Experiment(d + '/../r', d + '/d.npz').clips(), lambda: open_clips(d + '/e.csv'),
         lambda: open_clips(d + '/f.tar'), lambda: sha256_file(d + '/b.txt'),
         lambda: LatentCache(d),
         lambda: open_clips(d + '/a.mp4'), lambda: load_autoencoder(d + '/c.safetensors'),
         lambda: VideoPipeline.from_pretrained(d + '/c.safetensors'),
         lambda: find_weights(d + '/c.safetensors')]
for call in calls:
    try:
        call()
    except (OSError, ValueError):
        continue
    sys.exit('a pipe was taken for a file')
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_among_clips_is_named(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.png").write_bytes(viz_png())
    with pytest.warns(UserWarning, match="a.mp4 left out: no file but a pipe"):
        assert len(FolderClips(tmp_path, size=8)) == 1
    with pytest.raises(ValueError, match="a.mp4: it is no file|no file but a pipe"):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="no file but a pipe"):
        sha256_file(tmp_path / "a.mp4")
    assert isinstance(LatentCache, type)


def viz_png():
    from minisora.data.pictures import encode_png

    return encode_png(np.zeros((8, 8, 3), np.uint8))


# ---- the first sample, the signals and the lock, each in one place


class Slow(torch.utils.data.Dataset):
    def __init__(self):
        self.read = []

    def __len__(self):
        return 6

    def __getitem__(self, i):
        self.read.append(int(i))
        return dict(latents=torch.full((4, 4, 4, 4), float(i)))


def test_the_first_sample_is_read_once_for_all_checks(tmp_path, monkeypatch):
    data = Slow()
    model = VideoDiT(VideoDiTConfig(channels=4, size=(4, 4, 4), width=24, depth=1, heads=2))
    seen = []
    monkeypatch.setattr("minisora.train._Trainer.loop", lambda self: seen.append(list(data.read)))
    fit(model, data, Interpolant(), steps=1, progress=False, warmup=0)
    assert seen == [[0]]


def test_handlers_come_and_go():
    import signal

    from minisora.core.boundary import Handlers, Stopped, stop_signals
    from minisora.training.signals import StopSignals

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals(), StopSignals() as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops.stop == "SIGTERM"  # the inner one: a note
    with pytest.raises(Stopped), stop_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 1)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    caught = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Handlers(["SIGHUP", "SIGNOTHING"], lambda *a: caught.append(a)):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not caught and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["sample", "flip", "raw", "per_channel"])
def test_switches_of_a_cache_given_as_text_are_not_true(tmp_path, name):
    write_cache(tmp_path / "c", SceneClips(2, size=32), ImageVAE(), progress=False)
    for wrong in ("False", "no", 0):
        with pytest.raises(ValueError, match=f"{name} must be True or False"):
            LatentCache(tmp_path / "c", **{name: wrong})
    with pytest.raises(ValueError, match="exact must be True or False"):
        repair_cache(tmp_path / "c", SceneClips(2, size=32), ImageVAE(), exact="no")


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: ShardedSampler(list(range(4)), shuffle="False"), "shuffle"),
        (lambda: BucketSampler([None] * 4, 2, drop_last="no"), "drop_last"),
        (lambda: AutoencoderSpec((4, 8, 8), 4, True, "x", first_alone="False"), "first_alone"),
        (lambda: CausalVideoVAE(first_alone="no"), "first_alone"),
        (lambda: train_autoencoder(ImageVAE(), SceneClips(2, size=32), steps=1, pca="no"), "pca"),
    ],
)
def test_other_switches_given_as_text_are_not_true(make, name):
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        make()


def test_a_label_that_counts_from_minus_one_or_is_true_is_no_condition(tmp_path):
    labels = dict(label=-1, seen=True)
    clips = [Clip(torch.zeros(3, 2, 16, 16, dtype=torch.uint8), "x", 8.0, attributes=labels)] * 2
    write_cache(tmp_path / "c", clips, ImageVAE(), progress=False)
    with pytest.raises(ValueError, match="sample 0 has label=-1, and ids count from 0"):
        LatentCache(tmp_path / "c", vocabulary="label")
    with pytest.raises(ValueError, match="no integer attribute 'seen'"):
        LatentCache(tmp_path / "c", vocabulary="seen")


def test_held_out_latents_of_another_autoencoder_measure_nothing(tmp_path):
    clips = SceneClips(4, size=32)
    data = write_cache(tmp_path / "a", clips, ImageVAE(), progress=False)
    valid = write_cache(tmp_path / "b", clips, ImageVAE(seed=3), progress=False)
    shape = dict(channels=data.shape[0], size=data.shape[1:], patch=(4, 2, 2))
    model = VideoDiT(VideoDiTConfig(**shape, width=24, depth=1, heads=2))
    valid.normalize_as(data)
    with pytest.raises(ValueError, match="valid was encoded by another autoencoder"):
        fit(model, data, Interpolant(), steps=1, valid=valid, valid_every=1, progress=False)


def test_a_pipeline_has_the_words_of_its_model_in_their_order(tmp_path):
    clips = SceneClips(4, size=32)
    words = Vocabulary(("a", "red", "ball", "blue", "ring", "green"), 3)
    captions = ("a red ball", "a blue ring", "a green ball", "a red ring")
    named = [replace(clips[i], caption=c) for i, c in enumerate(captions)]
    write_cache(tmp_path / "a", named, ImageVAE(), progress=False)
    data = LatentCache(tmp_path / "a", vocabulary=words)
    condition = WordCondition(vocab=len(words), slots=words.slots)
    shape = dict(channels=data.shape[0], size=data.shape[1:], patch=(4, 2, 2))
    model = VideoDiT(VideoDiTConfig(**shape, width=24, depth=1, heads=2, condition=condition))
    trained = fit(model, data, Interpolant(), steps=1, progress=False, warmup=0)
    scale = data.mean, data.std
    VideoPipeline(trained.ema, ImageVAE(), words, Interpolant(), *scale)
    other = Vocabulary(words.words[::-1], 3)
    with pytest.raises(ValueError, match="other words, or the same in another order"):
        VideoPipeline(trained.ema, ImageVAE(), other, Interpolant(), *scale)


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.uint16, torch.bool])
def test_whole_numbers_beyond_8_bits_are_not_measured_shown_or_written(tmp_path, kind):
    clips = GREY[None].to(kind)
    for call in (metrics.evaluate, lambda x: metrics.psnr(x, x), metrics.jerk_px):
        with pytest.raises(ValueError, match="clips must be uint8, or floats in"):
            call(clips)
    with pytest.raises(ValueError, match="pixels must be float"):
        write_video(tmp_path / "x.mp4", clips[0])
    if kind != torch.bool:                                  # a mask may be shown
        with pytest.raises(ValueError, match="clips must be uint8, or floats in"):
            viz.show_clips(clips)


def test_floats_up_to_255_are_not_clamped_to_white(tmp_path):
    clips = GREY[None].float()
    calls = [metrics.evaluate, viz.show_clips, viz.contact_sheet, metrics.area_flicker]
    for call in [*calls, lambda x: write_video(tmp_path / "x.mp4", x[0])]:
        with pytest.raises(ValueError, match="go from 90 to 90: give uint8, or floats in"):
            call(clips)
    assert to_uint8(torch.tensor([-300.0, 400.0])).tolist() == [0, 255]    # a model gone astray


def test_films_are_written_of_numpy_and_of_nothing_else(tmp_path):
    write_video(tmp_path / "x.mp4", GREY.numpy(), 8)
    assert abs(int(read_video(tmp_path / "x.mp4", 2, 32).frames[0, 0, 9, 9]) - 90) < 4
    with pytest.raises(ValueError, match="frames must be a Clip or a tensor, not list"):
        write_video(tmp_path / "y.mp4", [[1]])


# ---- what is said of the clips of a cache


@pytest.mark.parametrize(
    "change, error",
    [
        (dict(caption=b"a ball"), "here: its caption must be a text, not b'a ball'"),
        (dict(caption="a \ud800 ball"), "here: its caption must be a text"),
        (dict(fps=0), "here: fps must be a number above 0, not 0"),
        (dict(fps="8"), "here: fps must be a number above 0, not '8'"),
        (dict(fps=None), "here: fps must be a number above 0, not None"),
        (dict(fps=float("nan")), "here: fps must be a number above 0, not nan"),
        (dict(attributes="red"), "here: its attributes must be a dict, not 'red'"),
    ],
)
def test_what_cannot_be_said_of_a_clip_is_refused_before_work(tmp_path, change, error):
    good = clip()
    for clips in ([replace(good, **change)] * 2, [good, replace(good, **change), good]):
        with pytest.raises(ValueError, match=error):
            write(tmp_path / "c", clips)
        assert not (tmp_path / "c").exists()
    write(tmp_path / "d", [replace(good, fps=np.float32(8))])


@pytest.mark.parametrize("change", [dict(fps=4.0), dict(attributes=dict(label=2))])
def test_a_cache_is_not_taken_again_with_another_rate_or_label(tmp_path, change):
    clips = [replace(clip(), attributes=dict(label=1))] * 3
    write(tmp_path / "c", clips)
    write(tmp_path / "c", clips)
    other = [*clips[:2], replace(clips[2], **change)]
    with pytest.raises(ValueError, match=f"exists with {[*change][0]}=.* of clip 2, requested"):
        write(tmp_path / "c", other)
    again = write_cache(tmp_path / "c", other, ImageVAE(), overwrite=True, progress=False)
    assert again.rows[2][[*change][0]] == [*change.values()][0]


def test_names_are_printed_without_their_terminal_codes(tmp_path, capsys):
    odd = tmp_path / "v\x1b[2J"
    write_cache(odd, SceneClips(2, size=32), ImageVAE(), progress=True)
    assert cli.main(["verify", str(odd)]) == 0
    ImageVAE().save_pretrained(tmp_path / "vae")
    tiny = ["steps=1", "width=24", "depth=1", "heads=2", "batch_size=2"]
    argv = ["train", "--cache", odd, "--out", tmp_path / "m\x1b[2J", "--set", *tiny]
    assert cli.main([*map(str, argv), "--autoencoder", str(tmp_path / "vae")]) == 0
    assert cli.main(["export", str(tmp_path / "m\x1b[2J"), str(tmp_path / "o\x1b[2J")]) == 0
    said = "".join(capsys.readouterr())
    assert "\x1b[2J" not in said and "is whole" in said and "model.onnx" in said


# ---- conditions and captions that are none


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_ids_that_are_no_whole_numbers_are_refused_by_name(kind):
    model = DiT(DiTConfig(channels=4, size=(4, 4), width=24, depth=1, heads=2, num_classes=3))
    ids = torch.tensor([1, 0, 1, 1]).to(kind)
    with pytest.raises(ValueError, match=f"data: the condition must be whole ids, not {kind}"):
        fit(model, (torch.randn(4, 4, 4, 4), ids), Interpolant(), steps=1, progress=False)
    with pytest.raises(ValueError, match=f"condition must be whole ids, not {kind}"):
        sample(model, Interpolant(), ids, steps=1)


@pytest.mark.parametrize("captions", ["a red ball", 3, None, ["a", 3], [None], ["a", ["b"]]])
def test_a_vocabulary_is_of_a_list_of_texts(captions):
    with pytest.raises(ValueError, match="from_captions takes a list of texts, and"):
        Vocabulary.from_captions(captions)
    assert Vocabulary.from_captions({"a red ball"}).words == ("a", "ball", "red")


def test_labels_of_npy_folders_count_from_0(tmp_path):
    for kind in ("features", "labels"):
        (tmp_path / f"x_{kind}").mkdir()
    for i in range(2):
        np.save(tmp_path / f"x_features/{i}.npy", np.zeros((1, 4, 4, 4), "f4"))
        np.save(tmp_path / f"x_labels/{i}.npy", np.array([-i]))
    with pytest.raises(ValueError, match="x_labels/1.npy holds the label -1"):
        NpyFolder(tmp_path)[1]


def test_an_open_data_set_is_no_path():
    with pytest.raises(ValueError, match=r"not a list: HubClips\(dataset\)"):
        open_clips([1, 2])
