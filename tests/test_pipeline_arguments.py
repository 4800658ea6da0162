"""What people give a pipeline: what is unambiguous is taken, the rest refused by name before
anything is sampled."""

import numpy as np
import pytest
import torch
from helpers.pipeline import picturing_pipeline, speaking_parts, speaking_pipeline

from minisora.pipeline import VideoPipeline


@pytest.fixture(scope="module")
def pipe():
    return speaking_pipeline()


NAN = float("nan")
CALLS = [
    dict(prompt=[]),
    dict(prompt=3),
    dict(prompt=b"hello"),
    dict(prompt=[None]),
    dict(prompt=[["hello"]]),
    dict(prompt=""),
    dict(prompt="hello", num_videos_per_prompt=0),
    dict(prompt="hello", num_videos_per_prompt=-1),
    dict(prompt="hello", num_videos_per_prompt=True),
    dict(prompt="hello", num_videos_per_prompt="2"),
    dict(prompt="hello", seed=-1),
    dict(prompt="hello", seed="0"),
    dict(prompt="hello", seed=1.0),
    dict(prompt="hello", batch_size=0),
    dict(prompt="hello", num_inference_steps=0),
    dict(prompt="hello", num_inference_steps="4"),
    dict(prompt="hello", num_inference_steps=2.5),
    dict(prompt="hello", guidance_scale="2"),
    dict(prompt="hello", guidance_scale=NAN),
    dict(prompt="hello", guidance_scale=[2]),
    dict(prompt="hello", index=3),
    dict(prompt="hello", index=[-1]),
    dict(prompt="hello", index=[0, 1]),
    dict(prompt="hello", index=["a"]),
    dict(prompt="hello", generator=3),
    dict(prompt="hello", output_type=3),
    dict(prompt="hello", frames="x"),
    dict(prompt="hello", frames=torch.zeros(3, 1, 8, 8)),
    dict(prompt="hello", frames=torch.full((3, 1, 32, 64), NAN)),
    dict(prompt="hello", renoise_times=-1),
]


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_a_wrong_call_is_refused_in_one_line(pipe, options):
    with pytest.raises(ValueError) as info:
        pipe(**options)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("prompts", [[], (), None, 3, b"hello", [None], [1], {}])
def test_a_wrong_film_is_refused(pipe, prompts):
    with pytest.raises(ValueError, match="prompt must be a text or a list of texts"):
        pipe.film(prompts)


@pytest.mark.parametrize("overlap", [0, -1, 99, "1", True, 1.5])
def test_a_wrong_overlap_is_refused(pipe, overlap):
    with pytest.raises(ValueError, match="overlap must be a whole number"):
        pipe.film(["hello"], overlap=overlap)


PARTS = [
    dict(fps=0),
    dict(fps="8"),
    dict(fps=NAN),
    dict(mean="x"),
    dict(std=0),
    dict(std=[1, 2]),
    dict(sampling=3),
    dict(vocabulary=3),
    dict(objective=None),
    dict(autoencoder=None),
    dict(autoencoder=torch.nn.Linear(1, 1)),
    dict(model=None),
    dict(model=torch.nn.Linear(1, 1)),
]


@pytest.mark.parametrize("change", PARTS, ids=str)
def test_wrong_parts_are_refused(change):
    with pytest.raises(ValueError) as info:
        VideoPipeline(**speaking_parts() | change)
    assert "\n" not in str(info.value)


def test_what_is_unambiguous_is_taken(pipe):
    same = pipe(["hello", "rest"], seed=3, num_inference_steps=2).frames
    for prompt in (("hello", "rest"), np.array(["hello", "rest"]), (p for p in ["hello", "rest"])):
        made = pipe(
            prompt, seed=np.int64(3), num_inference_steps=np.int32(2), batch_size=np.int8(8)
        )
        assert torch.equal(made.frames, same)
    again = pipe("rest", seed=3, num_inference_steps=2, index=np.array([1])).frames
    torch.testing.assert_close(again[0], same[1], atol=1e-4, rtol=1e-4)
    assert pipe.film("hello").frames.shape == pipe.film(["hello"]).frames.shape


@pytest.mark.parametrize("name", ["half", "bfloat16", "double"])
def test_weights_of_16_and_64_bits(name):
    speaking, picturing = speaking_pipeline(), picturing_pipeline()
    before = speaking("hello", seed=1).frames
    for pipe in (speaking, picturing):
        getattr(pipe.model, name)()
        getattr(pipe.autoencoder, name)()
    made = speaking("hello", seed=1).frames
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, before, atol=1e-4 if name == "double" else 0.2, rtol=0)
    assert speaking.film(["hello", "rest"]).frames.isfinite().all()
    assert picturing("hello", seed=1).frames.dtype == torch.float32
