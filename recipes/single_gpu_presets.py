"""How large the trainings of single_gpu.py are: one row per part and machine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    "One row per machine; the parts read what they need."

    minutes: float = 4.0  # of training; of each of the two recipes for scenes
    steps: int = 0  # 0: as many as the minutes allow, by `estimate_cost`
    batch: int = 16
    lr: float = 1.5e-3
    width: int = 224
    depth: int = 8
    heads: int = 4
    bias: bool = False  # relative bias: learns faster in short runs, bars the fast attention
    size: tuple = (480, 864)
    frames: int = 33
    sample_steps: int = 24
    fold: int = 4  # signs: latents per side that the second stage makes one
    channels: int = 128  # signs: numbers it leaves
    refine: int = 256  # signs: width of the network that mends what a PCA cannot see
    refine_steps: int = 3000
    again: float = 0.5  # signs: share of the steps once more, above all on continuing
    patch: tuple = (1, 1, 1)
    words: tuple = ()  # signs: the words to train on; none named: all that are not held out
    held_out: tuple = ("beautiful", "home", "sing", "world", "thank you")
    sentences: tuple = (("hello", "you", "learn"), ("thank", "you"))
    clips: int = 6000  # scenes: rendered for training
    judge_steps: int = 600
    judged: int = 216  # scenes: held-out prompts that a judge reads
    looks: int = 6  # scenes: how often during training


TWELVE_WORDS = (
    "hello",
    "you",
    "learn",
    "thank",
    "good",
    "eat",
    "happy",
    "me",
    "see",
    "sign",
    "help",
    "work",
)
SMALL = dict(
    width=192,
    depth=6,
    heads=6,
    bias=True,
    fold=12,
    channels=192,
    batch=4,
    lr=4e-3,
    sample_steps=8,
    words=TWELVE_WORDS,
    held_out=("world", "thank you"),
    sentences=(("hello", "you", "learn"), ("me", "happy")),
)
SCENES = dict(size=(64, 64), frames=17, patch=(1, 2, 2), depth=6, heads=6, bias=True)
TINY = dict(
    steps=6,
    refine=16,
    refine_steps=4,
    judge_steps=3,
    clips=24,
    judged=6,
    looks=2,
    width=48,
    depth=2,
    heads=4,
    batch=4,
    sample_steps=2,
)
TINY_SIGNS = SMALL | TINY
TINY_SIGNS |= dict(
    size=(64, 128),
    frames=17,
    words=("hello", "eat"),
    held_out=("world",),
    sentences=(("hello", "eat"),),
    fold=4,
    channels=16,
)
PRESETS = {
    "signs": {
        "gpu": Preset(),
        "cpu": Preset(**SMALL, steps=3000),
        "smoke": Preset(**TINY_SIGNS),
    },
    "scenes": {
        "gpu": Preset(**SCENES, minutes=3, batch=64, lr=3e-3, width=192),
        "cpu": Preset(**SCENES, steps=20000, batch=8, lr=4.5e-3, width=144, judged=108),
        "smoke": Preset(**SCENES | TINY),
    },
    "plan": {"gpu": Preset()},
}
