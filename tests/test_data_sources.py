"""What every source of clips does in the same way."""

import numpy as np
import pytest
import torch
from helpers.clips import red_ramp, write_tar

from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips, StreamClips
from minisora.data.named import open_named_dataset
from minisora.data.tars import TarClips
from minisora.data.video import read_video, write_video


@pytest.fixture
def made(tmp_path, datasets):
    """The same three pictures as a folder, a tar, rows, a stream and ImageNet: {name:
    make(**options)}."""
    home = tmp_path / "pics"
    (home / "train/n01440764").mkdir(parents=True)
    for k in range(3):
        red_ramp().save(home / f"train/n01440764/{k}.JPEG", quality=95)
    files = sorted(home.rglob("*.JPEG"))
    raw = [f.read_bytes() for f in files]
    tar = write_tar(
        tmp_path / "p.tar",
        {f"{k}{e}": d for k, b in enumerate(raw) for e, d in ((".jpg", b), (".txt", b"x"))},
    )
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(image=dict(bytes=b, path=None), text="x") for b in raw], features=kinds
    )
    return dict(
        folder=lambda **o: FolderClips(home, 16, **o),
        tar=lambda **o: TarClips(tar, 16, **o),
        rows=lambda **o: HubClips(rows, size=16, **o),
        stream=lambda **o: StreamClips(rows.to_iterable_dataset(), size=16, **o),
        imagenet=lambda **o: open_named_dataset("imagenet-1k", home, size=16, **o),
    )


def test_every_source_crops_in_the_same_way(made):
    for options in (dict(), dict(crop=(0, 1)), dict(crop="random", seed=3)):
        found = {name: [c.frames for c in make(**options)] for name, make in made.items()}
        for name, frames in found.items():
            assert torch.equal(torch.stack(frames), torch.stack(found["folder"])), name
    assert len({int(f[0].float().mean()) for f in found["folder"]}) > 1  # random: not all alike
    for name, make in made.items():
        data = make(crop="random", seed=3)
        data.set_epoch(1)
        assert not torch.equal(torch.stack([c.frames for c in data]), torch.stack(found[name])), (
            name
        )
        with pytest.raises(ValueError, match="crop must be"):
            make(crop="middle")


def test_videos_are_cropped_in_rows_and_tars(tmp_path, datasets):
    wide = torch.from_numpy(np.array(red_ramp(32, 96))).permute(2, 0, 1)[:, None].repeat(1, 4, 1, 1)
    film = write_video(tmp_path / "f.mp4", wide).read_bytes()
    kinds = datasets.Features(video=datasets.Video(decode=False), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=film, path=None), text="x")], features=kinds
    )
    write_tar(tmp_path / "f.tar", {"f.mp4": film, "f.txt": b"x"})
    want = read_video(film, 2, 32, caption="x", anchor=(0.5, 1)).frames
    assert want[0].float().mean() > 180
    for data in (
        HubClips(rows, size=32, frames=2, crop=(0.5, 1)),
        TarClips(tmp_path, 32, 2, crop=(0.5, 1)),
    ):
        assert torch.equal(data[0].frames, want)
