"""What version 0.1 called otherwise in training works for this release, and warns."""

import warnings

import pytest
import torch

from minisora import train
from minisora.core.renames import OLD_NAMES
from minisora.training.batches import BucketBatchOrder, BucketDataset
from minisora.training.checkpoint import load_checkpoint, save_checkpoint

NAMES_0_1 = """
RECIPE LATER ISLANDS permutation batch_indices batches BucketOrder Buckets learning_rate ema_decay
EMA choose_ema validate CheckpointError write_checkpoint latest_checkpoint Checkpoint
load_checkpoint describe Interrupted NonFiniteLoss OutOfMemory leave Trained spread fit Estimate
estimate on_track overlay as_mmengine
""".split()


@pytest.mark.parametrize("name", NAMES_0_1)
def test_every_name_of_version_0_1_is_there(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert getattr(train, name) is not None


@pytest.mark.parametrize("name", OLD_NAMES["minisora.train"])
def test_a_renamed_one_says_where_it_is(name):
    if name in vars(train):
        return  # the lesson uses it as well
    home, _, new = OLD_NAMES["minisora.train"][name].partition(":")
    with pytest.warns(DeprecationWarning, match=rf"minisora.train.{name} is now {home}.{new}"):
        getattr(train, name)


def test_renamed_attributes(tmp_path):
    order = BucketBatchOrder(["a", "b", "a"], 1)
    data = BucketDataset(dict(a=torch.zeros(2, 1, 1, 1, 1), b=torch.zeros(1, 1, 1, 1, 2)))
    save_checkpoint(tmp_path / "c", dict(ema=torch.nn.Linear(1, 1).state_dict()), dict(step=3))
    checkpoint = load_checkpoint(tmp_path / "c")
    with pytest.warns(DeprecationWarning) as said:
        assert order.place(1) == order.locate(1) and order.rate == 3 and order.made("a", 1) == 2
        assert data.parts is data.datasets and data.first == dict(a=0, b=2)
        checkpoint.into(torch.nn.Linear(1, 1))
    assert len(said) == 6
