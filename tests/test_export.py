"""Pipelines as ONNX: what ONNX Runtime makes of the files is what PyTorch makes of the pipeline."""

import importlib.util
import json

import pytest
import torch
from conftest import ROOT

from minisora import export
from minisora.autoencoder import ImageVAE
from minisora.cli import main
from minisora.export import export_onnx
from minisora.core.protocols import model_latent_shape
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.pipeline import VideoPipeline
from minisora.temporal import VideoDiT, VideoDiTConfig

installed = all(importlib.util.find_spec(name) for name in (*export.NEEDED, "onnxruntime"))
needs_onnx = pytest.mark.skipif(not installed, reason="needs minisora[export]")


def small_pipeline():
    "A model with random weights, which half precision does not hold, and no words."
    config = VideoDiTConfig(size=(4, 4, 4), channels=4, patch=(2, 2, 2), width=24, depth=1, heads=2)
    model = VideoDiT(config, seed=1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    autoencoder = ImageVAE(channels=4, enc_width=0)
    return VideoPipeline(model, autoencoder, objective=Interpolant(), mean=0.3, std=2.0)


def run(file, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    (out,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(out)


def check_files(pipe, folder, words=None):
    "Both files against the pipeline, on noisy latents at several times."
    shape = model_latent_shape(pipe.model)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    more = {} if words is None else dict(words=words)
    for t in (0.001, 0.3, 0.999):
        time = torch.tensor([t])
        with torch.no_grad():
            want = pipe.model(latents, time, words)
        got = run(folder / "model.onnx", latents=latents, time=time, **more)
        assert (got - want).abs().max() < 1e-4
    got = run(folder / "decoder.onnx", latents=latents)
    assert (got - pipe.decode(latents)).abs().max() < 1e-4


@needs_onnx
def test_the_first_video_is_the_same_and_small(tmp_path):
    pipe = VideoPipeline.from_pretrained(ROOT / "data" / "first-video")
    sizes = export_onnx(pipe, tmp_path)
    assert sum(sizes.values()) < 6.5e6
    assert sizes == {name: (tmp_path / name).stat().st_size for name in sizes}
    check_files(pipe, tmp_path, pipe.word_ids(["a green star shrinks"]))
    check_files(pipe, tmp_path, torch.full((1, 3), pipe.model.null_id))


@needs_onnx
def test_weights_that_half_precision_does_not_hold_stay_as_they_are(tmp_path):
    pipe = small_pipeline()
    pipe.model.train()
    export_onnx(pipe, tmp_path)
    assert pipe.model.training
    pipe.model.eval()
    check_files(pipe, tmp_path)
    about = json.loads((tmp_path / "export.json").read_text())
    assert about["vocabulary"] is None and about["clip_shape"] == [3, 4, 32, 32]


@needs_onnx
def test_the_command_writes_the_files(tmp_path, capsys):
    small_pipeline().save_pretrained(tmp_path / "pipe")
    assert main(["export", str(tmp_path / "pipe"), str(tmp_path / "out")]) == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "decoder.onnx", "export.json"}
    assert "model.onnx" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(ImportError, match="that_is_not_there not installed; pip install"):
        export_onnx(small_pipeline(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_continues_frames_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "NEEDED", ())
    pipe = VideoPipeline.from_pretrained(ROOT / "data" / "avatar")
    with pytest.raises(ValueError, match="continues frames"):
        export_onnx(pipe, tmp_path / "out")


def test_what_a_sampler_has_to_know():
    condition = WordCondition(vocab=19, slots=3)
    pipe = VideoPipeline.from_pretrained(ROOT / "data" / "first-video")
    about = json.loads(json.dumps(export.describe(pipe)))
    assert about["null_id"] == condition.null_id == len(about["vocabulary"]["words"]) + 1
    assert about["time_range"] == list(pipe.objective.time_range)
    assert about["sampling"] == pipe.sampling and about["fps"] == pipe.fps
