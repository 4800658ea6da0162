"""What `fit` is given, what else runs in its folder, and what interrupts it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.train import (
    SMALL,
    awake,
    Data,
    Net,
    forked,
    go,
    interruptible,  # noqa: F401
    same,
    video,
    wait_until,
    weights,
)
from torch.utils.data import DataLoader, Subset, TensorDataset

from minisora.clips import SceneClips
from minisora.core.files import atomic_folder, remove_abandoned
from minisora.data.vocabulary import Vocabulary
from minisora.diffusion import GaussianDiffusion
from minisora.interpolants import Interpolant
from minisora.models.preconditioning import DataOutput, EDMOutput
from minisora.sampling import sample
from minisora.models.conditions import WordCondition
from minisora.temporal import VideoDiT
from minisora.train import Interrupted, fit, init_from
from minisora.training.checkpoint import latest_checkpoint, load_checkpoint

NAN = float("nan")
INF = float("inf")
X = torch.randn(9, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(9).remainder(5)[:, None]


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=0), "steps must be a whole number from 1, not 0"),
        (dict(steps=2.5), "steps must be a whole number from 1, not 2.5"),
        (dict(steps=True), "steps must be a whole number"),
        (dict(lr=NAN), "lr must be a number, 0 or more, not nan"),
        (dict(lr=INF), "lr must be a number, 0 or more, not inf"),
        (dict(lr=-1e-3), "lr must be"),
        (dict(lr="1e-3"), "lr must be a number, 0 or more, not '1e-3'"),
        (dict(lr=None), "lr must be"),
        (dict(lr=np.float32("nan")), "lr must be"),
        (dict(warmup=INF), "warmup must be"),
        (dict(weight_decay=NAN), "weight_decay must be"),
        (dict(clip=NAN), "clip must be"),
        (dict(betas=(0.9, 1.0)), "betas must be a number from 0"),
        (dict(betas=(0.9,)), "betas must be two numbers"),
        (dict(betas=0.9), "betas must be two numbers"),
        (dict(betas=(0.9, NAN)), "betas must be a number from 0"),
        (dict(ema=NAN), "ema must be a number from 0 to 1, not nan"),
        (dict(ema=1.0, ema_warmup=False), "ema must be below 1 without ema_warmup"),
        (dict(more_ema=(0.9, 1.5)), "more_ema must be"),
        (dict(batch_size=0), "batch_size must be a whole number from 1, not 0"),
        (dict(batch_size="8"), "batch_size must be"),
        (dict(accumulate=0), "accumulate must be"),
        (dict(seed=-1), "seed must be a whole number from 0, not -1"),
        (dict(seed=0.5), "seed must be a whole number from 0"),
        (dict(workers=-1), "workers must be a whole number from 0"),
        (dict(resume="no"), "resume must be True or False, not 'no'"),
        (dict(progress=None), "progress must be True or False"),
        (dict(on_sample="preview.png"), "on_sample must be a function"),
        (dict(out=3), "out must be a folder, not 3"),
        (dict(out=__file__), "out must be a folder; .* is a file"),
        (dict(device="gpu"), "device='gpu' cannot be used"),
        (dict(learning_rate=1e-3), "fit has no argument 'learning_rate'; it is called 'lr' here"),
        (dict(batchsize=4), "fit has no argument 'batchsize'; did you mean 'batch_size'"),
        (dict(max_grad_norm=1), "it is called 'clip' here"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        go(**dict(out=tmp_path / "run") | change)
    assert not (tmp_path / "run").exists()


def test_scalars_of_other_libraries_give_the_same_run(tmp_path):
    plain = go(tmp_path / "a", steps=7, lr=0.5**7, more_ema=(0.5,), valid=None)
    same_run = go(
        tmp_path / "b", steps=np.int64(7), lr=torch.tensor(0.5**7), more_ema=np.float64(0.5),
        batch_size=torch.tensor(8), seed=np.uint8(0), betas=np.array([0.9, 0.999]), valid=None,
    )  # fmt: skip
    assert torch.equal(weights(plain.model), weights(same_run.model))
    assert go(tmp_path / "a", steps=7, lr=np.float64(0.5**7), more_ema=[0.5], valid=None).step == 7


def test_a_warm_up_longer_than_the_run_is_said():
    with pytest.warns(UserWarning, match="warmup=50 is longer than steps=2"):
        go(None, steps=2, warmup=50, valid=None)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        [X, Y],
        (X.numpy(), Y.tolist()),
        dict(latents=X, condition=Y),
        [dict(latents=x, condition=y) for x, y in zip(X, Y)],
        [(x, y) for x, y in zip(X, Y)],
        [(x.numpy(), y.tolist()) for x, y in zip(X, Y)],
        Subset(TensorDataset(X, Y), range(9)),
        (X.half().double(), Y),
    ],
    ids=range(9),
)
def test_data_in_other_forms(data):
    exact = not (isinstance(data, tuple) and torch.is_tensor(data[0]))
    got = go(None, data, steps=3, valid=None)
    want = go(None, (X, Y), steps=3, valid=None)
    assert torch.allclose(weights(got.model), weights(want.model), atol=0 if exact else 1e-2)


class Iterable(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    "data, message",
    [
        (SceneClips(3, frames=4, size=32), "data holds clips .*write_cache"),
        ([SceneClips(3, frames=4, size=32)[0]], "data holds clips .*write_cache"),
        ((X.to(torch.uint8), Y), "latents must be floating point, not torch.uint8"),
        (Iterable(), "data must be a map-style dataset"),
        (DataLoader(TensorDataset(X, Y)), "data must be a map-style dataset .*not DataLoader"),
        ((x for x in X), "data must be a map-style dataset .*not generator"),
        ("latents.pt", "data must be a map-style dataset .*not str"),
        (TensorDataset, "data must be a map-style dataset .*not TensorDataset"),
        (None, "data must be a map-style dataset .*not NoneType"),
        ([], "data is empty"),
        ([dict(image=X[0])], "a sample needs 'latents', it has \\['image'\\]"),
        ([(X[0], Y[0]), (X[1], None)], "sample 1 has no condition"),
        ([X[0], X[1][:, :3], X[2]], "latents of sample 1 is .*BucketDataset"),
        ((X, Y[:5]), "9 latents but 5 conditions"),
        ([dict(latents=X[0], condition="a ball")] * 2, "condition holds text, .a ball."),
        ((torch.randn(9, 2, 4, 2, 2), Y), "data: latents have 2 channels, the model takes 1"),
        ((torch.randn(9, 1, 4, 3, 2), Y), r"x must be \(B, 1, 4, 2, 2\), not \(1, 1, 4, 3, 2\)"),
        ((X, Y + 2), "the condition of sample 4 is \\[6\\], the model knows ids 0 to 5"),
        ((X, Y - 1), "the condition of sample 0 is \\[-1\\]"),
        ((X, torch.cat([Y, Y], 1)), r"y must be \(1, 1\), not \(1, 2\)"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        fit(video(), data, Interpolant(), steps=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model, objective, message",
    [
        (lambda: None, Interpolant(), "model must be a torch.nn.Module, not None"),
        (lambda: Net, Interpolant(), "model must be a torch.nn.Module, not <class"),
        (lambda: video().half(), Interpolant(), "is torch.float16, and fit trains float32"),
        (lambda: video().bfloat16(), Interpolant(), "is torch.bfloat16, and fit trains float32"),
        (lambda: video().double(), Interpolant(), "is torch.float64, and fit trains float32"),
        (video, Interpolant, "objective must have sample_times and loss"),
        (video, "velocity", "objective must have .*not 'velocity'"),
        (lambda: video(output=DataOutput()), Interpolant(prediction="data"), "gives a velocity"),
        (lambda: video(output=EDMOutput()), Interpolant(prediction="noise"), "gives a velocity"),
        (lambda: video(output=EDMOutput()), Interpolant(path="vp"), "is for the linear path"),
        (video, GaussianDiffusion(variance="learned-range"), "learn_sigma=True"),
    ],
)
def test_model_and_objective(tmp_path, model, objective, message):
    with pytest.raises(ValueError, match=message):
        fit(model(), (X, Y), objective, steps=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- pairs


class Cache(Data):
    "Data that know their scale and words, as a `LatentCache` does."

    def __init__(self, mean=0.0, std=1.0, vocabulary=None, n=9):
        super().__init__(n)
        self.mean = torch.tensor(mean)
        self.std = torch.tensor(std)
        self.vocabulary = vocabulary


WORDS = Vocabulary(["ball", "left", "red", "ring"], 1)


@pytest.mark.parametrize(
    "valid, message",
    [
        (Cache(0.5, 2.01), "valid is normalized by mean .*normalize_as"),
        (Cache(0.51, 2.0), "valid is normalized by mean"),
        (Subset(Cache(0.5, 2.1), range(4)), "valid is normalized by mean"),
        (Cache([0.5, 0.6], 2.0), "valid is normalized by mean"),
        (Cache(0.5, 2.0, Vocabulary(["a", "b", "c", "d"], 1)), "valid has another vocabulary"),
        (torch.randn(3, 1, 4, 2, 2).to(torch.int8), "valid: latents must be floating point"),
    ],
)
def test_held_out_data_of_another_scale_or_vocabulary(tmp_path, valid, message):
    with pytest.raises(ValueError, match=message):
        go(tmp_path / "run", Cache(0.5, 2.0, WORDS), steps=2, valid=valid)
    assert not (tmp_path / "run").exists()


def test_another_vocabulary_than_the_model_has():
    with pytest.raises(ValueError, match="the vocabulary has 3 ids, the model 5"):
        go(None, Cache(vocabulary=Vocabulary(["a", "b"], 1)), video(), steps=2, valid=None)


def test_the_result_knows_what_it_was_trained_with(tmp_path):
    objective = Interpolant(prediction="data", shift=6.0)
    seen = []
    done = go(
        tmp_path, Cache(0.5, 2.0, WORDS), video(), steps=2, valid=None, objective=objective,
        on_sample=lambda step, ema: seen.append(ema.trained_with["objective"]),
    )  # fmt: skip
    assert (done.mean, done.std, done.vocabulary) == ([0.5], [2.0], WORDS)
    assert seen == [objective.to_dict()]
    reloaded = load_checkpoint(tmp_path).load_into(video())
    for model in (done.model, done.ema, reloaded):
        for other, message in (
            (
                Interpolant(shift=6.0),
                "trained with prediction='data', the objective has 'velocity'",
            ),
            (Interpolant("gvp", "data", shift=6.0), "trained with path='linear'"),
            (Interpolant(prediction="data", shift=3.0), "trained with shift=6.0"),
            (GaussianDiffusion(prediction="data"), "trained with 'interpolant'"),
        ):
            with pytest.raises(ValueError, match=message):
                sample(model, other, Y[:1], steps=1)
        weighted = Interpolant(prediction="data", shift=6.0, loss_weighting="velocity", std=2.0)
        sample(model, weighted, Y[:1], steps=1, shift=6.0)
        with pytest.warns(UserWarning, match="trained with shift=6"):
            sample(model, objective, Y[:1], steps=1)


# ---------------------------------------------------------------- two at once


def test_two_runs_in_one_folder(tmp_path):
    refused = []

    def second(step, ema):
        for out in (tmp_path / "run", str(tmp_path / "run") + "/"):
            with pytest.raises(BlockingIOError, match="another process is writing this run") as e:
                go(out, steps=9)
            refused.append(str(e.value))

    go(tmp_path / "run", steps=9, on_sample=second)
    assert len(refused) == 2 and all(str(tmp_path / "run") in text for text in refused)
    assert go(tmp_path / "run", steps=9).step == 9  # and it is free again


def test_the_folder_is_free_after_an_error_and_after_a_kill(tmp_path):
    with pytest.raises(ValueError, match="recipe.lr"):
        go(tmp_path / "run", steps=3, valid=None)
        go(tmp_path / "run", steps=3, lr=0.5, valid=None)
    child = forked(
        lambda: go(tmp_path / "run", Data(slow=0.02), steps=400, save_every=3, valid=None)
    )
    wait_until(lambda: (latest_checkpoint(tmp_path / "run") or tmp_path).name > "step-00000005")
    with pytest.raises(BlockingIOError):
        go(tmp_path / "run", steps=400, valid=None)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert go(tmp_path / "run", steps=8 + 20, stop_at=28, valid=None).step == 28


@pytest.mark.parametrize("name", [".model.part-{}", ".model.{}.part", ".step-00000009.{}.part"])
def test_leftovers_of_the_dead_are_removed_and_of_the_living_kept(tmp_path, name):
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    dead = int(dead.stdout)
    (tmp_path / name.format(dead)).mkdir()
    (tmp_path / name.format(dead) / "half").write_text("x")
    (tmp_path / name.format(os.getpid())).mkdir()
    (tmp_path / ".mine.part").mkdir()
    go(tmp_path, steps=2, valid=None)
    assert not (tmp_path / name.format(dead)).exists()
    assert (tmp_path / name.format(os.getpid())).exists() and (tmp_path / ".mine.part").exists()
    (tmp_path / f".model.part-{dead}").mkdir()
    (tmp_path / f".other.part-{dead}").mkdir()
    with atomic_folder(tmp_path / "model") as part:
        (part / "file").write_text("y")
    assert not (tmp_path / f".model.part-{dead}").exists()
    remove_abandoned(tmp_path)
    assert not (tmp_path / f".other.part-{dead}").exists()


# ---------------------------------------------------------------- interrupted


@pytest.mark.parametrize(
    "error", [RuntimeError("no font"), OSError(28, "full"), KeyboardInterrupt()]
)
def test_an_error_in_on_sample_comes_after_the_save(tmp_path, error):
    def fails(step, ema):
        if step == 14:
            raise error

    go(tmp_path / "straight")
    with pytest.raises(type(error)) as e:
        go(tmp_path / "run", sample_every=7, on_sample=fails, save_every=30)
    assert latest_checkpoint(tmp_path / "run").name == "step-00000014"
    assert "saved" in e.value.__notes__[0] and "step-00000014" in e.value.__notes__[0]
    go(tmp_path / "run")
    same(tmp_path / "straight", tmp_path / "run")


def test_an_error_in_the_data_comes_after_the_save(tmp_path):
    class Broken(Data):
        def __getitems__(self, index):
            if len(self.seen) > 17:
                raise OSError("cannot read sample 3")
            return super().__getitems__(index)

    go(tmp_path / "straight")
    with pytest.raises(OSError, match="sample 3"):
        go(tmp_path / "run", Broken(), save_every=30)
    assert latest_checkpoint(tmp_path / "run").name > "step-00000012"
    go(tmp_path / "run")
    same(tmp_path / "straight", tmp_path / "run")


def test_where_it_cannot_be_saved_the_error_says_so(tmp_path, monkeypatch):
    def fails(step, ema):
        monkeypatch.setattr("minisora.training.run_folder.save_checkpoint", full)
        raise RuntimeError("no font")

    def full(*args):
        raise OSError(28, "No space left on device", "x")

    with pytest.raises(RuntimeError, match="no font") as e:
        go(tmp_path, sample_every=7, on_sample=fails, save_every=30)
    assert "step 7 could not be saved" in e.value.__notes__[0]


def test_a_closed_terminal_saves_as_a_signal_does(tmp_path):
    def hang_up(step, ema):
        os.kill(os.getpid(), signal.SIGHUP)

    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted, match="SIGHUP at step 7 .*saved"):
            go(tmp_path, sample_every=7, on_sample=hang_up, save_every=30)
    finally:
        signal.signal(signal.SIGHUP, old)
    assert latest_checkpoint(tmp_path).name == "step-00000007"


def test_a_clock_that_goes_back_costs_no_time(tmp_path, monkeypatch):
    wall = iter(range(10**6, 0, -100))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    done = go(tmp_path, steps=20)
    times = [line["wall_seconds"] for line in done.log]
    assert times[0] >= 0 and times == sorted(times) and done.cpu_minutes >= 0
    assert all(line["samples_per_second"] > 0 for line in done.log)


def test_other_data_of_the_same_shape_under_a_checkpoint(tmp_path):
    go(tmp_path, (X, Y), steps=2, valid=None)
    for other in ((X + 0.01, Y), (X, (Y + 1) % 5), (X.flip(0) * 1.01, Y)):
        with pytest.raises(ValueError, match="trained on other data"):
            go(tmp_path, other, steps=4, valid=None)
    rounded = (X * (1 + 1e-7), Y)
    assert go(tmp_path, rounded, steps=4, valid=None).step == 4


@pytest.mark.parametrize(
    "other",
    [Cache(0.6, 2.0, WORDS), Cache(0.5, 2.1, WORDS), Cache(0.5, 2.0, Vocabulary("abcd", 1))],
)
def test_another_scale_or_vocabulary_under_a_checkpoint(tmp_path, other):
    go(tmp_path, Cache(0.5, 2.0, WORDS), video(), steps=2, valid=None)
    with pytest.raises(ValueError, match="trained on other data, of another"):
        go(tmp_path, other, video(), steps=4, valid=None)
    assert go(tmp_path, Cache(0.5, 2.0, WORDS), video(), steps=4, valid=None).step == 4


# ---------------------------------------------------------------- a new run from an old one


def spread(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(model, state):
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_new_run_begins_with_the_weights_of_an_old_one(tmp_path):
    old = go(tmp_path / "old", (X, Y), awake_small(), steps=4, valid=None, more_ema=(0.5,))
    old.ema.save_pretrained(tmp_path / "saved")
    ema, model, half = (spread(m) for m in (old.ema, old.model, old.emas[0.5]))
    for source in (
        tmp_path / "old", str(tmp_path / "old"), old.path, load_checkpoint(old.path), old, old.ema,
        ema, tmp_path / "saved",
    ):  # fmt: skip
        assert equal(init_from(awake_small(), source), ema)
    for source in (tmp_path / "old", old.path, load_checkpoint(old.path), old):
        assert equal(init_from(awake_small(), source, weights="model"), model)
        assert equal(init_from(awake_small(), source, weights=0.5), half)
        with pytest.raises(ValueError, match="weights"):
            init_from(awake_small(), source, weights=0.25)
    new = go(tmp_path / "new", (X, Y), init_from(awake_small(), old), steps=1, lr=0.0, valid=None)
    assert new.step == 1 and equal(new.model, ema)
    resumed = go(tmp_path / "new", (X, Y), awake_small(), steps=1, lr=0.0, valid=None)
    assert equal(resumed.model, ema)  # from its own checkpoint, whatever it is given


def awake_small():
    return awake(SMALL)


@pytest.mark.parametrize(
    "change, fresh, message",
    [
        (dict(width=24), (), "has shape"),
        (dict(depth=5), (), "missing key 'blocks.4"),
        (dict(depth=3), (), "unexpected key 'blocks.3"),
        (dict(condition=WordCondition(7)), (), "y_embedder.* has shape"),
        (dict(), "y_embeder.*", "has no tensor 'y_embeder"),
    ],
)
def test_what_does_not_fit_is_named(change, fresh, message):
    with pytest.raises(ValueError, match=message):
        init_from(video(**change), awake_small(), fresh=fresh)


def test_another_vocabulary_by_a_fresh_table():
    old = awake_small()
    new = video(condition=WordCondition(7))
    table = new.y_embedder.state_dict()
    init_from(new, old, fresh="y_embedder.*")
    assert all(torch.equal(v, table[k]) for k, v in new.y_embedder.state_dict().items())
    assert torch.equal(new.final_layer.linear.weight, old.final_layer.linear.weight)


@pytest.mark.parametrize("source", [3, None, lambda: 0])
def test_no_source(source):
    with pytest.raises(ValueError, match="source must be a folder"):
        init_from(video(), source)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run, a checkpoint, nor a saved model"):
        init_from(video(), tmp_path)


def test_a_saved_model_remembers_and_fine_tuning_with_another_objective_says_so(tmp_path):
    done = go(None, Cache(0.5, 2.0, WORDS), video(), steps=1, valid=None)
    done.ema.save_pretrained(tmp_path)
    loaded = VideoDiT.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained with prediction='velocity'"):
        sample(loaded, Interpolant(prediction="data"), Y[:1], steps=1)
    for data, objective, message in (
        (Cache(0.5, 2.0, WORDS), Interpolant(prediction="data"), "prediction='velocity'"),
        (Cache(0.7, 2.0, WORDS), Interpolant(), r"mean=\[0.5\]"),
    ):
        model = init_from(video(), tmp_path)
        with pytest.warns(UserWarning, match=f"{message}.*learn anew"):
            go(None, data, model, steps=1, valid=None, objective=objective)
    video().save_pretrained(tmp_path)  # without a note: the old one goes
    assert not hasattr(VideoDiT.from_pretrained(tmp_path), "trained_with")
