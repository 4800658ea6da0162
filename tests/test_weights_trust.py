"""Weights as other tools save them: nested prefixes, counters beside them, arrays of NumPy."""

import pickle

import numpy as np
import pytest
import torch

from minisora.core.hub import load_strict
from minisora.core.tensors import load_tensors
from minisora.dit import DiT, DiTConfig
from minisora.training.init_from import init_from


def model(seed=0):
    torch.manual_seed(seed)
    made = DiT(DiTConfig(size=(4, 4), width=24, depth=1, heads=2, num_classes=3))
    for p in made.parameters():
        torch.nn.init.normal_(p)
    return made


@pytest.fixture(scope="module")
def state():
    return model().state_dict()


PREFIXES = [
    "module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "model._orig_mod.",
    "model.module.",
    "module.model.",
    "net.model.",
    "model.net._orig_mod.",
    "module._fsdp_wrapped_module._orig_mod.",
    "ema.module.",
    "model.model.",
]


def as_saved(state):
    "{how: what is saved}"
    averaged = torch.optim.swa_utils.AveragedModel(model()).state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    return {p: {p + k: v for k, v in state.items()} for p in PREFIXES} | {
        "averaged": averaged,
        "compiled and averaged": {f"_orig_mod.{k}": v for k, v in averaged.items()},
        "averaged beside": dict(ema=averaged, model=model(1).state_dict()),
        "arrays": arrays,
        "arrays inside": dict(state_dict=arrays, epoch=3),
        "arrays averaged": {k: v.numpy() for k, v in averaged.items()},
    }


@pytest.mark.parametrize("how", as_saved(model().state_dict()))
def test_weights_as_others_save_them(state, how, tmp_path):
    saved = as_saved(state)[how]
    torch.save(saved, tmp_path / "x.pt")
    ways = [lambda m: load_strict(m, load_tensors(tmp_path / "x.pt"))]
    ways += [lambda m: init_from(m, tmp_path / "x.pt"), lambda m: init_from(m, saved)]
    for load in ways:
        loaded = model(2)
        load(loaded)
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_a_name_that_is_the_models_own_is_kept(state):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n_averaged", torch.zeros(()))

    assert load_strict(Counts(), dict(n_averaged=torch.ones(()))).n_averaged == 1
    with pytest.raises(ValueError, match="missing key 'n_averaged'"):
        load_strict(Counts(), {})


def test_what_is_no_number_is_refused(state, tmp_path):
    wrong = dict(state) | {"pos_embed": np.array(["a"])}
    with pytest.raises(ValueError, match="pos_embed"):
        load_strict(model(), wrong)
    torch.save(dict(a=np.array([print], dtype=object)), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="nothing is unpickled here"):
        load_tensors(tmp_path / "x.pt")


class Boom:
    def __reduce__(self):
        return (eval, ("open('/tmp/never-made', 'w')",))


def test_arrays_open_no_door(tmp_path):
    "Allowing arrays of numbers allows nothing else: no file is made by reading one."
    for thing in (dict(a=Boom()), dict(a=np.array([Boom()], dtype=object))):
        torch.save(thing, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="nothing is unpickled here"):
            load_tensors(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps(dict(a=Boom())))
    with pytest.raises(ValueError):
        load_tensors(tmp_path / "y.pt")
