"""`minisora encode` and `repair`: any clips, any autoencoder, one process or several."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT
from helpers.autoencoder import tiny_kl
from helpers.clips import grey, packed, write_tar
from helpers.latent_cache import content, flip

from minisora import cli
from minisora.autoencoder import ImageVAE
from minisora.experiment import Experiment
from minisora.clips import SceneClips
from minisora.data.folders import FolderClips
from minisora.data.imagenet import ImageNetClips
from minisora.data import unreadable
from minisora.data.unreadable import ReadableSubset
from minisora.data.video import write_video
from minisora.latent_cache import LatentCache, verify_cache, write_cache
from minisora.latents.diffusers_vae import DiffusersVAE

SHARD = "latents-00000.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("ae") / "vae"
    ImageVAE().save_pretrained(path)
    return str(path)


def films(path, n=3):
    path.mkdir()
    scenes = SceneClips(n, size=32)
    for k in range(n):
        write_video(path / f"{scenes[k].caption}.mp4", scenes[k])
    return path


def pictures(path):
    path.mkdir()
    for k in range(3):
        (path / f"number {k}.png").write_bytes(packed(grey(50 * k)))
    return path


def manifest(path):
    films(path)
    names = sorted(p.name for p in path.glob("*.mp4"))
    (path / "list.csv").write_text(
        "file,caption\n" + "".join(f"{f},film {k}\n" for k, f in enumerate(names))
    )
    return path / "list.csv"


def tar(path):
    path.mkdir()
    parts = {
        f"{k}.{e}": d
        for k in range(3)
        for e, d in (("png", packed(grey(9 * k))), ("txt", b"a still"))
    }
    return write_tar(path / "x.tar", parts)


def imagenet(path):
    for k in range(3):
        (path / f"train/n0144076{k}").mkdir(parents=True)
        (path / f"train/n0144076{k}/a.JPEG").write_bytes(packed(grey(50 * k), "JPEG"))
    return path


def hub_layout(path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["tench, fish", "hen"])
    )
    path.mkdir()
    rows = [dict(image=grey(60 * k), label=k % 2) for k in range(3)]
    datasets.Dataset.from_list(rows, features=kinds).to_parquet(path / "train-00000.parquet")
    return path


SOURCES = dict(
    films=(films, 16, None),
    manifest=(manifest, 16, None),
    tar=(tar, 1, None),
    tars=(lambda p: tar(p).parent, 1, None),
    imagenet=(imagenet, 1, [0, 1, 2]),
    parquet=(hub_layout, 1, [0, 1, 0]),
    named=(lambda p: f"imagenet-1k={hub_layout(p)}", 1, [0, 1, 0]),
)


@pytest.mark.parametrize("name", SOURCES)
def test_any_source_becomes_a_cache_and_is_repaired(tmp_path, vae, name, capsys, monkeypatch):
    make, frames, labels = SOURCES[name]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    source, cache = str(make(tmp_path / "data")), tmp_path / "c"
    size = ["--size", "32", "48"] if name == "films" else ["--size", "32"]
    assert (
        cli.main(
            ["encode", source, str(cache), "--autoencoder", vae, "--frames", str(frames), *size]
        )
        == 0
    )
    made = LatentCache(cache, None if labels is None else "label", autoencoder=ImageVAE())
    assert made.shape == (4, frames, 4, 6 if name == "films" else 4) and len(made) == 3
    assert str(made) in capsys.readouterr().out
    if labels:
        assert made.conditions.flatten().tolist() == labels
    if name == "named":
        assert made.captions == ["tench", "hen", "tench"]
    if name == "manifest":
        assert made.captions == ["film 0", "film 1", "film 2"]
    before = content(cache)
    assert (
        cli.main(
            ["encode", source, str(cache), "--autoencoder", vae, "--frames", str(frames), *size]
        )
        == 0
    )
    flip(cache / SHARD, -5)
    assert (
        cli.main(["repair", str(cache), source, "--autoencoder", vae]) == 0
        and content(cache) == before
    )


def test_a_folder_of_pictures(tmp_path, vae):
    source, cache = pictures(tmp_path / "data"), tmp_path / "c"
    try:
        FolderClips(source)
    except ValueError as e:
        if "its name is not that of a video" in str(e):
            pytest.skip("folders of pictures are not read here")
        raise
    assert cli.main(["encode", str(source), str(cache), "--autoencoder", vae, "--size", "32"]) == 0
    assert len(LatentCache(cache)) == 3 and LatentCache(cache).shape[1:] == (1, 4, 4)


def test_what_is_asked_for_is_what_python_writes(tmp_path, vae):
    films(tmp_path / "data")
    options = "--size 32 --frames 5 --fps 4 --moments --flips --dtype float32".split()
    options += "--batch-size 2 --samples 2".split()
    assert (
        cli.main(
            ["encode", str(tmp_path / "data"), str(tmp_path / "c"), "--autoencoder", vae, *options]
        )
        == 0
    )
    clips = FolderClips(tmp_path / "data", size=32, frames=5, fps=4.0)
    write_cache(
        tmp_path / "d",
        clips,
        ImageVAE(),
        2,
        "float32",
        moments=True,
        flips=True,
        limit=2,
        progress=False,
    )
    assert content(tmp_path / "c") == content(tmp_path / "d")
    again = [
        "encode",
        str(tmp_path / "data"),
        str(tmp_path / "c"),
        "--autoencoder",
        vae,
        "--size",
        "32",
    ]
    assert cli.main(again) == 2 and cli.main([*again, "--overwrite"]) == 0


def test_a_pipelines_vae_encodes(tmp_path):
    tiny_kl().save_pretrained(tmp_path / "pipeline/vae")
    imagenet(tmp_path / "data")
    call = [
        "encode",
        str(tmp_path / "data"),
        str(tmp_path / "c"),
        "--autoencoder",
        str(tmp_path / "pipeline"),
        "--size",
        "32",
    ]
    assert cli.main(call) == 0
    LatentCache(tmp_path / "c", autoencoder=DiffusersVAE(tmp_path / "pipeline/vae"))


def test_a_stream_on_the_command_line(tmp_path, vae, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    source = str(hub_layout(tmp_path / "data"))
    call = [
        "encode",
        source,
        str(tmp_path / "c"),
        "--autoencoder",
        vae,
        "--size",
        "32",
        "--streaming",
    ]
    assert cli.main(call) == 2 and "pass samples" in capsys.readouterr().err
    assert cli.main([*call, "--samples", "3"]) == 0
    assert LatentCache(tmp_path / "c", "label").conditions.flatten().tolist() == [0, 1, 0]
    flip(tmp_path / "c" / SHARD, -5)
    assert (
        cli.main(["repair", str(tmp_path / "c"), source, "--autoencoder", vae, "--streaming"]) == 0
    )
    assert not verify_cache(tmp_path / "c")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--split", "val"], "no split 'val'"),
        (["--streaming", "--samples", "3"], "are not streamed"),
        (["--size", "30"], "multiples of 8"),
        (["--size", "8", "8", "8"], "size must be"),
        (["--on-error", "raise"], "broken.mp4"),
        (["--autoencoder", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, vae, more, words, capsys):
    films(tmp_path / "data", 2)
    (tmp_path / "data/broken.mp4").write_bytes(b"no video")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            cli.main(
                ["encode", str(tmp_path / "data"), str(tmp_path / "c"), "--autoencoder", vae, *more]
            )
            == 2
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("minisora: ") and words in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_a_bad_file_is_told(tmp_path, vae):
    films(tmp_path / "data", 2)
    (tmp_path / "data/broken.mp4").write_bytes(b"no video")
    with pytest.warns(UserWarning, match="1 of 3 cannot be read .*broken.mp4"):
        cli.main(
            [
                "encode",
                str(tmp_path / "data"),
                str(tmp_path / "c"),
                "--autoencoder",
                vae,
                "--size",
                "32",
            ]
        )
    assert len(LatentCache(tmp_path / "c")) == 2


def test_torchrun_shares_the_work(tmp_path, vae):
    "Two processes of torchrun leave the bytes of one."
    imagenet(tmp_path / "data")
    code = "import sys; from minisora.cli import main; sys.exit(main(sys.argv[1:]))"
    args = [
        "encode",
        str(tmp_path / "data"),
        str(tmp_path / "c"),
        "--autoencoder",
        vae,
        "--size",
        "32",
    ]
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--no-python",
        "--standalone",
        "--nproc-per-node",
        "2",
        sys.executable,
        "-c",
        code,
        *args,
    ]
    done = subprocess.run(
        run, env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("LatentCache") == 1, "one of them says so"
    write_cache(
        tmp_path / "alone",
        ReadableSubset(ImageNetClips(tmp_path / "data", size=32)),
        ImageVAE(),
        progress=False,
    )
    assert content(tmp_path / "c") == content(tmp_path / "alone")


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_broken_picture_is_left_out_or_fatal(tmp_path, vae, on_error, capsys):
    imagenet(tmp_path / "data")
    bad = sorted((tmp_path / "data").rglob("*.JPEG"))[1]
    whole = len([*(tmp_path / "data").rglob("train/*/*.JPEG")])
    bad.write_bytes(bad.read_bytes()[:40])
    call = [
        "encode",
        str(tmp_path / "data"),
        str(tmp_path / "c"),
        "--autoencoder",
        vae,
        "--size",
        "32",
        "--on-error",
        on_error,
    ]
    if on_error == "raise":
        assert (
            cli.main(call) == 2
            and bad.name in capsys.readouterr().err
            and not (tmp_path / "c").exists()
        )
    else:
        with pytest.warns(UserWarning, match="clip 1"):
            assert cli.main(call) == 0
        assert len(LatentCache(tmp_path / "c")) == whole - 1


# ---------------------------------------------------------------- repair, and runs


def test_a_mistaken_repair_begins_nothing(tmp_path, vae, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (["repair"], ["repair", "--out", "."], ["repair", "nowhere"]):
        assert cli.main(call) == 2 and "no finished latent cache" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
    imagenet(tmp_path / "data")
    write_cache("c", ImageNetClips("data", size=32), ImageVAE(), progress=False)
    assert cli.main(["repair", "c"]) == 0 and "it was whole" in capsys.readouterr().out
    flip(tmp_path / "c" / SHARD, -5)
    assert cli.main(["repair", "c"]) == 2
    assert (
        "What was it made of? Say: minisora repair c SOURCE --autoencoder NAME"
        in capsys.readouterr().err
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "data"]


def test_the_cache_of_a_run_is_repaired_by_its_path(tmp_path, monkeypatch):
    small = ["--set", "clips=6", "ae_steps=2", "channels=4"]
    assert cli.main(["cache", "--out", str(tmp_path / "run"), *small]) == 0
    cache = tmp_path / "run/latents"
    before = content(cache)
    for call in (["repair", str(cache)], ["repair", "--out", str(tmp_path / "run")]):
        flip(cache / SHARD, -5)
        assert cli.main(call) == 0 and content(cache) == before
    shutil.rmtree(tmp_path / "run/autoencoder")
    flip(cache / SHARD, -5)
    monkeypatch.setattr(
        "minisora.experiment.train_autoencoder", lambda *a, **k: pytest.fail("it trains")
    )
    assert cli.main(["repair", str(cache)]) == 2, (
        "without its autoencoder there is nothing to repair with"
    )


def npy(path, shape):
    for kind, make in (
        ("features", lambda k: np.full(shape, k, np.float32)),
        ("labels", lambda k: np.array([k])),
    ):
        (path / f"x_{kind}").mkdir(parents=True)
        for k in range(3):
            np.save(path / f"x_{kind}" / f"{k}.npy", make(k))
    return str(path)


@pytest.mark.parametrize("axes, want", [([], (4, 6, 8, 8)), (["--axes", "CTHW"], (6, 4, 8, 8))])
def test_converted_caches_have_axes_and_are_repaired(tmp_path, axes, want, capsys):
    old, cache = npy(tmp_path / "old", (6, 4, 8, 8)), tmp_path / "c"
    assert cli.main(["convert", old, str(cache), "--made-by", "sd-vae-ft-ema", *axes]) == 0
    assert LatentCache(cache).shape == want
    before = content(cache)
    flip(cache / SHARD, -5)
    assert (
        cli.main(["repair", str(cache)]) == 2
        and "the folder of the .npy files" in capsys.readouterr().err
    )
    assert cli.main(["repair", str(cache), old, *axes]) == 0 and content(cache) == before


def test_a_run_says_which_files_it_leaves_out(tmp_path, capsys):
    films(tmp_path / "data", 2)
    (tmp_path / "data/broken.mp4").write_bytes(b"no video")
    call = ["clips", "--data", str(tmp_path / "data"), "--set", "size=32", "frames=4"]
    with pytest.warns(UserWarning, match="1 of 3 cannot be read .*broken.mp4"):
        assert cli.main([*call, "--out", str(tmp_path / "run")]) == 0
    assert "refused broken.mp4" in capsys.readouterr().out
    assert cli.main([*call, "on_error=raise", "--out", str(tmp_path / "strict")]) == 2
    assert "broken.mp4" in capsys.readouterr().err


def test_recipes_from_before_on_error_are_read(tmp_path):
    run = Experiment(tmp_path / "run")
    with run.lock.scope():
        run.begin()
    old = json.loads((tmp_path / "run/recipe.json").read_text())
    assert old.pop("on_error") == "warn"
    (tmp_path / "run/recipe.json").write_text(json.dumps(old))
    assert Experiment(tmp_path / "run").recipe == run.recipe


# ---------------------------------------------------------------- resumed


def broken(path):
    "Four films, of which one opens and cannot be decoded, and one cannot be opened."
    films(path, 4)
    names = sorted(path.glob("*.mp4"))
    raw = bytearray(names[1].read_bytes())
    at = raw.index(b"mdat")
    raw[at + 4 : at + 4 + len(raw) // 2] = bytes(len(raw) // 2)
    names[1].write_bytes(raw)
    names[2].write_text("no film")
    return path


@pytest.mark.parametrize("name", ["films", "broken", "tar", "parquet"])
def test_what_was_looked_at_is_not_decoded_again(tmp_path, vae, name, capsys, monkeypatch):
    "Stopped after its first batch, called again: what is missing is decoded, and the two ends."
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    source = str((broken if name == "broken" else SOURCES[name][0])(tmp_path / "data"))
    command = ["encode", source, "--autoencoder", vae, "--size", "32", "--batch-size", "1"]
    assert cli.main([*command, str(tmp_path / "whole")]) == 0
    encode = ImageVAE.encode
    calls = []

    def stop(self, x):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, x)

    with monkeypatch.context() as m:
        m.setattr(ImageVAE, "encode", stop)
        assert cli.main([*command, str(tmp_path / "c")]) == 130
    assert (tmp_path / "c.part/plan.json").exists()
    looked = []
    collect = unreadable.ReadableSubset._look
    monkeypatch.setattr(
        unreadable.ReadableSubset, "_look", lambda self, i: looked.append(i) or collect(self, i)
    )
    monkeypatch.setattr(
        FolderClips, "_keep", lambda self, clip: looked.append(clip.source), raising=True
    )
    assert cli.main([*command, str(tmp_path / "c")]) == 0
    assert looked == [], "nothing is decoded only to see whether it can be"
    assert content(tmp_path / "c") == content(tmp_path / "whole")


def test_other_clips_are_looked_at(tmp_path, vae, capsys):
    "Work that was begun with other files says nothing about these."
    source = films(tmp_path / "data")
    command = ["encode", str(source), str(tmp_path / "c"), "--autoencoder", vae, "--size", "32"]
    (tmp_path / "c.part").mkdir()
    (tmp_path / "c.part/plan.json").write_text('{"listing": "0123456789abcdef"}')
    (source / "new.mp4").write_text("no film")
    with pytest.warns(UserWarning, match="new.mp4"):
        assert cli.main(command) == 2
    assert "plan.json is damaged: it has no id" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="new.mp4"):
        assert cli.main([*command, "--overwrite"]) == 0
    assert len(LatentCache(tmp_path / "c")) == 3
