"""Clips: one type out of scenes, digits, video files and datasets; what cannot be read is named."""

import csv
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from minisora import clips as C

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def needs(name):
    return pytest.mark.skipif(
        not (SHARED / name).exists(), reason=f"no {SHARED / name} on this machine"
    )


def encode(path, pictures, fmt="mp4", codec="libx264", pix_fmt="yuv420p", stamps=None, rate=8):
    "Pictures uint8 (T, H, W, 3 or 4) to a file, at the given time-stamps (in 1/1000 s)."
    from fractions import Fraction

    with av.open(str(path), "w", format=fmt) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, p in enumerate(pictures):
            kind = "rgba" if p.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format=kind)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def ramp(n, size=32):
    "n grey pictures, each brighter than the one before."
    return np.stack(
        [np.full((size, size, 3), 8 + 240 * i // max(n - 1, 1), np.uint8) for i in range(n)]
    )


# ---------------------------------------------------------------- scenes


def test_scenes_are_pure_functions_of_seed_and_index():
    a, b = C.SceneClips(50, seed=3), C.SceneClips(1000, seed=3)
    assert all(torch.equal(a[i].frames, b[i].frames) for i in (0, 7, 49))
    assert not torch.equal(a[7].frames, C.SceneClips(50, seed=4)[7].frames)
    assert a[7].frames.shape == (3, 16, 64, 64) and a[7].frames.dtype == torch.uint8


def test_the_rendering_does_not_change():
    "Trained weights and benchmarks rest on it: sums of four scenes and of their squares, frozen."
    x = C.stack([C.SceneClips(2000, "all", seed=0)[i] for i in (5, 300, 700, 1500)])[0].long()
    assert (x.sum().item(), (x * x).sum().item()) == FROZEN


FROZEN = (8258363, 1704555131)


def test_motion_goes_where_the_caption_says():
    for k, motion in enumerate(("left", "right", "up", "down")):
        for seed in range(20):
            x, y, r = C.trajectory(motion, np.random.default_rng(seed))
            move = (x[-1] - x[0], y[-1] - y[0])
            assert move[k // 2] * (-1, 1)[k % 2] >= 0.3 and abs(move[1 - k // 2]) < 1e-9, motion
    for seed in range(20):
        for motion, sign in (("grow", 1), ("shrink", -1)):
            r = C.trajectory(motion, np.random.default_rng(seed))[2]
            assert sign * (r[-1] - r[0]) > 0.1


@pytest.mark.parametrize("motion", C.MOTIONS)
def test_objects_stay_in_the_frame(motion):
    for seed in range(100):
        x, y, r = C.trajectory(motion, np.random.default_rng(seed))
        for a in (x, y):
            assert (a - r).min() > -1e-9 and (a + r).max() < 1 + 1e-9


@pytest.mark.parametrize("objects, stride", [(C.OBJECTS, 6), (C.DIGITS, 7)])
@pytest.mark.parametrize("motions", [C.MOTIONS, C.SIMPLE_MOTIONS])
def test_one_combination_in_ten_is_held_out_evenly(objects, stride, motions):
    parts = {s: C.combinations(objects, s, motions, stride) for s in ("train", "heldout", "all")}
    assert sorted(parts["train"] + parts["heldout"]) == sorted(parts["all"])
    assert len(parts["all"]) == len(objects) * 6 * len(motions)
    assert abs(len(parts["heldout"]) / len(parts["all"]) - 0.1) < 0.025
    for axis in range(3):
        for word in {c[axis] for c in parts["all"]}:
            share = sum(c[axis] == word for c in parts["train"]) / sum(
                c[axis] == word for c in parts["all"]
            )
            assert 0.8 <= share < 1, word


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: C.render_scene("dog", "red", "left"), "unknown object 'dog'"),
        (lambda: C.render_scene("ball", "pink", "left"), "unknown colour 'pink'"),
        (lambda: C.render_scene("ball", "red", "jump"), "unknown motion 'jump'"),
        (lambda: C.SceneClips(4, motions=("left", "jump")), "unknown motion 'jump'"),
        (lambda: C.SceneClips(4, split="test"), "'test'"),
        (lambda: C.to_float(torch.zeros(3)), "must be uint8"),
        (lambda: C.to_uint8(torch.zeros(3, dtype=torch.uint8)), "must be float"),
        (lambda: C.stack([]), "one shape"),
        (lambda: C.DigitClips(np.zeros((2, 9, 9)), [0, 1], 3), "must be uint8"),
        (lambda: C.DigitClips(np.zeros((2, 9, 9), np.uint8), [0, 11], 3), "label 11 has no name"),
        (lambda: C.DigitClips(np.zeros((2, 9, 9), np.uint8), [0], 3), "as many labels"),
        (lambda: C.write_video("x.mp4", torch.zeros(1, 2, 3)), "must be (3, T, H, W)"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_items_end():
    for data in (C.SceneClips(3), C.DigitClips(np.zeros((1, 9, 9), np.uint8), [0], 3)):
        assert len([c for c in data]) == 3


# ---------------------------------------------------------------- digits


def test_digits_move_keep_their_label_and_colour():
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 4:24] = 255
    data = C.DigitClips(np.stack([image, image]), [3, 7], 30, seed=1)
    clip = next(c for c in data if c.attributes["motion"] == "right")
    assert (
        clip.attributes["object"] in ("three", "seven")
        and clip.attributes["object"] in clip.caption
    )
    mass = clip.frames.float().sum((0, 2))  # (T, W)
    centre = (mass * torch.arange(64)).sum(1) / mass.sum(1)
    assert (centre.diff() > 0.5).all()
    rgb = clip.frames.amax((1, 2, 3)).tolist()
    assert np.abs(np.array(rgb) - C.COLOURS[clip.attributes["colour"]]).max() <= 2
    held = C.DigitClips(np.stack([image, image]), [3, 7], 9, "heldout", seed=1)
    assert held.combos and not set(held.combos) & set(data.combos)
    assert held[4].caption == C.scene_caption(*held.combos[4])


@needs("mnist/mnist.npz")
def test_mnist():
    path = SHARED / "mnist" / "mnist.npz"
    images, labels = C.load_digits(path, "test")
    data = C.DigitClips(images, labels, 20)
    assert images.shape == (10000, 28, 28) and data[3].frames.float().mean() > 1
    with pytest.raises(ValueError, match="valid_images"):
        C.load_digits(path, "valid")
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        C.load_digits("nothing.npz")


# ---------------------------------------------------------------- video files


def test_a_clip_survives_the_way_to_a_file_and_back(tmp_path):
    clip = C.SceneClips(10)[4]
    path = C.write_video(tmp_path / "A-red_BALL moves.mp4", clip)
    back = C.read_video(path)
    assert (
        back.caption == "a red ball moves"
        and back.fps == pytest.approx(8)
        and back.source == str(path)
    )
    assert (back.frames.float() - clip.frames.float()).abs().mean() < 2
    assert os.listdir(tmp_path) == [path.name]  # nothing half-written stays
    with av.open(str(path)) as f:
        stream = f.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")


def test_odd_sides_and_floats_can_be_written(tmp_path):
    path = C.write_video(tmp_path / "x.mp4", torch.ones(3, 3, 33, 47), fps=29.97)
    with av.open(str(path)) as f:
        assert (f.streams.video[0].width, f.streams.video[0].height) == (48, 34)
    assert C.read_video(path).frames.float().mean() > 250


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = C.write_video(tmp_path / "x.mp4", C.SceneClips(1)[0])
    old = path.read_bytes()

    def full(part, *_):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(C, "encode", full)
    with pytest.raises(OSError, match="x.mp4.*No space left"):
        C.write_video(path, C.SceneClips(2)[1])
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["x.mp4"]
    monkeypatch.undo()
    with open(path, "rb") as reader:  # who reads the old file keeps it
        C.write_video(path, C.SceneClips(2)[1])
        assert reader.read() == old != path.read_bytes()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        C.write_video(tmp_path / "nowhere" / "x.mp4", C.SceneClips(1)[0])


def test_frames_are_sampled_by_time_not_by_count(tmp_path):
    "12 quick frames in the first second, 4 slow ones in the second: half the clip shows the slow ones."
    stamps = [*range(0, 1000, 84), *range(1008, 2000, 250)]
    path = encode(tmp_path / "vfr.mkv", ramp(len(stamps)), "matroska", stamps=stamps)
    grey = C.read_video(path, frames=8, size=32).frames[0].float().mean((1, 2))
    slow = 8 + 240 * 12 / (len(stamps) - 1)  # the first slow frame's brightness
    assert (grey.diff() >= -1).all() and (grey >= slow - 6).sum() == 4


def test_more_frames_than_the_file_has_and_fewer(tmp_path):
    path = encode(tmp_path / "x.mp4", ramp(8))
    level = lambda n, **k: C.read_video(path, frames=n, size=32, **k).frames[0].float().mean((1, 2))
    for part in (level(16)[::2], level(16)[1::2]):
        assert torch.allclose(part, level(8), atol=1)
    assert torch.allclose(level(4, fps=8), level(8)[2:6], atol=1)  # the middle half second
    held = level(16, fps=8)  # a second is missing: the last holds
    assert torch.allclose(held[:8], level(8), atol=1) and (held[8:] == held[7]).all()


def test_the_middle_is_kept_and_nothing_is_squeezed(tmp_path):
    wide = np.zeros((4, 64, 128, 3), np.uint8)
    wide[:, :, 32:96] = 255  # exactly the centre square is white
    assert C.read_video(encode(tmp_path / "x.mp4", wide), 4, 32).frames.float().mean() > 250
    wide[:, :, 31:97] = 255 - wide[:, :, 31:97]
    assert C.read_video(encode(tmp_path / "y.mp4", wide), 4, 32).frames.float().mean() < 12


def test_shrinking_averages():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(C.square(stripes, 16)[4:12, 4:12].astype(int)) <= 8
    ramp = np.tile(np.arange(0, 200, 5, dtype=np.uint8), (40, 1))  # 5 a pixel, then 6.25 a pixel
    assert set(np.diff(C.square(ramp, 32)[16, 2:-2, 0].astype(int))) <= {6, 7}


def test_transparency_lies_over_black(tmp_path):
    x = np.full((4, 32, 32, 4), 255, np.uint8)
    x[..., 3] = 0
    x[:, :, :16, 3] = 128
    got = C.read_video(encode(tmp_path / "x.mov", x, "mov", "qtrle", "argb"), 4, 32).frames.float()
    assert got[..., 17:].max() == 0 and abs(got[..., :15].mean() - 128) < 2


def test_a_transparent_colour_of_a_palette_lies_over_black(tmp_path):
    picture = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8), 16)[None].repeat(32, 0), "P")
    picture.putpalette([200, 150, 100, 250, 250, 250])
    picture.save(tmp_path / "x.png", transparency=1)  # the right half is not there
    got = C.read_video(tmp_path / "x.png", 1, 32).frames
    assert got[0, 0, 0, 3] == 200 and got[..., 17:].max() == 0


@pytest.mark.parametrize(
    "ext, fmt, codec, pix",
    [
        ("avi", "avi", "mpeg4", "yuv420p"),
        ("h264", "h264", "libx264", "yuv420p"),
        ("gif", "gif", "gif", "rgb8"),
        ("ts", "mpegts", "libx264", "yuv420p"),
    ],
)
def test_containers_with_and_without_time_stamps(tmp_path, ext, fmt, codec, pix):
    path = encode(tmp_path / f"x.{ext}", ramp(8), fmt, codec, pix)
    if ext == "h264":
        path = path.rename(path.with_suffix(".ts"))
    grey = C.read_video(path, 8, 32).frames[0].float().mean((1, 2))
    assert (grey.diff() > 10).all()


def test_an_mp4_without_video_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mp4.*no video"):
        C.read_video(tmp_path / "sound.mp4")
    with pytest.raises(FileNotFoundError, match="none.mp4: no such file"):
        C.read_video(tmp_path / "none.mp4")


# ---------------------------------------------------------------- folders


@pytest.fixture
def folder(tmp_path):
    for name, i in (("a_red-ball.mp4", 1), ("Thank You.mp4", 2), ("-dash-.mp4", 3)):
        C.write_video(tmp_path / name, C.SceneClips(9)[i])
    (tmp_path / "deeper").mkdir()
    C.write_video(tmp_path / "deeper" / "below.mp4", C.SceneClips(9)[5])
    return tmp_path


def test_a_folder_of_clips(folder):
    (folder / "broken.mp4").write_bytes(b"no video at all")
    (folder / "empty.webm").touch()
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.mp4").touch()
    data = C.FolderClips(folder, size=32, frames=8)
    assert [c.caption for c in data] == ["dash", "thank you", "a red ball", "below"]
    assert {f for f, _ in data.refused} == {"broken.mp4", "empty.webm", "notes.txt"}
    assert dict(data.refused)["empty.webm"] == "the file is empty"
    assert "Invalid data" in dict(data.refused)["broken.mp4"]
    assert data[0].frames.shape == (3, 8, 32, 32)
    lazy = C.FolderClips(folder, size=32, frames=8, keep=0)
    assert not lazy.kept and all(torch.equal(a.frames, b.frames) for a, b in zip(lazy, data))


def test_captions_from_a_manifest(folder):
    rows = [("Thank You.mp4", 'hello, "you"', "calm"), ("deeper/below.mp4", "déjà vu", "wild")]
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8-sig") as f:
        csv.writer(f).writerows([("file", "caption", "mood"), *rows])
    data = C.FolderClips(folder)
    assert [c.caption for c in data] == [r[1] for r in rows] and data[1].attributes == {
        "mood": "wild"
    }
    lines = folder / "list.jsonl"
    lines.write_text('{"file": "Thank You.mp4", "caption": "one"}\n\n', encoding="utf-8")
    assert [c.caption for c in C.FolderClips(folder, manifest=lines)] == ["one"]
    assert [c.caption for c in C.FolderClips(lines)] == ["one"]  # the manifest itself will do


@pytest.mark.parametrize(
    "name, text, error, words",
    [
        (
            "m.csv",
            "file,text\nThank You.mp4,x\n",
            ValueError,
            "row 1: no 'caption'; columns are: file, text",
        ),
        ("m.csv", "caption\nx\n", ValueError, "no 'file'"),
        ("m.csv", "file,caption\nThank You.mp4,\n", ValueError, "row 1: no 'caption'"),
        ("m.csv", "file,caption\n", ValueError, "has no rows"),
        ("m.jsonl", "{oops\n", ValueError, "is no JSONL"),
        ("m.jsonl", "[1]\n", ValueError, "row 1: no object"),
    ],
)
def test_wrong_manifests_are_one_line_errors(folder, name, text, error, words):
    (folder / name).write_text(text)
    with pytest.raises(error) as e:
        C.FolderClips(folder, manifest=folder / name)
    assert words in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_folders_with_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="no readable clip in"):
        C.FolderClips(tmp_path)
    (tmp_path / "x.mp4").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no readable clip in .*x.mp4: Invalid"):
        C.FolderClips(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        C.FolderClips(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no manifest at"):
        C.FolderClips(tmp_path, manifest=tmp_path / "m.csv")


@needs("awkward")
def test_awkward_files():
    data = C.FolderClips(SHARED / "awkward")
    assert dict(data.refused).keys() == {"corrupted.mp4", "doc_medias_result.webm"}
    assert dict(data.refused)["doc_medias_result.webm"] == "the file is empty"
    clips = {c.source.split("/")[-1]: c for c in data}
    assert len(clips) == 10 and clips["-video-with-dash-.mp4"].caption == "video with dash"
    assert {tuple(c.frames.shape) for c in clips.values()} == {(3, 16, 64, 64)}
    assert clips["no_duration.webm"].fps == pytest.approx(
        16 / 4.94, rel=0.02
    )  # 74 frames at 15 a second
    flag = (
        clips["-video-with-dash-.mp4"].frames.float().mean((2, 3))
    )  # red, green, blue, black, white
    assert flag[0, 0] > 200 > 60 > flag[1, 0] and flag[:, 15].min() > 200
    ball = clips["transparent.webm"].frames.float()  # a red ball on nothing
    assert (
        (ball.amax(0) == 0).float().mean() > 0.9 and ball[0].max() > 200 and ball[1:].mean() < 0.1
    )


@needs("awkward")
@pytest.mark.parametrize("degrees, turns", [(90, -1), (180, 2), (270, 1)])
def test_rotated_films_stand_upright(degrees, turns):
    path = SHARED / "awkward" / f"video_{degrees}.mov"
    with av.open(str(path)) as f:
        first = next(f.decode(video=0)).to_ndarray(format="rgb24")
    assert torch.equal(
        C.read_video(path).frames[:, 0],
        torch.from_numpy(np.rot90(C.square(first, 64), turns).copy()).permute(2, 0, 1),
    )


@needs("signs")
def test_signs():
    clip = C.read_video(SHARED / "signs" / "Thank You.mp4", size=96)
    assert clip.caption == "thank you" and clip.frames.shape == (3, 16, 96, 96)
    with av.open(str(SHARED / "signs" / "Thank You.mp4")) as f:
        n = f.streams.video[0].frames
    assert clip.fps == pytest.approx(16 / (n / 24), rel=0.02)


def test_memory_stays_small(tmp_path, monkeypatch):
    "Of 200 large frames only a few are alive at a time."
    import gc

    path = encode(tmp_path / "x.mp4", np.zeros((200, 48, 64, 3), np.uint8))
    alive, turn = [], C.upright

    def counted(frame, *a):
        alive.append(
            sum(type(o) is av.VideoFrame for o in gc.get_objects()) if len(alive) % 40 == 39 else 0
        )
        return turn(frame, *a)

    monkeypatch.setattr(C, "upright", counted)
    C.read_video(path, frames=100)
    assert len(alive) == 100 and 0 < max(alive) <= 20  # a decoder's few, not all 200


# ---------------------------------------------------------------- datasets


def test_datasets_of_videos_frames_and_images(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    datasets.disable_progress_bars()
    videos = datasets.Dataset.from_dict(
        {"video": [str(folder / "Thank You.mp4")], "text": ["hi"], "n": [7]}
    )
    videos = videos.cast_column("video", datasets.Video())
    videos.save_to_disk(tmp_path / "saved")
    for data in (C.HubClips(videos), C.HubClips(tmp_path / "saved")):
        assert torch.equal(data[0].frames, C.read_video(folder / "Thank You.mp4").frames)
        assert data[0].caption == "hi" and data[0].attributes == {"n": 7}
    grey = lambda v: Image.fromarray(np.full((20, 30), v, np.uint8))
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    still = C.HubClips(datasets.Dataset.from_list([dict(image=grey(9), label=1)], features=kinds))
    assert still[0].caption == "dog" and still[0].frames.shape == (3, 1, 64, 64)
    assert still[0].frames.unique().tolist() == [9]
    row = datasets.Dataset.from_list([dict(frames=[grey(10), grey(200)], caption="x")])
    assert C.HubClips(row, frames=4)[0].frames[0, :, 0, 0].tolist() == [10, 10, 200, 200]
    with pytest.raises(
        ValueError, match="no video or image column 'film'; columns are: video, text, n"
    ):
        C.HubClips(videos, column="film")
    with pytest.raises(ValueError, match="save_to_disk"):
        C.HubClips(folder)


def test_a_broken_row_is_named():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=b"rubbish", path=None), text="x")],
        features=datasets.Features(
            video=datasets.Video(decode=False), text=datasets.Value("string")
        ),
    )
    with pytest.raises(ValueError, match="row 0: cannot read"):
        C.HubClips(rows)[0]


# ---------------------------------------------------------------- vocabulary


@pytest.fixture
def vocab():
    captions = [C.scene_caption(*c) for c in C.scene_combinations()]
    return C.Vocabulary.from_captions(captions, drop=("a", "moves"))


def test_vocabulary(vocab):
    assert len(vocab) == 6 + 6 + 9 + 1 and vocab.slots == 3
    ids = vocab.encode("a red ring moves left")
    assert ids.dtype == torch.int64 and [vocab.words[i - 1] for i in ids] == ["red", "ring", "left"]
    for same in ("red ring left", "A red RING moving left.", "the red ring moves left"):
        assert torch.equal(vocab.encode(same), ids), same
    assert torch.equal(vocab.encode("a red ring growing"), vocab.encode("a red ring grows"))
    assert C.Vocabulary.from_dict(vocab.to_dict()) == vocab
    import json

    assert C.Vocabulary.from_dict(json.loads(json.dumps(vocab.to_dict()))) == vocab
    held = [C.scene_caption(*c) for c in C.scene_combinations("heldout")]
    assert vocab.encode_batch(held).min() > 0 and all(
        len(vocab.encode(h, strict=True)) == 3 for h in held
    )


@pytest.mark.parametrize(
    "prompt, strict, words",
    [
        (
            "a red dog moves left",
            False,
            "unknown word 'dog' in prompt 'a red dog moves left'; known: ball, blue",
        ),
        ("a rde ring grows", False, "did you mean 'red'"),
        ("a red red red ring grows", False, "has 5 words; the model knows up to 3"),
        ("  ", False, "has no words"),
        ("a ball moves left", True, "'ball' is never word 1"),
        ("a red ring", True, "word 3 is missing"),
    ],
)
def test_prompts_that_are_not_understood(vocab, prompt, strict, words):
    with pytest.raises(ValueError) as e:
        vocab.encode(prompt, strict)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_words_of_a_folder():
    vocab = C.Vocabulary.from_captions(
        ["a", "thank you", "moves", *(f"word{i}" for i in range(200))], drop=("a", "moves")
    )
    assert vocab.encode("a").tolist() == [vocab.ids["a"], 0] and vocab.encode("thank you").min() > 0
    with pytest.raises(ValueError) as e:
        vocab.encode("thx")
    assert "more" in str(e.value) and len(str(e.value)) < 400
    with pytest.raises(ValueError, match="twice"):
        C.Vocabulary(["a", "a"], 2)
