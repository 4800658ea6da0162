"""Hugging Face datasets: rows at random and as streams give the same clips; bad rows are named."""

import pytest
import torch
from helpers import clips as fixtures
from helpers.clips import grey, packed

from minisora.data.hub import HubClips, StreamClips, open_dataset
from minisora.data.video import read_video, stack_clips

# fixtures that several files share
imagenet_rows = fixtures.imagenet_rows
video = fixtures.video


def test_datasets_of_videos_frames_and_images(video, datasets, tmp_path):
    videos = datasets.Dataset.from_dict({"video": [str(video)], "text": ["hi"], "n": [7]})
    videos = videos.cast_column("video", datasets.Video())
    videos.save_to_disk(tmp_path / "saved")
    for data in (HubClips(videos), HubClips(tmp_path / "saved")):
        assert torch.equal(data[0].frames, read_video(video).frames)
        assert data[0].caption == "hi" and data[0].attributes == {"n": 7}
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    still = HubClips(datasets.Dataset.from_list([dict(image=grey(9), label=1)], features=kinds))
    assert still[0].caption == "dog" and still[0].frames.shape == (3, 1, 64, 64)
    assert still[0].frames.unique().tolist() == [9]
    row = datasets.Dataset.from_list([dict(frames=[grey(10), grey(200)], caption="x")])
    assert HubClips(row, frames=4)[0].frames[0, :, 0, 0].tolist() == [10, 10, 200, 200]
    with pytest.raises(
        ValueError, match="no video or image column 'film'; columns are: video, text, n"
    ):
        HubClips(videos, column="film")
    with pytest.raises(ValueError, match="save_to_disk"):
        HubClips(tmp_path)


def test_a_broken_row_is_named():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=b"rubbish", path=None), text="x")],
        features=datasets.Features(
            video=datasets.Video(decode=False), text=datasets.Value("string")
        ),
    )
    with pytest.raises(ValueError, match="row 0: cannot read"):
        HubClips(rows)[0]


def test_streams_give_what_rows_give(datasets, video, imagenet_rows):
    table = datasets.Dataset.from_dict({"video": [str(video)] * 2, "text": ["a", "b"], "n": [1, 2]})
    table = table.cast_column("video", datasets.Video())
    for data in (table, imagenet_rows):
        rows, stream = HubClips(data), list(StreamClips(data.to_iterable_dataset()))
        assert len(stream) == len(rows)
        for a, b in zip(rows, stream):
            assert torch.equal(a.frames, b.frames)
            assert (a.caption, a.source, a.attributes) == (b.caption, b.source, b.attributes)


def test_a_folder_is_streamed_or_not_as_asked(datasets, imagenet_rows, tmp_path):
    for d in ("parquet", "disk"):
        (tmp_path / d).mkdir()
    imagenet_rows.to_parquet(str(tmp_path / "parquet/train-00000-of-00001.parquet"))
    imagenet_rows.save_to_disk(str(tmp_path / "disk"))
    for d in ("parquet", "disk"):
        assert isinstance(open_dataset(tmp_path / d), datasets.Dataset)
        assert isinstance(open_dataset(tmp_path / d, streaming=True), datasets.IterableDataset)


def test_a_stream_reads_only_what_is_asked_for(datasets):
    made = []

    def rows():
        for k in range(100):
            made.append(k)
            yield dict(image=grey(k), text=str(k))

    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    # columns are found without a schema
    for features in (kinds, None):
        made.clear()
        stream = StreamClips(datasets.IterableDataset.from_generator(rows, features=features))
        got = [c.caption for c, _ in zip(stream, range(3))]
        assert got == ["0", "1", "2"] and len(made) < 10


def test_stream_workers_share_the_files(datasets, imagenet_rows):
    stream = StreamClips(imagenet_rows.to_iterable_dataset(num_shards=2))
    loader = torch.utils.data.DataLoader(
        stream, batch_size=1, num_workers=2, collate_fn=stack_clips
    )
    assert sorted(int(x[0, 0, 0, 0, 0]) for x, _ in loader) == [0, 10, 20, 30, 40, 50]


# ---------------------------------------------------------------- what is damaged


def test_a_broken_row_of_a_stream_is_named(datasets):
    kinds = datasets.Features(video=datasets.Video(decode=False), text=datasets.Value("string"))
    rows = datasets.Dataset.from_list(
        [dict(video=dict(bytes=b"rubbish", path=None), text="x")], features=kinds
    )
    with pytest.raises(ValueError, match="row 0: cannot read"):
        next(iter(StreamClips(rows.to_iterable_dataset())))
    with pytest.raises(ValueError, match="no label column 'id'"):
        HubClips(rows, label="id")


def test_a_stream_passes_over_bad_rows(datasets):
    cells = [
        dict(image=dict(bytes=packed(grey(k)) if k % 2 else b"rubbish", path=None), text="x")
        for k in range(4)
    ]
    kinds = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    lazy = datasets.Dataset.from_list(cells, features=kinds).to_iterable_dataset()
    with pytest.raises(ValueError, match="row 0: it is no picture"):
        list(StreamClips(lazy))
    stream = StreamClips(lazy, on_error="collect")
    for _ in range(2):  # each pass counts anew
        assert [c.source for c in stream] == ["row 1", "row 3"] and [
            r for r, _ in stream.unreadable
        ] == ["row 0", "row 2"]
    with pytest.warns(
        UserWarning, match="2 of 4 cannot be read in the stream; row 0: it is no picture"
    ):
        list(StreamClips(lazy, on_error="warn"))
    with pytest.raises(ValueError, match="on_error must be one of"):
        StreamClips(lazy, on_error="skip")


def test_a_null_is_named(datasets):
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    rows = datasets.Dataset.from_list(
        [dict(image=None, label=0), dict(image=grey(3), label=None)], features=kinds
    )
    data = HubClips(rows)
    with pytest.raises(ValueError, match="row 0: its image is missing"):
        data[0]
    with pytest.raises(ValueError, match="row 1: its label is missing"):
        data[1]
