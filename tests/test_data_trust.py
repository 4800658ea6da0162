"""What lies beside clips, and what is no clip: read, or named."""

import json

import numpy as np
import pytest
import torch
from helpers.clips import grey, packed, write_tar
from PIL import Image

from minisora import cli
from minisora.autoencoder import ImageVAE
from minisora.clips import SceneClips
from minisora.core.protocols import Clip
from minisora.data.depth import to_eight_bits
from minisora.data.folders import FolderClips
from minisora.data.tars import TarClips
from minisora.data.video import probe, read_video, write_video
from minisora.evaluation.judge import AttributeClassifier, attribute_accuracy, confusion_matrix
from minisora.experiment import Experiment
from minisora.latent_cache import write_cache
from minisora.metrics import evaluate

TINY = dict(size=32, frames=4)


def film(path, seconds=2, level=None):
    "8 frames a second; of second k all is 50·k, or `level`."
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = torch.arange(8 * seconds).div(8, rounding_mode="floor") * 50
    frames = frames.clamp(max=250) if level is None else torch.full_like(frames, level)
    frames = frames.to(torch.uint8)[None, :, None, None].expand(3, -1, 32, 32)
    return write_video(path, frames, 8)


# ---- caption files


@pytest.mark.parametrize(
    "clip, said",
    [
        ("a.mp4", "a.txt"),
        ("a.mp4", "a.mp4.txt"),
        ("a.mp4", "a.mp4.json"),
        ("a.mp4", "captions/a.txt"),
        ("a.mp4", "captions/a.mp4.txt"),
        ("x/a.mp4", "captions/x/a.caption"),
        ("videos/a.mp4", "captions/a.txt"),
        ("videos/x/a.mp4", "texts/x/a.json"),
        ("videos/a.mp4", "videos/prompts/a.TXT"),
    ],
)
def test_where_a_caption_may_lie(tmp_path, clip, said):
    film(tmp_path / clip)
    (tmp_path / said).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(text="a red ball")) if said.endswith("json") else "a red ball\n"
    (tmp_path / said).write_text(text)
    clips = FolderClips(tmp_path, **TINY, on_error="raise")
    assert [c.caption for c in clips] == ["a red ball"]


def test_the_nearest_caption_counts(tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/a.txt").write_text("far")
    (tmp_path / "a.mp4.txt").write_text("near")
    clips = FolderClips(tmp_path, **TINY, on_error="collect")
    assert clips[0].caption == "near"


def test_a_caption_file_of_a_tar_may_repeat_the_clips_ending(tmp_path):
    video = film(tmp_path / "a.mp4").read_bytes()
    tar = write_tar(tmp_path / "x.tar", {"0.mp4": video, "0.mp4.txt": b"a red ball"})
    assert TarClips(tar, **TINY, on_error="raise")[0].caption == "a red ball"
    tar = write_tar(tmp_path / "y.tar", {"0.mp4": video, "0.mp4.txt": b"far", "0.txt": b"near"})
    assert TarClips(tar, **TINY, on_error="raise")[0].caption == "near"


@pytest.mark.parametrize("names", [("start", "end"), ("start_time", "end_time")])
def test_the_json_beside_a_film_cuts_it(tmp_path, names):
    video = film(tmp_path / "a" / "x.mp4", 4)
    cut = dict(zip(names, (1, "0:02")))
    (tmp_path / "a/x.json").write_text(json.dumps(dict(caption="grey", **cut)))
    tar = write_tar(
        tmp_path / "t.tar",
        {"x.mp4": video.read_bytes(), "x.json": (tmp_path / "a/x.json").read_bytes()},
    )
    for clips in (
        FolderClips(tmp_path / "a", **TINY, on_error="raise"),
        FolderClips(tmp_path / "a", **TINY, on_error="raise", check="no"),
        TarClips(tar, **TINY),
    ):
        assert clips[0].frames.float().mean().item() == pytest.approx(50, abs=4)
        assert clips[0].fps == pytest.approx(4)
        assert clips[0].attributes == dict(start=1, end=2)
    (tmp_path / "a/x.json").write_text(json.dumps(dict(caption="grey", start=3, end=1)))
    with pytest.raises(ValueError, match="x.mp4: its end, 1, does not lie behind its start"):
        FolderClips(tmp_path / "a", **TINY)


def test_a_key_that_comes_twice_beside_a_clip_is_named(tmp_path):
    video = film(tmp_path / "a" / "x.mp4").read_bytes()
    text = '{"caption": "a ball", "caption": "a ring"}'
    (tmp_path / "a/x.json").write_text(text)
    with pytest.raises(ValueError, match="x.mp4.*the key 'caption' comes twice"):
        FolderClips(tmp_path / "a", **TINY)
    clips = TarClips(write_tar(tmp_path / "t.tar", {"x.mp4": video, "x.json": text.encode()}))
    with pytest.raises(ValueError, match="the key 'caption' comes twice"):
        clips[0]


# ---- pictures and films of one frame


def gif(path, count=1):
    pictures = [Image.fromarray(np.full((32, 32, 3), 60 * k + 60, np.uint8)) for k in range(count)]
    more = dict(save_all=True, append_images=pictures[1:], duration=250) if count > 1 else {}
    pictures[0].save(path, **more)
    return path


def test_a_gif_of_one_picture_is_a_still(tmp_path):
    still = gif(tmp_path / "a.gif")
    assert probe(still).seconds == 0
    for source in (still, still.read_bytes()):
        clip = read_video(source, 4, 32)
        assert (clip.fps, clip.frames.shape) == (8, (3, 4, 32, 32))
    assert read_video(still, 4, 32, fps=12).fps == 12
    pictures = FolderClips(tmp_path, **TINY)
    assert pictures[0].frames.shape == (3, 1, 32, 32) and pictures[0].fps == 8
    moving = read_video(gif(tmp_path / "b.gif", 4), 4, 32)
    assert moving.fps == pytest.approx(4)
    for check in ("decode", "open", "no"):
        beside = FolderClips(tmp_path, **TINY, on_error="collect", check=check)
        assert len(beside) == 1 and "a picture beside videos" in beside.unreadable[0][1]
    tar = write_tar(tmp_path / "t.tar", {"a.gif": still.read_bytes(), "a.txt": b"grey"})
    assert TarClips(tar, **TINY)[0].frames.shape == (3, 1, 32, 32)


def test_a_film_of_one_frame_has_no_speed(tmp_path):
    path = write_video(tmp_path / "a.mp4", torch.full((3, 1, 32, 32), 90, dtype=torch.uint8), 24)
    assert read_video(path, 2, 32).fps == 8
    assert read_video(path, 2, 32, fps=5).fps == 5
    assert FolderClips(tmp_path, **TINY)[0].fps == 8
    two = write_video(tmp_path / "b.mp4", torch.full((3, 2, 32, 32), 90, dtype=torch.uint8), 24)
    assert read_video(two, 2, 32).fps == pytest.approx(24)


def test_a_damaged_frame_is_named(tmp_path):
    (tmp_path / "film").mkdir()
    for k in range(4):
        (tmp_path / f"film/{k}.png").write_bytes(packed(grey(40 * k)))
    (tmp_path / "film/2.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"film/2\.png: it is no picture"):
        FolderClips(tmp_path, **TINY, frame_folders=4)
    clips = FolderClips(tmp_path, **TINY, frame_folders=4, check="no")
    (tmp_path / "film/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"film/2\.png: no such file"):
        clips[0]


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_an_array_of_uint16_that_is_not_full_is_refused(bits):
    dark = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    with pytest.raises(ValueError, match=f"uint16 from 0 to {2**bits - 1}: {bits} bits, or nearly"):
        to_eight_bits([dark])
    bright = np.full((8, 8), 65535, np.uint16)
    assert to_eight_bits([dark, bright])[1].max() == 255  # a dark frame of a bright clip
    if bits > 8:  # a PNG says that it has 16 bits
        assert to_eight_bits([Image.fromarray(dark)])[0].max() == round((2**bits - 1) / 257)
    assert to_eight_bits([np.zeros((8, 8), np.uint16)])[0].max() == 0


# ---- what is no folder of clips


@pytest.fixture
def made(tmp_path):
    "A folder of a film beside a run, a pipeline, a cache and one in the making."
    film(tmp_path / "data/a ball.mp4")
    run = tmp_path / "data/run"
    run.mkdir()
    (run / "recipe.json").write_text("{}")
    film(run / "sample.mp4")
    film(tmp_path / "data/pipe/sample.mp4")
    (tmp_path / "data/pipe/pipeline.json").write_text("{}")
    clips = [Clip(torch.zeros(3, 4, 32, 32, dtype=torch.uint8), "x", 8.0)]
    write_cache(tmp_path / "data/cache", clips, ImageVAE(), progress=False)
    (tmp_path / "data/next.part").mkdir()
    (tmp_path / "data/next.part/plan.json").write_text("{}")
    (tmp_path / "data/mine").mkdir()
    (tmp_path / "data/mine/manifest.json").write_text('{"format": "another"}')
    film(tmp_path / "data/mine/a ring.mp4")
    return tmp_path / "data"


def test_what_was_made_is_left_out_as_one(made):
    clips = FolderClips(made, **TINY, on_error="collect")
    assert sorted(c.caption for c in clips) == ["a ball", "a ring"]
    assert [name for name, _ in clips.unreadable] == ["mine/manifest.json"]
    left = dict(clips.left_out)
    assert left["cache"].startswith("it is a latent cache") and "run" in left["run"]
    assert "in the making" in left["next.part"] and "pipeline" in left["pipe"]


@pytest.mark.parametrize(
    "name, said",
    [("run", "it is a run"), ("pipe", "it is a saved pipeline"), ("cache", "it is a latent cache")],
)
def test_what_was_made_is_no_data(made, tmp_path, name, said, capsys):
    with pytest.raises(ValueError, match=f"{name} holds no clips of yours: {said}"):
        FolderClips(made / name, **TINY)
    with pytest.raises(ValueError, match=f"DATA=.*{name} holds no clips: {said}"):
        Experiment(tmp_path / "new", str(made / name))
    ImageVAE().save_pretrained(tmp_path / "vae")
    argv = ["encode", made / name, tmp_path / "c", "--autoencoder", tmp_path / "vae"]
    assert cli.main(list(map(str, argv))) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists() and not (tmp_path / "c").exists()


def test_a_damaged_tar_leaves_the_others(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"{k}.tar", {"a.png": packed(grey(50 * k)), "a.txt": b"a still"})
    data = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(data[:700])
    with pytest.warns(UserWarning, match="1 of 3 cannot be read.*1.tar: .*no whole tar file"):
        clips = TarClips(tmp_path, size=32)
    assert [name for name, _ in clips.unreadable] == ["1.tar"]
    assert [c.source for c in clips] == [f"{tmp_path}/0.tar/a", f"{tmp_path}/2.tar/a"]
    with pytest.raises(ValueError, match="1.tar"):
        TarClips(tmp_path, size=32, on_error="raise")
    with pytest.raises(ValueError, match="no whole tar file"):
        TarClips(tmp_path / "1.tar", size=32, on_error="collect")


def test_a_folder_without_heldout_clips_says_so(tmp_path, capsys):
    for name in ("a ball", "a ring"):
        film(tmp_path / f"data/{name}.mp4")
    argv = ["clips", "--data", tmp_path / "data", "--out", tmp_path / "run", "--split", "heldout"]
    argv = [*map(str, argv), "--set", "size=32", "frames=16"]
    assert cli.main(argv) == 2
    assert "none of its clips are held out; --set heldout=.1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- what was asked for


@pytest.mark.parametrize(
    "wanted, error",
    [
        ([dict(colour="red")] * 2, "wanted 'colour': .*color, motion; did you mean 'color'"),
        ([dict(shape="red")] * 2, "nothing to judge: the judge reads color, motion"),
        ([dict(color="red"), "a red ball"], r"wanted\[1\] must be a dict.*not 'a red ball'"),
        (["a red ball", "a red ring"], r"wanted\[0\] must be a dict"),
        ("ab", r"wanted\[0\] must be a dict"),
        ([dict(color="rad")] * 2, "wanted color must be one of"),
    ],
)
def test_wanted_that_the_judge_does_not_know_is_refused(wanted, error):
    judge = AttributeClassifier(dict(color=["blue", "red"], motion=["left", "right"]), 4)
    clips = torch.zeros(2, 3, 16, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=error):
        evaluate(clips, judge=judge, wanted=wanted)
    with pytest.raises(ValueError, match=error):
        attribute_accuracy(judge, clips, wanted)


def test_wanted_that_nobody_judges_is_named():
    judge = AttributeClassifier(dict(color=["blue", "red"]), 4)
    clips = torch.zeros(2, 3, 16, 32, 32, dtype=torch.uint8)
    with pytest.warns(UserWarning, match="not judged: shape, fps; the judge reads color"):
        found = evaluate(clips, judge=judge, wanted=[dict(color="red", shape="ring", fps=8)] * 2)
    assert found["n"] == 2


def test_wanted_needs_a_judge_and_the_attribute():
    clips = torch.zeros(2, 3, 16, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="judge=… is missing"):
        evaluate(clips, wanted=[dict(color="red")] * 2)
    judge = AttributeClassifier(dict(color=["blue", "red"]), 4)
    with pytest.raises(ValueError, match=r"wanted\[0\] color must be one of"):
        confusion_matrix(judge, clips, "color", [dict(motion="left")] * 2)
    found = attribute_accuracy(judge, clips, [dict(color="red")] * 2)
    assert found["n"] == 2 and len(SceneClips(1)) == 1
