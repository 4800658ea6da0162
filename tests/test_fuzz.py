"""Files spoiled at random, thousands of them, the same each time. Each is read, or refused in one
line that names it: no traceback of another kind, no end of memory, no waiting.

A failure says `seed-n`; that case alone is `spoil(original, random.Random("seed-n"))`."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import TINY, awake, video
from helpers.mutants import (
    fuzz,
    spoil_bytes,
    spoil_json_file,
    spoil_safetensors,
    spoil_table,
)
from helpers.pipeline import picturing_pipeline
from PIL import Image

from minisora.autoencoder import ImageVAE, load_autoencoder
from minisora.core.hub import weight_names
from minisora.core.tensors import open_arrays
from minisora.data.folders import FolderClips
from minisora.data.video import probe, read_video, write_video
from minisora.dit import DiT
from minisora.evaluation.judge import AttributeClassifier
from minisora.evaluation.samples import GeneratedClips, generate_clips
from minisora.latent_cache import LatentCache
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.video_vae import CausalVideoVAE
from minisora.models.weights import load_official_state
from minisora.pipeline import VideoPipeline
from minisora.recipe import read_recipe
from minisora.temporal import VideoDiT
from minisora.training.checkpoint import load_checkpoint

DATA = Path(__file__).parent / "data" / "version-0.1"
WEIGHTS = weight_names("model")[0]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def all_well(found):
    assert not found, f"{len(found)} cases:\n" + "\n".join(found[:25])


# ---------------------------------------------------------------- configs and weights


def small_vae():
    return CausalVideoVAE(channels=2, width=4, depth=1)


MODELS = {
    "dit": (lambda: awake(DiT(TINY)), DiT.from_pretrained),
    "video": (lambda: video(relative_bias=True), VideoDiT.from_pretrained),
    "vae": (small_vae, load_autoencoder),
    "image": (lambda: ImageVAE(channels=2, width=4, enc_width=4, smooth=2), load_autoencoder),
    "pca": (lambda: PCACompressedVAE.from_autoencoder(small_vae(), 2, 3, 4), load_autoencoder),
    "judge": (
        lambda: AttributeClassifier(dict(a=["x", "y"]), width=2),
        AttributeClassifier.from_pretrained,
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    for name, (make, _) in MODELS.items():
        make().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_configs(folders, name):
    folder = folders / name
    file = folder / "config.json"
    read = lambda: MODELS[name][1](folder)  # noqa: E731
    names = ("config.json", WEIGHTS)
    all_well(fuzz(80, f"config {name}", file.read_bytes(), spoil_json_file, file, read, names))


@pytest.mark.parametrize("name", MODELS)
def test_safetensors(folders, name):
    folder = folders / name
    file = folder / WEIGHTS
    read = lambda: MODELS[name][1](folder)  # noqa: E731
    all_well(
        fuzz(50, f"weights {name}", file.read_bytes(), spoil_safetensors, file, read, [WEIGHTS])
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles(tmp_path, legacy):
    file = tmp_path / "w.pt"
    state = dict(model=awake(DiT(TINY)).state_dict(), step=3, args=None)
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    read = lambda: load_official_state(DiT(TINY), file)  # noqa: E731
    all_well(fuzz(60, f"pickle {legacy}", file.read_bytes(), spoil_bytes, file, read, ["w.pt"]))


@pytest.mark.parametrize("packed", [False, True])
def test_arrays(tmp_path, packed):
    file = tmp_path / "a.npz"
    save = np.savez_compressed if packed else np.savez
    save(file, images=np.arange(60, dtype=np.uint8).reshape(3, 4, 5), labels=np.arange(3))

    def read():
        with open_arrays(file) as arrays:
            for array in arrays.values():
                array()

    all_well(fuzz(70, f"arrays {packed}", file.read_bytes(), spoil_bytes, file, read, ["a.npz"]))


# ---------------------------------------------------------------- tables and other JSON


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    picturing_pipeline().save_pretrained(folder)
    return folder


def test_pipelines(pipeline):
    file = pipeline / "pipeline.json"
    read = lambda: VideoPipeline.from_pretrained(pipeline)  # noqa: E731
    all_well(
        fuzz(80, "pipeline", file.read_bytes(), spoil_json_file, file, read, ["pipeline.json"])
    )


@pytest.mark.parametrize("name", ["recipe.json", "captions.json", "model/latents.json"])
def test_runs(tmp_path, name):
    shutil.copytree(DATA / "run", tmp_path / "run", ignore=shutil.ignore_patterns("training"))
    file = tmp_path / "run" / name
    names = [file.name]
    if name == "recipe.json":

        def read():
            return read_recipe(file)
    else:
        # captions that are others are another vocabulary, of which the recipe is told
        names = [file.name, "recipe.json"]

        def read():
            return VideoPipeline.from_pretrained(tmp_path / "run")

    all_well(fuzz(40, name, file.read_bytes(), spoil_json_file, file, read, names))


def test_cache_manifests(tmp_path):
    shutil.copytree(DATA / "caches" / "int8", tmp_path / "c")
    file = tmp_path / "c" / "manifest.json"
    read = lambda: LatentCache(tmp_path / "c")[0]  # noqa: E731
    all_well(
        fuzz(60, "manifest", file.read_bytes(), spoil_json_file, file, read, ["manifest.json"])
    )


def test_checkpoints(tmp_path):
    state = next((DATA / "checkpoints" / "plain").rglob("state.json"))
    shutil.copytree(state.parent, tmp_path / state.parent.name)
    file = tmp_path / state.parent.name / "state.json"
    read = lambda: load_checkpoint(file.parent)  # noqa: E731
    names = ["state.json", file.parent.name]
    all_well(fuzz(30, "checkpoint", file.read_bytes(), spoil_json_file, file, read, names))


@pytest.mark.parametrize("name", ["about.json", "clips-000000.safetensors"])
def test_generated_clips(tmp_path, name):
    frames = torch.zeros(4, 3, 2, 8, 8, dtype=torch.uint8)
    generate_clips(tmp_path, lambda index: frames[: len(index)], 4, batch=2, about=dict(seed=1))
    file = tmp_path / name
    spoil = spoil_json_file if name.endswith("json") else spoil_safetensors
    read = lambda: [clip.frames for clip in GeneratedClips(tmp_path)]  # noqa: E731
    names = ["about.json", "clips-", str(tmp_path)]
    all_well(fuzz(25, name, file.read_bytes(), spoil, file, read, names))


CSV = 'file,caption,label\na.mp4,"a ball, red",1\nb.mp4,a ring,2\n'
JSONL = '{"file": "a.mp4", "caption": "a ball"}\n{"file": "b.mp4", "caption": "a ring", "n": 2}\n'


@pytest.mark.parametrize("name, text", [("manifest.csv", CSV), ("captions.jsonl", JSONL)])
def test_tables(tmp_path, name, text):
    for clip in "ab":
        write_video(tmp_path / f"{clip}.mp4", torch.zeros(3, 4, 16, 16, dtype=torch.uint8))
    file = tmp_path / name

    def read():
        clips = FolderClips(tmp_path, size=16, frames=4, on_error="raise")
        return [clips[i].caption for i in range(len(clips))]

    names = [name, str(tmp_path)]
    all_well(fuzz(45, name, text.encode(), spoil_table, file, read, names))


# ---------------------------------------------------------------- clips


def moving():
    frames = torch.zeros(3, 5, 32, 32, dtype=torch.uint8)
    for t in range(5):
        frames[:, t, 4 * t : 4 * t + 8, 10:20] = 200
    return frames


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.avi", "clip.webm", "picture.png"])
def test_clips(tmp_path, name):
    file = tmp_path / name
    if file.suffix == ".mp4":
        write_video(file, moving())
    elif file.suffix == ".gif":
        pages = [Image.fromarray(f) for f in moving().permute(1, 2, 3, 0).numpy()]
        pages[0].save(file, save_all=True, append_images=pages[1:], duration=125)
    elif file.suffix == ".png":
        Image.fromarray(moving()[:, 0].permute(1, 2, 0).numpy()).save(file)
    else:
        record(file, moving())
    data = file.read_bytes()

    def read():
        if file.suffix == ".png":
            return FolderClips(tmp_path, size=16, frames=1, on_error="raise")[0]
        probe(file)
        return read_video(file, frames=4, size=16)

    all_well(fuzz(65, name, data, spoil_bytes, file, read, [name, str(tmp_path)]))


def record(file, frames):
    "A clip in whatever container the suffix says."
    import av

    codec = dict(avi="mpeg4", webm="libvpx")[file.suffix[1:]]
    with av.open(str(file), "w") as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height = frames.shape[3], frames.shape[2]
        stream.pix_fmt = "yuv420p"
        for picture in frames.permute(1, 2, 3, 0).numpy():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        out.mux(stream.encode())


# ---------------------------------------------------------------- the net itself


def test_the_net_catches(tmp_path):
    "What it is for: an error of another kind, an unnamed file, two lines."
    file = tmp_path / "x.json"

    def raiser(error):
        def read():
            raise error

        return read

    original = json.dumps(dict(a=1)).encode()
    for error in (KeyError("a"), TypeError("x.json"), ValueError("bad"), ValueError("x.json\nb")):
        found = fuzz(3, "net", original, spoil_json_file, file, raiser(error), ["x.json"])
        assert len(found) >= 3 and file.read_bytes() == original
    for error in (ValueError("x.json: bad"), OSError(2, "No such file", "x.json")):
        assert not fuzz(3, "net", original, spoil_json_file, file, raiser(error), ["x.json"])
