"""What `fit` made is saved, loaded in another process, and samples the same clips, bit for bit
(promise 7)."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from helpers.train import go, video

from minisora import train
from minisora.interpolants import Interpolant
from minisora.models.conditions import WordCondition
from minisora.models.layers import BlockConfig
from minisora.models.layouts import Factorized
from minisora.models.positions import RopePositions
from minisora.models.preconditioning import EDMOutput
from minisora.sampling import sample
from minisora.temporal import VideoDiT

LOAD = """
import sys
import torch
torch.set_num_threads(1)
from safetensors.torch import save_file
from minisora.interpolants import Interpolant
from minisora.sampling import sample
from minisora.temporal import VideoDiT
model = VideoDiT.from_pretrained(sys.argv[1])
y = torch.arange(4)[:, None]
x = sample(model, Interpolant(), y, steps=3, seed=5, guidance=2.)
save_file(dict(x=x), sys.argv[2])
"""


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(
            layout=Factorized(),
            positions=RopePositions(),
            block=BlockConfig(norm="rms", mlp="swiglu", qk_norm=True),
        ),
        dict(
            relative_bias=True,
            condition=WordCondition(5, in_context=True, init_std=0.5),
            output=EDMOutput(),
            width=24,
        ),
    ],
    ids=str,
)
def test_a_saved_model_samples_the_same_bits_in_another_process(tmp_path, change):
    model = video(**change)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a fresh one answers zero, whatever its weights
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    ema = go(None, net=model, steps=2, valid=None).ema
    want = sample(ema, Interpolant(), torch.arange(4)[:, None], steps=3, seed=5, guidance=2.0)
    assert want.std() > 0.1 and not want[0].equal(want[1])
    ema.save_pretrained(tmp_path / "model")
    root = str(Path(train.__file__).parents[1])
    subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "model", tmp_path / "x.safetensors"],
        cwd=root,
        check=True,
    )
    assert load_file(tmp_path / "x.safetensors")["x"].equal(want)
    assert not sample(
        VideoDiT(ema.config), Interpolant(), torch.arange(4)[:, None], steps=3, seed=5
    ).equal(want)
