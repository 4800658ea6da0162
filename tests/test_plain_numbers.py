"""Numbers of NumPy and torch, switches as texts, and conditions of any width: what is unambiguous
is taken, the rest is refused by name."""

import json

import numpy as np
import pytest
import torch
from helpers.autoencoder import inner_vae
from helpers.pipeline import video_config

from minisora.core.protocols import Clip
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, write_cache
from minisora.models.conditions import WordCondition
from minisora.sampling import sample
from minisora.temporal import VideoDiT
from minisora.train import fit
from minisora.training.init_from import init_from


def clips(n, caption="a ball"):
    generator = torch.Generator().manual_seed(n)
    shape = (3, 9, 32, 32)
    return [
        Clip(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), caption)
        for _ in range(n)
    ]


@pytest.mark.parametrize("name", ["overwrite", "moments", "flips", "per_channel"])
@pytest.mark.parametrize("value", ["no", "False", 0, None])
def test_a_switch_of_write_cache_that_is_none_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} must be True or False"):
        write_cache(tmp_path / "c", clips(1), inner_vae(), progress=False, **{name: value})
    assert not list(tmp_path.iterdir())


def test_the_counts_of_write_cache(tmp_path):
    ae = inner_vae()
    assert len(write_cache(tmp_path / "c", clips(3), ae, progress=False, limit=np.int64(2))) == 2
    for wrong in (dict(limit=-1), dict(limit=1.5), dict(sample_seed=-1), dict(samples="3")):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number"):
            write_cache(tmp_path / "d", clips(3), ae, progress=False, **wrong)
    assert len(LatentCache(tmp_path / "c")) == 2


@pytest.mark.parametrize("caption", [None, 3, ["a", "b"], float("nan")])
def test_a_caption_that_is_no_text_is_not_cached(tmp_path, caption):
    with pytest.raises(ValueError, match="caption must be a text"):
        write_cache(tmp_path / "c", clips(1, caption), inner_vae(), progress=False)


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), torch.tensor(2.0), 2])
def test_numbers_of_an_objective(number):
    objective = Interpolant(shift=number)
    assert objective == Interpolant(shift=2.0)
    assert json.loads(json.dumps(objective.to_dict()))["shift"] == 2


WORDS = dict(condition=WordCondition(5, 2))


def model(**changes):
    return VideoDiT(video_config(**changes))


def latents(config):
    shape = (6, config.channels, *config.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_ids_of_any_width(dtype):
    net = model(**WORDS)
    ids = torch.tensor([[1, 2]] * 6).to(dtype)
    data = (latents(net.config), ids)
    assert fit(net, data, Interpolant(), steps=1, batch_size=2, progress=False).step == 1
    assert sample(net, Interpolant(), condition=ids[:1], steps=1).isfinite().all()


def test_betas_may_be_whole_numbers():
    net = model()
    data = latents(net.config)
    options = dict(steps=2, batch_size=2, progress=False)
    whole = fit(net, data, Interpolant(), betas=(0, 0.99), **options)
    floats = fit(model(), data, Interpolant(), betas=(0.0, 0.99), **options)
    assert whole.log[-1]["loss"] == floats.log[-1]["loss"]


def test_held_out_data_without_the_condition_are_refused(tmp_path):
    net = model(**WORDS)
    x = latents(net.config)
    ids = torch.tensor([[1, 2]] * 6)
    with pytest.raises(ValueError, match="valid: no condition"):
        fit(net, (x, ids), Interpolant(), steps=1, valid=x, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_begins_from_a_file_of_weights(tmp_path):
    state = model().state_dict()
    torch.save({"model": state}, tmp_path / "a.pt")
    for source in (tmp_path / "a.pt", {"state_dict": state}):
        begun = init_from(VideoDiT(video_config(), seed=5), source)
        assert all(torch.equal(v, state[k]) for k, v in begun.state_dict().items())


def test_an_objective_of_one_s_own_is_not_called_another():
    class Mine(Interpolant):
        pass

    net = model()
    data = latents(net.config)
    trained = fit(net, data, Mine(), steps=1, batch_size=2, progress=False)
    for objective in (Mine(), Interpolant()):
        assert sample(trained.ema, objective, n=1, steps=1).isfinite().all()
