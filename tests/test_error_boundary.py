"""One boundary for all errors: whatever a file holds, one line that names it, and status 2."""

import json
import os
import shutil
import signal
import warnings

import pytest

from minisora import cli
from minisora.clips import SceneClips
from minisora.core.boundary import Stopped, guarded, plain_output
from minisora.core.errors import naming, one_line, printable
from minisora.core.provenance import MadeFrom
from minisora.data.video import write_video
from minisora.experiment import Experiment, make_video
from minisora.pipeline import VideoPipeline
from minisora.recipe import read_captions, read_recipe, read_statistics

TINY = dict(
    size=32,
    frames=4,
    ae_steps=2,
    steps=1,
    width=48,
    depth=1,
    heads=3,
    eval_clips=2,
    num_inference_steps=1,
    channels=4,
    smooth=8,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("boundary")
    (root / "data").mkdir()
    for i, word in enumerate(("yes", "no")):
        write_video(root / "data" / f"{word}.mp4", SceneClips(2, size=32, frames=4)[i].frames)
    make_video(root / "run", "yes", str(root / "data"), progress=False, **TINY)
    return root / "run"


def types(value):
    "The same shape of JSON, with every value of another type."
    if isinstance(value, dict):
        return {name: types(part) for name, part in value.items()}
    if isinstance(value, list):
        return dict(x=1)
    return [value] if isinstance(value, str) else str(value)


DAMAGE = dict(
    empty=lambda data: b"",
    cut=lambda data: data[: len(data) // 2],
    array=lambda data: b"[]",
    object=lambda data: b"{}",
    null=lambda data: b"null",
    latin=lambda data: b'{"a": "\xff\xfe"}',
    zeros=lambda data: bytes(len(data)),
    deep=lambda data: b"[" * 200_000,
    types=lambda data: json.dumps(types(json.loads(data))).encode(),
)
SAMPLED = ["recipe.json", "captions.json", "model/latents.json", "model/config.json"]
MEASURED = ["metrics.json"]


def damaged(run, name, damage):
    "A context in which a file of the run is damaged."
    file = run / name
    data = file.read_bytes()
    file.write_bytes(DAMAGE[damage](data))
    return file, data


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", SAMPLED)
def test_a_damaged_file_is_named_in_one_line(run, name, damage, capsys):
    file, data = damaged(run, name, damage)
    try:
        call = ["sample", "--out", str(run), "--prompt", "yes"]
        assert cli.main(call) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("model" in error or str(file) in error), error
        assert "Error:" not in error.split(str(file))[0]
        with pytest.raises((ValueError, FileNotFoundError)):
            VideoPipeline.from_pretrained(run)
    finally:
        file.write_bytes(data)


@pytest.mark.parametrize("damage", ["empty", "cut", "array", "null", "latin", "zeros", "deep"])
@pytest.mark.parametrize("name", ["metrics.json", "made_from.json"])
def test_a_damaged_report_says_what_to_do(run, name, damage, capsys):
    file, data = damaged(run, name, damage)
    try:
        assert cli.main(["video", "--out", str(run), "--prompt", "yes"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert str(file) in error and "remove it" in error
    finally:
        file.write_bytes(data)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"x": 3}', '{"x": {"cpu": "a"}}', "\0"])
def test_bad_times_stop_nothing(run, text):
    file = run / "times.json"
    data = file.read_bytes()
    file.write_text(text)
    try:
        with pytest.warns(UserWarning, match="times.json.*set aside"):
            assert Experiment(run, progress=False).times() == {}
        assert not file.exists() and (run / "times.json.bad").read_text() == text
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert Experiment(run, progress=False).times() == {}
    finally:
        file.write_bytes(data)


@pytest.mark.parametrize("text", ["[]", '[1, "a"]', '[""]', '{"a": 1}', '["a", null]'])
def test_captions_are_texts(tmp_path, text):
    (tmp_path / "captions.json").write_text(text)
    with pytest.raises(ValueError, match="captions.json: (must hold captions|holds no JSON array)"):
        read_captions(tmp_path / "captions.json")


@pytest.mark.parametrize(
    "values, field",
    [
        (dict(std=[1.0]), "mean"),
        (dict(mean=[0.0], std=["a"]), "std"),
        (dict(mean=[], std=[1.0]), "mean"),
        (dict(mean=[float("nan")], std=[1.0]), "mean"),
        (dict(mean=[0.0], std=[1.0], fps=0), "fps"),
        (dict(mean=[0.0], std=[1.0], fps="8"), "fps"),
    ],
)
def test_statistics_are_numbers(tmp_path, values, field):
    (tmp_path / "latents.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"latents.json: {field} must be"):
        read_statistics(tmp_path / "latents.json")
    old = dict(mean=[0.0], std=[1.0])
    (tmp_path / "latents.json").write_text(json.dumps(old))
    assert read_statistics(tmp_path / "latents.json") == dict(old, fps=8.0)


def test_a_recipe_has_fields(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="recipe.json: has no fields"):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    "text", ['{"stages": []}', '{"stages": {"a": 3}}', '{"stages": {"a": {"data": [1]}}}']
)
def test_notes_of_another_form_are_named(tmp_path, text):
    (tmp_path / "made_from.json").write_text(text)
    with pytest.raises(ValueError, match="made_from.json.*remove it"):
        MadeFrom(tmp_path).read()


# ------------------------------------------------- the boundary itself

HOSTILE = "a\x1b[2J\x07b\r\x9bc\u202ed\udcff\x00\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(HOSTILE),
        OSError(28, "No space left on device", HOSTILE),
        KeyError(HOSTILE),
        RuntimeError(HOSTILE),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        AttributeError("'list' object has no attribute 'get'"),
        ZeroDivisionError(),
        EOFError(),
        AssertionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_any_error_is_one_line(error, capsys):
    def run():
        raise error

    assert guarded(run, "minisora") == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown[:-1].isprintable() and len(shown) > len("minisora: \n")
    assert guarded(run, "minisora", debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


def test_stops_have_their_status(capsys):
    def stop(error):
        def run():
            raise error

        return run

    for error, status in (
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGTERM), 143),
        (KeyboardInterrupt("SIGTERM at step 3 of 9; saved x"), 143),
        (KeyboardInterrupt("SIGINT at step 3 of 9; saved x"), 130),
    ):
        assert guarded(stop(error), "minisora") == status
        assert capsys.readouterr().err.startswith("\nminisora: ")
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: os.kill(os.getpid(), signal.SIGTERM), "minisora") == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_warnings_are_one_line():
    before = warnings.formatwarning
    with plain_output():
        shown = warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "x.py", 3)
    assert shown.startswith("warning: a") and shown.count("\n") == 1 and shown[:-1].isprintable()
    assert warnings.formatwarning is before


def test_what_can_be_shown_is_shown():
    for text in ("véhicule", "车.mp4", "a b", "🎈", "हिन्दी"):
        assert printable(text) == text
    assert printable("a\tb") == "a\\tb" and printable("\x1b") == "\\x1b"
    assert one_line(ValueError("a\nb\x1b")) == "a b\\x1b"
    assert one_line(FileNotFoundError("runs: no run is there")) == "runs: no run is there"


@pytest.mark.parametrize("error", [KeyError("depth"), TypeError("x"), IndexError("y")])
def test_errors_in_a_file_name_it(error):
    with pytest.raises(ValueError, match=f"^config.json: {type(error).__name__}.*; mend it$"):
        with naming("config.json", "mend it"):
            raise error
    with pytest.raises(FileNotFoundError), naming("config.json"):
        raise FileNotFoundError("y")


def test_names_of_files_are_printed_safely(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write_video(data / "a ball.mp4", SceneClips(1, size=32, frames=4)[0].frames)
    (data / "bad\x1b]0;title\x07.mp4").write_bytes(b"no video")
    call = ["clips", "--out", str(tmp_path / "run"), "--data", str(data), "--set", "size=32"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(call) == 0
    assert "\x1b" not in (shown := capsys.readouterr().out) and "refused bad\\x1b]0" in shown


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert cli.main(["clips", "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    finally:
        tmp_path.chmod(0o700)


def test_encode_asks_the_autoencoder_first(tmp_path, capsys, monkeypatch):
    "Before all clips are looked at; and of --samples 2 only two are read."
    from minisora.autoencoder import ImageVAE
    from minisora.data import folders
    from minisora.latent_cache import LatentCache

    data = tmp_path / "data"
    data.mkdir()
    for i in range(5):
        write_video(data / f"clip {i}.mp4", SceneClips(5, size=32, frames=4)[i].frames)
    ImageVAE().save_pretrained(tmp_path / "vae")
    read, real = [], folders.FolderClips._read
    monkeypatch.setattr(
        folders.FolderClips, "_read", lambda self, row, *a: read.append(row) or real(self, row, *a)
    )
    call = ["encode", str(data), str(tmp_path / "c"), "--autoencoder", str(tmp_path / "vae")]
    assert cli.main([*call, "--size", "20", "--frames", "4"]) == 2
    assert "multiples of 8" in capsys.readouterr().err and len(read) <= 2
    read.clear()
    assert cli.main([*call, "--size", "32", "--frames", "4", "--samples", "2"]) == 0
    assert len(LatentCache(tmp_path / "c")) == 2
    assert {row["file"] for row in read} == {"clip 0.mp4", "clip 1.mp4"}
    for wrong in (["--samples", "0"], ["--size", "-8"], ["--fps", "nan"], ["--batch-size", "0"]):
        with pytest.raises(SystemExit):
            cli.main([*call, *wrong])
    shutil.rmtree(data)
