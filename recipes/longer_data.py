"""What longer.py trains the upsampler on: pairs of a clip at 128×128 pixels and the same at half
the size, of scenes and, if asked, of an avatar that signs, and held-out ones to measure on."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.data import Dataset

from minisora.clips import MOTIONS, SceneClips
from minisora.data.video import caption_from_path, read_video, to_float, to_uint8

FRAMES = 17
SIDE = 128  # pixels of what the upsampler makes at once
EVERY = 6  # every sixth word is held out


def interpolate(clips, side, antialias=False):
    "Clips (B, 3, T, H, W) in [-1, 1] at `side` × `side` pixels, bicubic."
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, (side, side), mode="bicubic", antialias=antialias)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(clips)).clamp(-1, 1)


def resize(clips, side):
    "Clips (B, 3, T, H, W) in [-1, 1] at `side` × `side` pixels, in 8 bits, as floats in [-1, 1]."
    return to_float(to_uint8(interpolate(clips, side, antialias=True)))


def square_origin(clip, side, generator):
    "Top and left, multiples of 16, of a square of a clip (3, T, H, W) around a place that moves."
    moving = (clip - clip.mean(1, keepdim=True)).abs().amax((0, 1)) > 0.2  # (H, W)
    places = moving.nonzero()
    if not len(places):
        places = torch.tensor([[n // 2 for n in moving.shape]])
    at = places[torch.randint(len(places), (1,), generator=generator)][0]
    return [
        min(max((int(p) - side // 2) // 16 * 16, 0), n - side) for p, n in zip(at, moving.shape)
    ]


def sign_files(folder, held_out):
    "The films of the words that are held out, or of the others; none where there is no folder."
    files = sorted((Path(folder) / "signs").glob("*.mp4"))
    return [file for i, file in enumerate(files) if (i % EVERY == EVERY - 1) == held_out]


class Tiles(Dataset):
    """Item i: clip (3, T, 128, 128) in [-1, 1], the same at 64 × 64, and its caption or None.

    A third are scenes at 128 pixels, a third squares of scenes at 256, the rest whole signs and
    squares of them: what the two stages of a cascade from 64 to 256 see."""

    def __init__(self, scenes, folder, seed=0, squares=2):
        options = dict(motions=MOTIONS, frames=FRAMES)
        self.middle = SceneClips(scenes, seed=seed + 7, size=SIDE, **options)
        self.large = SceneClips(scenes, seed=seed + 8, size=2 * SIDE, **options)
        self.signs = [
            (file, kind)
            for file in sign_files(folder, held_out=False)
            for kind in range(1 + squares)
        ]
        self.read = {}

    def __len__(self):
        return len(self.middle) + len(self.large) + len(self.signs)

    def clip(self, i):
        "The clip a tile is of, in [-1, 1], its caption, and whether the tile is a square of it."
        scenes = len(self.middle)
        if i < 2 * scenes:
            item = (self.middle, self.large)[i // scenes][i % scenes]
            return to_float(item.frames), item.caption, i >= scenes
        file, kind = self.signs[i - 2 * scenes]
        if file not in self.read:
            self.read = {file: read_video(file, FRAMES, 2 * SIDE).frames}
        return to_float(self.read[file]), None, kind > 0

    def __getitem__(self, i):
        clip, caption, is_square = self.clip(i)
        if not is_square:
            large = resize(clip[None], SIDE)[0] if clip.shape[-1] > SIDE else clip
            return large, resize(large[None], SIDE // 2)[0], caption
        small = resize(clip[None], clip.shape[-1] // 2)[0]
        top, left = square_origin(clip, SIDE, torch.Generator().manual_seed(i))
        large = clip[..., top : top + SIDE, left : left + SIDE]
        half = [slice(n // 2, (n + SIDE) // 2) for n in (top, left)]
        return large, small[..., half[0], half[1]], caption


def held_out_scenes(n, size=256, seed=5, frames=FRAMES):
    "n scenes of combinations that were not trained on: uint8 (n, 3, T, size, size), attributes."
    clips = SceneClips(n, "heldout", seed=seed, motions=MOTIONS, frames=frames, size=size)
    items = [clips[i] for i in range(n)]
    return torch.stack([item.frames for item in items]), items


def held_out_signs(folder, n, size=256):
    "The films of n held-out words: uint8 (n, 3, T, size, size), and the words."
    files = sign_files(folder, held_out=True)[:n]
    clips = [read_video(file, FRAMES, size).frames for file in files]
    return torch.stack(clips) if clips else None, [caption_from_path(file) for file in files]
