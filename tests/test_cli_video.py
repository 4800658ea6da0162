"""`minisora video --image` and `--size`, and what `make video` makes of IMAGE and SIZE."""

import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.clips import photo, quarters
from helpers.pipeline import WORDS, awake, picturing_pipeline, speaking_parts
from helpers.runs import SMALLEST
from helpers.upsampling import enlarging, upsampler, with_upsampler
from PIL import Image

from minisora import cli, image_video
from minisora.autoencoder import ImageVAE
from minisora.data.pictures import resize_crop
from minisora.data.video import read_video
from minisora.experiment import Experiment, make_video
from minisora.models.conditions import Unconditional
from minisora.pipeline import VideoPipeline
from minisora.upsampling import UpsamplerDiT
from minisora.upsampling_pipeline import UpsamplingPipeline

TINY = SMALLEST | dict(decoder_steps=1, renoise_times=0)
SET = [f"{name}={value}" for name, value in TINY.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A saved pipeline: clips of 9 frames of 32×64 pixels that begin with a picture; an upsampler."
    folder = tmp_path_factory.mktemp("pipelines") / "longer"
    with_upsampler(fps=8).save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "my frame.png"
    Image.fromarray(quarters()).save(file)
    return file


def ask(folder, image, out, *more, prompt="hello"):
    call = ["video", "--image", str(image), "--pipeline", str(folder), "--out", str(out)]
    return cli.main([*call, *(["--prompt", prompt] if prompt else []), *more])


@pytest.fixture
def nothing_is_made(monkeypatch):
    def made(*args, **options):
        pytest.fail("made before it was refused")

    monkeypatch.setattr(VideoPipeline, "sample_latents", made)
    monkeypatch.setattr(UpsamplingPipeline, "double", made)
    monkeypatch.setattr(Experiment, "load_or_make", made)


def refused(capsys):
    "The one line of an error."
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "Error" not in said.err.split(": ")[1], said.err
    return said.err


# ---------------------------------------------------------------- a clip that begins with a picture


def test_a_clip_begins_with_the_picture(folder, picture, tmp_path, capsys, monkeypatch):
    made = []
    save_all = image_video.VideoPipelineOutput.save_all
    monkeypatch.setattr(
        image_video.VideoPipelineOutput,
        "save_all",
        lambda self, *args, **kw: made.append(self) or save_all(self, *args, **kw),
    )
    out = tmp_path / "out"
    assert ask(folder, picture, out, "--seed", "3") == 0
    path = out / "my-frame-hello-seed3.mp4"
    assert capsys.readouterr().out == f"the clip begins with {picture}\nwatch {path}\n"
    assert sorted(p.name for p in out.iterdir()) == [
        path.with_suffix(s).name for s in (".gif", ".mp4", ".png")
    ]
    assert read_video(path, 9, (256, 512)).frames.shape == (3, 9, 256, 512)
    pipe = VideoPipeline.from_pretrained(folder)
    wanted = pipe("hello", frames=Image.fromarray(quarters()), seed=3)
    assert torch.equal(made[0].frames, wanted.frames) and made[0].prompts == ["hello"]
    # its first frame is what the autoencoder makes of the picture, cropped in the middle
    cropped = torch.from_numpy(resize_crop(quarters(), (32, 64)).copy()).permute(2, 0, 1)
    first = pipe.decode(pipe.known_latents(cropped[:, None], 1))
    torch.testing.assert_close(made[0].frames[:, :, :1], first, atol=1e-4, rtol=1e-4)
    ask(folder, picture, out, "--seed", "3", prompt="rest")
    assert (made[1].frames - made[0].frames).abs().max() > 1e-3, "the prompt counts"


def test_the_size_is_that_of_the_file(folder, picture, tmp_path, capsys):
    for size in (32, 64, 128):
        assert ask(folder, picture, tmp_path, "--size", str(size)) == 0
        clip = read_video(tmp_path / f"my-frame-hello-size{size}.mp4", 9, (256, 512)).frames
        assert clip.shape == (3, 9, 256, 512)
    sheet = Image.open(tmp_path / "my-frame-hello-size128.png")
    assert sheet.width > 8 * 128


def test_a_pipeline_is_found_in_the_course(folder, picture, tmp_path, monkeypatch, capsys):
    course = tmp_path / "course"
    (course / "nbs").mkdir(parents=True)
    (course / "nbs" / "00_clips.ipynb").write_text("{}")
    shutil.copytree(folder, course / "data" / "longer")
    (course / "deep").mkdir()
    monkeypatch.chdir(course / "deep")
    call = ["video", "--image", str(picture), "--prompt", "hello", "--out", str(tmp_path / "o")]
    assert cli.main(call) == 0  # data/longer, without saying so
    assert len(list((tmp_path / "o").iterdir())) == 3


PICTURES = dict(
    transparent=("a.png", lambda p: Image.fromarray(p).convert("RGBA")),
    palette=("a.gif", lambda p: Image.fromarray(p).convert("P")),
    gray=("a.png", lambda p: Image.fromarray(p[..., 0])),
    gray_alpha=("a.png", lambda p: Image.fromarray(p[..., 0]).convert("LA")),
    bits=("a.png", lambda p: Image.fromarray(p[..., 0] > 128)),
    sixteen=("a.png", lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 257)),
    inks=("a.jpg", lambda p: Image.fromarray(p).convert("CMYK")),
    small=("a.bmp", lambda p: Image.fromarray(p[:3, :2])),
    webp=("A.WebP", lambda p: Image.fromarray(p)),
)


@pytest.mark.parametrize("name, make", PICTURES.values(), ids=PICTURES)
def test_pictures_of_any_kind(folder, tmp_path, name, make, capsys):
    make(quarters()).save(tmp_path / name)
    assert ask(folder, tmp_path / name, tmp_path / "out") == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "a-hello.mp4").exists()


def first_frame(file):
    pipe = VideoPipeline(**speaking_parts())
    return pipe.first_frames(image_video.open_picture(file), 1)[0, :, 0]


def test_what_is_transparent_is_black(tmp_path):
    pixels = np.full((32, 64, 4), 200, np.uint8)
    pixels[:, 32:, 3] = 0
    pixels[:, :32, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = first_frame(tmp_path / "a.png")
    assert (frame[:, :, 40:] == -1).all()
    assert torch.allclose(frame[:, :, :30], torch.tensor(200 / 127.5 - 1))


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((64, 32, 3), np.uint8)
    pixels[:32] = 255  # turned by a quarter, its upper half is on the right
    photo(tmp_path / "a.jpg", Image.fromarray(pixels), orientation=6)
    frame = first_frame(tmp_path / "a.jpg")
    assert frame.shape == (3, 32, 64)
    assert frame[:, :, 40:].min() > 0.9 and frame[:, :, :24].max() < -0.9


def test_of_a_moving_picture_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (64, 32), (0, g, 0)) for g in (255, 0, 0)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frame = first_frame(tmp_path / "a.gif")
    assert frame[1].min() > 0.9 and frame[0].max() < -0.9


def test_a_crop_is_the_middle(tmp_path):
    Image.fromarray(quarters(60, 60)).save(tmp_path / "a.png")
    frame = first_frame(tmp_path / "a.png")
    assert abs(frame[1].mean() - (120 / 127.5 - 1)) < 0.03, "rows 15 to 45 of 60"
    assert frame[0, 0, -1] > 0.8 and frame[0, 0, 0] < -0.9, "all columns"


def damaged(tmp_path):
    "Names of files that are no pictures, and a part of what is said of each."
    Image.fromarray(quarters()).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    broken = bytearray(data)
    broken[60] ^= 255
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    return dict.fromkeys(
        ("cut.png", "broken.png", "text.png", "empty.jpg"), "is no picture that can be read"
    ) | dict.fromkeys(("folder.png", "missing.png"), "there is no such picture")


def test_what_is_no_picture_is_named_in_one_line(folder, tmp_path, capsys, nothing_is_made):
    for name, said in damaged(tmp_path).items():
        assert ask(folder, tmp_path / name, tmp_path / "out") == 2
        error = refused(capsys)
        assert f"{tmp_path / name}: {said}" in error, error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more, said",
    [
        (
            ["--prompt", "a red dog"],
            "unknown word 'a' in prompt 'a red dog'; known: hello, rest, you",
        ),
        (["--prompt", ""], "a picture needs a prompt .*known: hello, rest, you"),
        (["--size", "96"], "longer: size must be 32, 64, 128, …, not 96"),
        (["--data", "clips"], "--image FILE trains nothing: it goes without --data"),
        (["--set", "steps=3"], "--image FILE trains nothing"),
        (["--minutes", "3"], "--image FILE trains nothing"),
        (["--pipeline", "no/where"], "no/where: no pipeline is there; --pipeline FOLDER names one"),
    ],
)
def test_a_wrong_call_is_one_line(folder, picture, tmp_path, more, said, capsys, nothing_is_made):
    out = tmp_path / "out"
    assert ask(folder, picture, out, *more) == 2
    assert re.search(said, error := refused(capsys)), error
    assert not out.exists()


@pytest.mark.parametrize("size", ["0", "-64", "64.5", "large"])
def test_a_size_is_a_count(folder, picture, tmp_path, size, capsys):
    with pytest.raises(SystemExit):
        ask(folder, picture, tmp_path / "out", "--size", size)
    assert "a count" in capsys.readouterr().err


def test_pipelines_that_cannot_do_it_are_named(picture, tmp_path, capsys, nothing_is_made):
    picturing_pipeline().save_pretrained(tmp_path / "plain")
    assert ask(tmp_path / "plain", picture, tmp_path / "out") == 2
    error = refused(capsys)
    assert "plain: this model was not trained to continue frames" in error
    with_upsampler(upsampler=None).save_pretrained(tmp_path / "small")
    assert ask(tmp_path / "small", picture, tmp_path / "out", "--size", "64") == 2
    assert "this pipeline makes clips of 32 rows and has no upsampler" in refused(capsys)
    (tmp_path / "small" / "pipeline.json").write_text("{")
    assert ask(tmp_path / "small", picture, tmp_path / "out") == 2
    assert "pipeline.json: is no JSON" in refused(capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_without_words_is_not_asked_for_any(picture, tmp_path, capsys):
    parts = speaking_parts()
    config = parts["model"].config
    parts |= dict(model=awake(replace(config, condition=Unconditional())), vocabulary=None)
    VideoPipeline(**parts, sampling=dict(steps=1)).save_pretrained(tmp_path / "pipe")
    assert ask(tmp_path / "pipe", picture, tmp_path / "out", prompt="") == 0
    assert (tmp_path / "out" / "my-frame.mp4").exists()
    assert ask(tmp_path / "pipe", picture, tmp_path / "out", prompt="hello") == 2
    assert "this model knows no words" in capsys.readouterr().err


# ---------------------------------------------------------------- the clip of a run, larger


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A tiny finished run of scenes, and a pipeline's folder whose upsampler is for such clips."
    root = tmp_path_factory.mktemp("larger")
    make_video(root / "run", "a red ring moves left", progress=False, **TINY)
    ae = ImageVAE(channels=4, width=8, smooth=4)
    model = upsampler(size=(8, 8, 8), depth=1)
    assert isinstance(model, UpsamplerDiT)
    up = enlarging(model=model, autoencoder=ae, vocabulary=None, sampling=dict(steps=1))
    up.save_pretrained(root / "longer" / "upsampler")
    return root


def larger(run, *more):
    call = ["video", "--out", str(run / "run"), "--pipeline", str(run / "longer")]
    return cli.main([*call, *more])


def test_the_clip_of_a_run_is_made_larger(run, capsys):
    assert larger(run, "--size", "128", "--seed", "2") == 0
    path = run / "run" / "a-red-ring-moves-left-seed2-size128.mp4"
    shown = capsys.readouterr().out
    assert f"watch {path}\n" in shown and "all_right" in shown
    assert read_video(path, 16, 256).frames.shape == (3, 16, 256, 256)
    for name in (path.with_suffix(".gif"), path.with_suffix(".png")):
        assert name.stat().st_size > 0
    small = run / "run" / "a-red-ring-moves-left-seed2.mp4"
    assert small.exists(), "the small one is kept"


def test_what_is_made_larger_is_the_clip_of_the_run(run, monkeypatch):
    done = []
    save_all = image_video.VideoPipelineOutput.save_all
    monkeypatch.setattr(
        image_video.VideoPipelineOutput,
        "save_all",
        lambda self, *args, **kw: done.append(self) or save_all(self, *args, **kw),
    )
    assert larger(run, "--size", "128", "--prompt", "a blue ball grows", "--seed", "5") == 0
    small, large = (made.frames for made in done)
    assert small.shape == (1, 3, 16, 64, 64) and large.shape == (1, 3, 16, 128, 128)
    up = UpsamplingPipeline.from_pretrained(run / "longer" / "upsampler")
    torch.testing.assert_close(up(small, seed=5), large, atol=1e-4, rtol=1e-4)


def test_the_size_it_has_is_no_work(run, capsys):
    assert larger(run, "--size", "64") == 0
    assert "watch" in (shown := capsys.readouterr().out) and "size64" not in shown


def test_an_upsampler_that_knows_the_words_is_told_them(run, monkeypatch):
    told = []

    class Told:
        def __init__(self, vocabulary):
            self.vocabulary = vocabulary

        def __call__(self, clips, prompt, factor, seed):
            told.append((prompt, factor, seed))
            return clips.repeat_interleave(factor, 3).repeat_interleave(factor, 4)

    experiment = Experiment(run / "run", progress=False)
    for vocabulary in (experiment.vocabulary, None):
        image_video.enlarge_scene(experiment, Told(vocabulary), "", 1, 256)
    image_video.enlarge_scene(experiment, Told(WORDS), "a blue ball grows", 1, 128)
    assert told == [("a red ring moves left", 4, 1), (None, 4, 1), (None, 2, 1)]


@pytest.mark.parametrize(
    "more, said",
    [
        (["--size", "96"], "size must be 64, 128, 256, …, not 96"),
        (["--size", "32"], "size must be 64, 128, 256, …, not 32"),
        (["--size", "128", "--pipeline", "no/where"], "no/where: no pipeline is there"),
    ],
)
def test_what_cannot_be_made_larger_is_said_first(
    run, tmp_path, more, said, capsys, nothing_is_made
):
    call = ["video", "--out", str(tmp_path / "run"), "--pipeline", str(run / "longer")]
    assert cli.main([*call, *more, "--set", *SET]) == 2
    assert said in refused(capsys)
    assert not (tmp_path / "run").exists(), "nothing is trained or written"


def test_a_pipeline_without_an_upsampler_is_named(tmp_path, capsys, nothing_is_made):
    (tmp_path / "longer").mkdir()
    call = ["video", "--out", str(tmp_path / "run"), "--pipeline", str(tmp_path / "longer")]
    assert cli.main([*call, "--size", "128", "--set", *SET]) == 2
    assert "upsampler: no such folder, or no pipeline.json in it" in refused(capsys)


def test_clips_of_a_folder_are_trained_larger(run, tmp_path, capsys, nothing_is_made):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(run / "run" / "a-red-ring-moves-left.mp4", data / "yes.mp4")
    call = ["video", "--data", str(data), "--out", str(tmp_path / "run"), "--size", "128"]
    assert cli.main(call) == 2
    assert "--size makes clips of scenes larger" in (error := refused(capsys))
    assert "--set size=128" in error


# ---------------------------------------------------------------- make video


def make(tmp_path, **words):
    "The arguments that `make video` gives to the command, by a stand-in for it."
    bin = tmp_path / "bin"
    bin.mkdir(exist_ok=True)
    stand_in = bin / "minisora"
    stand_in.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    call = ["make", "--no-print-directory", "-o", ".venv/.ready", "video", f"BIN={bin}"]
    names = ("PROMPT", "IMAGE", "DATA", "OUT", "STEPS", "SIZE", "FPS", "MINUTES")
    names += ("MAKEFLAGS", "MAKELEVEL")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [*call, *(f"{k}={v}" for k, v in words.items())],
        cwd=ROOT, env=clean, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_make_video_as_it_is(tmp_path):
    assert make(tmp_path) == ["video", "--prompt=", "--data=", "--out=runs/first-video"]


@pytest.mark.parametrize("size", ["128", "256"])
def test_make_makes_scenes_larger(tmp_path, size):
    given = make(tmp_path, SIZE=size, PROMPT="a red ring")
    assert given == [
        "video",
        "--prompt=a red ring",
        "--data=",
        "--out=runs/first-video",
        f"--size={size}",
    ]


@pytest.mark.parametrize(
    "words",
    [dict(SIZE="96x160"), dict(SIZE="64"), dict(SIZE="1280"), dict(SIZE="256", DATA="my clips")],
    ids=str,
)
def test_another_size_is_that_of_training(tmp_path, words):
    given = make(tmp_path, **words)
    assert given[-2:] == ["--set", f"size={words['SIZE']}"]
    assert f"--data={words.get('DATA', '')}" in given
    assert not [w for w in given if w.startswith(("--size", "--image"))]


def test_a_picture_s_name_arrives_untouched(tmp_path):
    name = """my "first" frame, it's $HOME $(ls) é.png"""
    given = make(tmp_path, IMAGE=name.replace("$", "$$"), PROMPT="moves left", SIZE="128")
    assert given[1] == "--prompt=moves left" and "--size=128" in given
    assert [w for w in given if w.startswith("--image=")][0].startswith('--image=my "first" frame')
    assert make(tmp_path, IMAGE="a b.png", SIZE="64")[-2:] == ["--image=a b.png", "--size=64"]
    assert make(tmp_path, IMAGE="a b.png")[-1] == "--image=a b.png"


def test_make_help_speaks_of_pictures_and_sizes():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "IMAGE=" in text and "SIZE=256" in text


def test_the_picture_is_never_written_over(tmp_path):
    "A picture that is named as the sheet of its clip would be."
    picture = tmp_path / f"{'y' * 30}-hello.png"
    Image.new("RGB", (64, 32)).save(picture)
    before = picture.read_bytes()
    folder = tmp_path / "pipeline"
    VideoPipeline(**speaking_parts()).save_pretrained(folder)
    with pytest.raises(ValueError, match="would replace the picture"):
        image_video.picture_video(picture, "hello", tmp_path, pipeline=folder)
    assert picture.read_bytes() == before
