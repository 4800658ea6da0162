"""The smallest run that goes through all stages, for the tests of runs and of their commands."""

SMALLEST = dict(
    clips=12,
    ae_steps=2,
    steps=2,
    width=48,
    depth=1,
    heads=3,
    judge_steps=2,
    eval_clips=2,
    num_inference_steps=2,
    channels=4,
    smooth=8,
)
