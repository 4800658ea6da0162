"""What a cache is made of: streams, data that change behind its back, moved autoencoders."""

import gc
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.autoencoder import SIZES, tiny, tiny_kl
from helpers.clips import grey, packed, write_tar
from helpers.latent_cache import (
    SHARD,
    SMALL,
    Clips,
    Counted,
    Stop,
    Tiny,
    content,
    flip,
    write,
)

from minisora.clips import SceneClips
from minisora.core.files import short_hash, write_json
from minisora.core.hub import AUTOENCODERS
from minisora.data.folders import FolderClips
from minisora.data.hub import HubClips, StreamClips
from minisora.data.imagenet import ImageNetClips
from minisora.data.named import open_named_dataset
from minisora.data.tars import TarClips
from minisora.data.video import Clip, write_video
from minisora.latent_cache import (
    LatentCache,
    import_npy_folder,
    repair_cache,
    verify_cache,
    write_cache,
)
from minisora.latents.cache_format import load_manifest
from minisora.latents.cache_import import IdentityEncoder, LatentClips, NpyFolder
from minisora.latents.cache_plan import (
    SequentialDataset,
    autoencoder_fingerprint,
    dataset_fingerprint,
)
from minisora.latents.diffusers_vae import DiffusersVAE

# ---------------------------------------------------------------- streams


class Stream:
    """The same clips as `Clips`, one after the other; fails at number `at`, once. `read` are those
    given out."""

    def __init__(self, n=20, at=None):
        self.clips, self.at, self.read = Clips(n), at, []

    def __iter__(self):
        for i in range(self.clips.n):
            yield self.give(i)

    def give(self, i):
        if i == self.at:
            self.at = None
            raise Stop(i)
        self.read.append(i)
        return self.clips[i]


class Skipping(Stream):
    "One that can leave clips out unread, as streams of `datasets` do."

    start = 0

    def __iter__(self):
        for i in range(self.start, self.clips.n):
            yield self.give(i)

    def skip(self, n):
        rest = Skipping(self.clips.n)
        rest.__dict__.update(self.__dict__, start=self.start + n)
        return rest


class Torch(Stream, torch.utils.data.IterableDataset):
    "torch's base class has a `__getitem__` that only raises."

    def __len__(self):
        return self.clips.n


@pytest.mark.parametrize("kind", [Stream, Skipping, Torch])
def test_a_stream_gives_the_cache_of_the_same_clips(tmp_path, kind):
    whole, stream = (
        write(tmp_path / "whole"),
        write_cache(tmp_path / "c", kind(), Tiny(), samples=20, **SMALL),
    )
    assert torch.equal(stream[range(20)]["latents"], whole[range(20)]["latents"])
    assert [*stream.rows] == [*whole.rows] and not verify_cache(tmp_path / "c")
    some = write_cache(tmp_path / "d", kind(), Tiny(), samples=20, limit=7, **SMALL)
    assert len(some) == 7 and [*some.rows] == [*whole.rows][:7]


@pytest.mark.parametrize("at", [1, 4, 9, 19])
@pytest.mark.parametrize("kind", [Stream, Skipping])
def test_a_stream_goes_on_where_it_was_cut_off(tmp_path, kind, at):
    whole, again, ae = kind(), kind(at=at), Tiny()
    write_cache(tmp_path / "whole", whole, Tiny(), samples=20, **SMALL)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", again, Tiny(), samples=20, **SMALL)
    assert not (tmp_path / "c").exists()
    again.read.clear()
    again.at = None
    write_cache(tmp_path / "c", again, ae, samples=20, **SMALL)
    assert content(tmp_path / "c") == content(tmp_path / "whole")
    done = at // 4 * 4
    assert ae.batches - 1 == (20 - done) // 4, "what the journal has is not encoded again"
    if kind is Skipping:
        assert again.read == [0, *range(done, 20)], "nor read; the plan looks at the first clip"
    write_cache(tmp_path / "c", again, ae, samples=20, **SMALL)
    assert ae.batches - 2 == (20 - done) // 4, "and a finished cache is only looked up"


def test_a_reader_begins_again_after_an_error():
    reader = SequentialDataset(Stream(at=2), 20)
    assert [reader[i].source for i in (0, 1)] == ["noise:0", "noise:1"]
    with pytest.raises(Stop):
        reader[2]
    assert [reader[i].source for i in (2, 3, 7, 1)] == [f"noise:{i}" for i in (2, 3, 7, 1)]


def test_a_stream_that_cannot_skip_is_read_once(tmp_path):
    stream = Stream()
    write_cache(tmp_path / "c", stream, Tiny(), samples=20, rank=0, world_size=2, **SMALL)
    assert stream.read == [0, *range(20), *range(16)][: len(stream.read)], (
        "on it goes, back is to begin again"
    )
    assert torch.equal(
        LatentCache(tmp_path / "c")[range(20)]["latents"],
        write(tmp_path / "d")[range(20)]["latents"],
    )


RANK = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from helpers.latent_cache import Clips, Tiny, write_cache
class Stream:
    def __iter__(self): return map(Clips().__getitem__, range(20))
options = dict(shard_size=8, samples=20, rank={rank}, world_size=2, progress=False)
write_cache({path!r}, Stream(), Tiny(slow=.02), 4, **options)
"""


def test_two_ranks_share_a_stream(tmp_path):
    path = str(tmp_path / "c")
    codes = [
        RANK.format(root=str(ROOT), tests=str(ROOT / "tests"), path=path, rank=r) for r in (0, 1)
    ]
    ranks = [
        subprocess.Popen([sys.executable, "-c", c], stderr=subprocess.PIPE, text=True)
        for c in codes
    ]
    for p in ranks:
        assert p.wait(120) == 0, p.stderr.read()
    write_cache(tmp_path / "alone", Stream(), Tiny(), samples=20, **SMALL)
    assert content(tmp_path / "c") == content(tmp_path / "alone")


def test_memory_of_a_stream_is_bounded_by_the_batch(tmp_path):
    stream = Stream(200)
    stream.clips = Counted(200)
    write_cache(
        tmp_path / "c", stream, Tiny(), samples=200, batch_size=4, shard_size=80, progress=False
    )
    gc.collect()
    assert 4 < stream.clips.most <= 3 * 4 + 2, f"{stream.clips.most} clips were in memory"


def test_a_shard_of_a_stream_is_repaired(tmp_path):
    write_cache(tmp_path / "c", Stream(), Tiny(), samples=20, **SMALL)
    before = content(tmp_path / "c")
    flip(tmp_path / "c" / SHARD, -5)
    stream = Skipping()
    assert (
        repair_cache(tmp_path / "c", stream, Tiny()) == [SHARD]
        and content(tmp_path / "c") == before
    )
    assert stream.read == [*range(8, 16)], "only the clips of that shard"


def test_streams_that_cannot_be_cached_say_why(tmp_path):
    with pytest.raises(ValueError, match="pass samples"):
        write_cache(tmp_path / "c", Stream(), Tiny(), **SMALL)
    with pytest.raises(ValueError, match="generator can be read only once"):
        write_cache(tmp_path / "c", (c for c in Stream()), Tiny(), samples=20, **SMALL)
    with pytest.raises(ValueError, match="20 clips, not 7: samples is for a stream, limit takes"):
        write_cache(tmp_path / "c", Clips(20), Tiny(), samples=7, **SMALL)
    with pytest.raises(ValueError, match="samples must be a whole number from 1, not 0"):
        write_cache(tmp_path / "c", Stream(), Tiny(), samples=0, **SMALL)
    assert not [*tmp_path.iterdir()], "nothing was begun"


@pytest.mark.parametrize("kind", [Stream, Skipping])
def test_a_stream_that_ends_early(tmp_path, kind):
    with pytest.raises(ValueError, match="ends before clip 18, and samples=20"):
        write_cache(tmp_path / "c", kind(18), Tiny(), samples=20, **SMALL)
    assert not (tmp_path / "c").exists()
    right = write_cache(tmp_path / "c", kind(18), Tiny(), samples=18, overwrite=True, **SMALL)
    assert (
        len(right) == 18 and not verify_cache(tmp_path / "c") and not (tmp_path / "c.part").exists()
    )


def test_another_stream_is_not_mixed_in(tmp_path):
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", Stream(at=9), Tiny(), samples=20, **SMALL)
    other = Stream()
    other.clips.size = 8  # its first clip is another
    with pytest.raises(ValueError, match="another"):
        write_cache(tmp_path / "c", other, Tiny(), samples=20, **SMALL)


def rows(datasets, n=10, other=None):
    "`n` pictures with labels; number `other` is another picture."
    kinds = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["tench", "goldfish"])
    )
    shade = lambda k: 255 if k == other else 20 * k
    return datasets.Dataset.from_list(
        [dict(image=grey(shade(k)), label=k % 2) for k in range(n)], features=kinds
    )


def test_a_streamed_data_set_resumes_undecoded(tmp_path, datasets):
    rows(datasets).to_parquet(tmp_path / "rows.parquet")
    read = []

    class Spied(StreamClips):
        "Notes which rows are decoded, and dies at the seventh of them."

        def __iter__(self):
            for clip in super().__iter__():
                read.append(clip.source)
                if len(read) == 7:
                    raise Stop()
                yield clip

    def stream(kind=StreamClips):
        files = str(tmp_path / "rows.parquet")
        data = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
        return kind(data, size=16, label="label")

    options = dict(batch_size=2, shard_size=4, progress=False)
    whole = write_cache(tmp_path / "whole", stream(), Tiny(), samples=10, **options)
    assert whole.sources == [f"row {i}" for i in range(10)]
    assert [a["label"] for a in whole.attributes] == [0, 1] * 5
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", stream(Spied), Tiny(), samples=10, **options)
    read[:] = [""] * 10
    write_cache(tmp_path / "c", stream(Spied), Tiny(), samples=10, **options)
    assert read[10:] == [f"row {i}" for i in (0, 4, 5, 6, 7, 8, 9)], (
        "the first for the plan, then from batch two on"
    )
    assert content(tmp_path / "c") == content(tmp_path / "whole")


# ---------------------------------------------------------------- data that change


def folder(path, n=6):
    path.mkdir(exist_ok=True)
    for k in range(n):
        (path / f"{k}.gif").write_bytes(packed(grey(20 * k), "GIF"))
    (path / "metadata.csv").write_text(
        "file,caption\n" + "".join(f"{k}.gif,number {k}\n" for k in range(n))
    )
    return FolderClips(path, size=16, frames=2, keep=0)


def imagenet(path, n=6):
    for k in range(n):
        d = path / "train" / f"n0000000{k % 3}"
        d.mkdir(parents=True, exist_ok=True)
        (d / f"{k}.JPEG").write_bytes(packed(grey(20 * k), "JPEG"))
    return ImageNetClips(path, size=16)


def tars(path, n=6):
    path.mkdir(exist_ok=True)
    for t in range(3):
        parts = {
            f"{k}.{e}": d
            for k in (2 * t, 2 * t + 1)
            for e, d in (("png", packed(grey(20 * k))), ("txt", f"number {k}".encode()))
        }
        write_tar(path / f"{t}.tar", parts)
    return TarClips(path, size=16, frames=1)


def saved(path, other=None):
    import datasets

    rows(datasets, 6, other).save_to_disk(path)
    return HubClips(str(path), size=16, label="label")


def npy(path):
    for kind, make in (
        ("features", lambda k: np.full((1, 4, 2, 2), k, np.float32)),
        ("labels", lambda k: np.array([k])),
    ):
        (path / f"x_{kind}").mkdir(parents=True, exist_ok=True)
        for k in range(6):
            np.save(path / f"x_{kind}" / f"{k}.npy", make(k))
    return LatentClips(NpyFolder(path))


def touch(file, data=None):
    "Other bytes of the same length if there are `data`, and in any case another time of change."
    if data is not None:
        file.write_bytes(data)
    os.utime(file, ns=(1, 1))


def middle(file):
    """The same file with one byte changed, the middle one or, behind the header of a .npy file, the
    last."""
    raw = bytearray(file.read_bytes())
    raw[-1 if file.suffix == ".npy" else len(raw) // 2] ^= 1
    touch(file, bytes(raw))


def inside(tar):
    "The same tar with one letter of its second caption changed."
    touch(tar, tar.read_bytes().replace(b"number 3", b"number 7"))


def caption(path):
    touch(
        path / "metadata.csv",
        (path / "metadata.csv").read_bytes().replace(b"number 3", b"number 7"),
    )


def another_set(path):
    shutil.rmtree(path)
    saved(path, other=3)


CHANGES = dict(
    file=(folder, lambda p: middle(p / "3.gif")),
    caption=(folder, caption),
    picture=(imagenet, lambda p: middle(p / "train/n00000000/3.JPEG")),
    name=(imagenet, lambda p: (p / "synset_words.txt").write_text("n00000001 goldfish\n")),
    tar=(tars, lambda p: inside(p / "1.tar")),
    data_set=(saved, another_set),
    npy=(npy, lambda p: middle(p / "x_features/3.npy")),
    label=(npy, lambda p: middle(p / "x_labels/3.npy")),
)


def reopened(make, path):
    "The data as a new call would find them: opened, not made again."
    opened = {
        folder: lambda: FolderClips(path, size=16, frames=2, keep=0),
        npy: lambda: LatentClips(NpyFolder(path)),
        imagenet: lambda: ImageNetClips(path, size=16),
        tars: lambda: TarClips(path, size=16, frames=1),
        saved: lambda: HubClips(str(path), size=16, label="label"),
    }
    return opened[make]()


class Dying(Tiny):
    "Dies in its third call, the second batch."

    def encode(self, x):
        if self.batches == 2:
            raise Stop()
        return super().encode(x)


Dying.__name__ = "Tiny"  # for their identities


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("half", [False, True], ids=["finished", "half"])
def test_a_change_in_the_middle_is_seen(tmp_path, kind, half):
    make, change = CHANGES[kind]
    if make is saved:
        pytest.importorskip("datasets")
    ae = {npy: IdentityEncoder}.get(make, Tiny)
    options = dict(batch_size=2, shard_size=2, progress=False)
    path, cache = tmp_path / "data", tmp_path / "c"
    make(path)
    if half and ae is Tiny:
        with pytest.raises(Stop):
            write_cache(cache, reopened(make, path), Dying(), **options)
    else:
        write_cache(cache, reopened(make, path), ae(), **options)
    if not half or ae is Tiny:
        write_cache(tmp_path / "copy", reopened(make, path), ae(), **options)
    before = content(tmp_path / ("c.part" if half and ae is Tiny else "c"))
    change(path)
    with pytest.raises(ValueError, match="exists with (listing|data)=") as e:
        write_cache(cache, reopened(make, path), ae(), **options)
    assert "(the bytes of a file, or a caption changed; a cache of version 0.1 also" in str(e.value)
    assert content(tmp_path / ("c.part" if half and ae is Tiny else "c")) == before
    write_cache(cache, reopened(make, path), ae(), overwrite=True, **options)
    assert not verify_cache(cache)


def test_unchanged_data_are_taken_up_again(tmp_path):
    folder(tmp_path / "data")
    options = dict(batch_size=2, shard_size=2, progress=False)
    for make in (folder, lambda p: FolderClips(p, size=16, frames=2, check="no")):
        make(tmp_path / "data")
        for file in (tmp_path / "data").iterdir():
            touch(file)
        with pytest.raises(Stop):
            write_cache(tmp_path / "c", reopened(folder, tmp_path / "data"), Dying(), **options)
        ae = Tiny()
        write_cache(tmp_path / "c", reopened(folder, tmp_path / "data"), ae, **options)
        assert ae.batches == 1 + 2, "one look, and the two batches that were missing"
        shutil.rmtree(tmp_path / "c")


def test_a_listing_reads_each_file_once(tmp_path, monkeypatch):
    data = (
        folder(tmp_path / "data"),
        imagenet(tmp_path / "imagenet"),
        tars(tmp_path / "tars"),
        npy(tmp_path / "npy"),
    )
    want = [dataset_fingerprint(d) for d in data]

    def never(*a, **k):
        raise AssertionError(f"opened {a[0]}")

    monkeypatch.setattr("builtins.open", never)
    monkeypatch.setattr("io.open", never)
    assert [dataset_fingerprint(d) for d in data] == want and len(set(want)) == 4


def test_videos_beside_a_data_set_are_listed(tmp_path):
    pytest.importorskip("datasets")
    for name in ("Dance", "YoYo"):
        (tmp_path / name).mkdir()
        shutil.copy(
            write_video(tmp_path / "x.mp4", SceneClips(2, size=16)[0]),
            tmp_path / name / "v_1.avi",
        )
    mark = lambda: dataset_fingerprint(open_named_dataset("ucf101", tmp_path))
    before = mark()
    assert before == mark()
    touch(tmp_path / "Dance/v_1.avi")
    assert before == mark(), "another date is not another film"
    middle(tmp_path / "Dance/v_1.avi")
    assert before != mark()


def test_only_what_is_encoded_counts(tmp_path):
    data = folder(tmp_path / "data")
    part = torch.utils.data.Subset(data, [0, 2, 4])
    options = dict(batch_size=2, progress=False)
    write_cache(tmp_path / "c", data, Tiny(), limit=3, **options)
    write_cache(tmp_path / "s", part, Tiny(), **options)
    middle(tmp_path / "data/3.gif")
    data = FolderClips(tmp_path / "data", size=16, frames=2)
    assert len(write_cache(tmp_path / "c", data, Tiny(), limit=3, **options)) == 3
    with pytest.raises(ValueError, match="exists with listing="):
        write_cache(tmp_path / "s", torch.utils.data.Subset(data, [0, 2, 4]), Tiny(), **options)
    assert dataset_fingerprint(part, 2) != dataset_fingerprint(
        torch.utils.data.Subset(part.dataset, [0, 1]), 2
    )
    assert (
        dataset_fingerprint(torch.utils.data.Subset(Clips(), [1])) is None
        and dataset_fingerprint(Clips()) is None
    )


def test_caches_from_before_listings_are_read_and_reused_and_mended(tmp_path):
    "Written as they were: no listing in plan and manifest, in the version that it still is."
    data, options = folder(tmp_path / "data"), dict(batch_size=2, shard_size=2, progress=False)

    class Mute(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            return data[i]

    old = write_cache(tmp_path / "c", Mute(), Tiny(), **options)
    assert "listing" not in old.manifest and old.manifest["version"] == 2
    before = content(tmp_path / "c")
    touch(tmp_path / "data/3.gif")
    data = reopened(folder, tmp_path / "data")
    assert (
        len(write_cache(tmp_path / "c", data, Tiny(), **options)) == 6
        and content(tmp_path / "c") == before
    )
    flip(tmp_path / "c" / SHARD, -5)
    assert (
        repair_cache(tmp_path / "c", data, Tiny()) == [SHARD] and content(tmp_path / "c") == before
    )
    new = write_cache(tmp_path / "d", data, Tiny(), **options)
    assert new.manifest["listing"] == dataset_fingerprint(data) and new.manifest["version"] == 2


def test_a_converted_folder_goes_on(tmp_path):
    npy(tmp_path / "old")
    first = import_npy_folder(tmp_path / "old", tmp_path / "c", progress=False)
    assert "listing" in first.manifest
    assert len(import_npy_folder(tmp_path / "old", tmp_path / "c", progress=False)) == 6
    assert (
        json.loads((tmp_path / "c/manifest.json").read_text())["listing"]
        == first.manifest["listing"]
    )


# ---------------------------------------------------------------- autoencoders that move, and their
# types


def moved(tmp_path):
    "The same weights in two folders, and other weights in a third."
    torch.manual_seed(0)
    vae = tiny_kl()
    for d in ("d1", "d2"):
        vae.save_pretrained(tmp_path / d)
    with torch.no_grad():
        next(vae.parameters()).add_(1e-3)
    vae.save_pretrained(tmp_path / "other")


def test_an_autoencoder_is_its_weights_and_not_their_folder(tmp_path, monkeypatch):
    moved(tmp_path)
    monkeypatch.chdir(tmp_path)
    one, two, other = DiffusersVAE(tmp_path / "d1"), DiffusersVAE("d2"), DiffusersVAE("other")
    assert (
        autoencoder_fingerprint(one)
        == autoencoder_fingerprint(two)
        != autoencoder_fingerprint(other)
    )
    write_cache("whole", Clips(), one, **SMALL)
    LatentCache("whole", autoencoder=two)
    before = content("whole")
    write_cache("whole", Clips(), two, **SMALL)
    flip(tmp_path / "whole" / SHARD, -5)
    assert repair_cache("whole", Clips(), two) == [SHARD] and content("whole") == before
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache("whole", autoencoder=other)
    with pytest.raises(ValueError, match="exists with autoencoder="):
        write_cache("whole", Clips(), other, **SMALL)
    calls, encode = [], DiffusersVAE.encode

    def dies(self, x):
        calls.append(len(x))
        if len(calls) == 4:
            raise Stop()
        return encode(self, x)

    monkeypatch.setattr(DiffusersVAE, "encode", dies)
    with pytest.raises(Stop):
        write_cache("c", Clips(), one, **SMALL)
    calls[:] = [0] * 4
    write_cache("c", Clips(), two, **SMALL)
    assert calls[4:] == [1, 4, 4, 4], "a look, and what the journal does not have"
    shards = lambda c: {k: v for k, v in content(c).items() if k != "manifest.json"}
    assert shards("c") == shards("whole")
    assert LatentCache("c").manifest["config"]["_name_or_path"] == "d2", (
        "the folder is kept as information"
    )


def test_caches_that_have_the_folder_in_their_identity(tmp_path):
    "So older versions wrote them."
    moved(tmp_path)
    write_cache(tmp_path / "c", Clips(), DiffusersVAE(tmp_path / "d1"), **SMALL)
    m = load_manifest(tmp_path / "c")
    m["autoencoder"]["spec"]["name"] = "somewhere/else"
    write_json(tmp_path / "c/manifest.json", m | dict(sha256=short_hash(m)))
    before, two = content(tmp_path / "c"), DiffusersVAE(tmp_path / "d2")
    LatentCache(tmp_path / "c", autoencoder=two)
    write_cache(tmp_path / "c", Clips(), two, **SMALL)
    flip(tmp_path / "c" / SHARD, -5)
    assert (
        repair_cache(tmp_path / "c", Clips(), two) == [SHARD] and content(tmp_path / "c") == before
    )
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache(tmp_path / "c", autoencoder=DiffusersVAE(tmp_path / "other"))


KINDS = ["AutoencoderKL", "AutoencoderTiny", *SIZES]


def family(kind):
    return tiny_kl() if kind == "AutoencoderKL" else tiny(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_has_the_config_of_every_family(tmp_path, kind):
    ae = DiffusersVAE(family(kind))
    frames, side = SIZES.get(kind, (2, 16))

    class Right(Clips):
        def __getitem__(self, i):
            return Clip(
                torch.randint(256, (3, frames, side, side), dtype=torch.uint8), "x", 8.0, "x"
            )

    write_cache(tmp_path / "c", Right(2), ae, progress=False)
    m = json.loads((tmp_path / "c/manifest.json").read_text())
    assert m["config"] and m["autoencoder"]["spec"]["name"] == kind
    assert m["config"] == json.loads(json.dumps(dict(ae.vae.config), default=str))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autoencoders_of_another_type(kind, dtype):
    frames, side = SIZES.get(kind, (2, 16))
    x = torch.rand(2, 3, frames, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    vae = family(kind)
    with torch.inference_mode():
        whole = DiffusersVAE(vae)
        want = whole.encode(x)
        y = whole.decode(want.mean)
        ae = DiffusersVAE(vae.to(dtype))
        got = ae.encode(x)
        z = ae.decode(want.mean)
    assert got.mean.dtype == got.logvar.dtype == z.dtype == torch.float32
    for a, b in ((got.mean, want.mean), (z, y)):
        assert (a - b).std() < 0.2 * b.std(), "but for rounding the same"


def test_a_cache_of_a_bfloat16_autoencoder(tmp_path):
    vae = tiny_kl()
    full = write_cache(tmp_path / "full", Clips(), DiffusersVAE(vae), **SMALL)
    vae.save_pretrained(tmp_path / "vae")
    half = DiffusersVAE(tmp_path / "vae", torch_dtype=torch.bfloat16)
    cache = write_cache(tmp_path / "half", Clips(), half, **SMALL)
    assert (cache[range(20)]["latents"] - full[range(20)]["latents"]).abs().max() < 0.1
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache(tmp_path / "full", autoencoder=half)


@pytest.fixture
def renamed(monkeypatch):
    """An autoencoder whose class an earlier version called `FoldedTiny`, and today's registry
    `tiny`."""
    monkeypatch.setattr(AUTOENCODERS, "classes", dict(AUTOENCODERS.classes))

    @AUTOENCODERS.register("tiny", "FoldedTiny")
    class CompressedTiny(Tiny):
        pass

    return CompressedTiny


def test_an_autoencoder_with_another_name_is_the_same_one(tmp_path, renamed):
    class FoldedTiny(Tiny):
        pass

    write_cache(tmp_path / "old", Clips(), FoldedTiny(), **SMALL)
    before = content(tmp_path / "old")
    assert LatentCache(tmp_path / "old", autoencoder=renamed())
    write_cache(tmp_path / "old", Clips(), renamed(), **SMALL)
    flip(tmp_path / "old" / SHARD, -5)
    assert repair_cache(tmp_path / "old", Clips(), renamed()) == [SHARD]
    write_cache(tmp_path / "new", Clips(), renamed(), **SMALL)
    assert content(tmp_path / "old") == before == content(tmp_path / "new")
    with pytest.raises(ValueError, match="another autoencoder"):
        LatentCache(tmp_path / "old", autoencoder=Tiny())


@pytest.mark.parametrize("name", ["FoldedTiny", "tiny"])
def test_every_name_of_a_kind_is_known_again(tmp_path, renamed, name):
    write_cache(tmp_path / "c", Clips(), renamed(), **SMALL)
    assert autoencoder_fingerprint(renamed())["name"] == "FoldedTiny"
    manifest = load_manifest(tmp_path / "c")
    manifest["autoencoder"]["name"] = name
    write_json(tmp_path / "c/manifest.json", manifest | dict(sha256=short_hash(manifest)))
    assert LatentCache(tmp_path / "c", autoencoder=renamed())


def test_a_users_subclass_of_a_known_kind_is_another_one(renamed):
    class Mine(renamed):
        pass

    assert autoencoder_fingerprint(Mine())["name"] == "Mine"


def test_work_begun_with_the_encoder_in_another_folder_is_resumed(tmp_path):
    """Its plan says another `spec.name`, so its shards bear another id: they are continued as they
    are."""

    class Moved(Tiny):
        def __init__(self, folder, life=99):
            super().__init__()
            self.spec = dict(self.spec, name=folder)
            self.life = life

        def encode(self, x):
            if self.batches == self.life:
                raise Stop
            return super().encode(x)

    write_cache(tmp_path / "whole", Clips(), Moved("here"), **SMALL)
    with pytest.raises(Stop):
        write_cache(tmp_path / "c", Clips(), Moved("here", life=4), **SMALL)
    ae = Moved("there")
    write_cache(tmp_path / "c", Clips(), ae, **SMALL)
    assert ae.batches == 1 + 2, "a look, and the two batches that were missing"
    assert content(tmp_path / "c") == content(tmp_path / "whole")


# ---------------------------------------------------------------- what data are, not where and when


@pytest.mark.parametrize("kind", [folder, imagenet, tars, saved, npy])
def test_moved_data_are_the_same(tmp_path, kind):
    if kind is saved:
        pytest.importorskip("datasets")
    ae = IdentityEncoder if kind is npy else Tiny
    options = dict(batch_size=2, shard_size=2, progress=False)
    kind(tmp_path / "data")
    first = dataset_fingerprint(reopened(kind, tmp_path / "data"))
    write_cache(tmp_path / "c", reopened(kind, tmp_path / "data"), ae(), **options)
    before = content(tmp_path / "c")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    for place in ("copy", "moved"):
        for file in (tmp_path / place).rglob("*"):
            os.utime(file, ns=(7, 7))
        data = reopened(kind, tmp_path / place)
        assert dataset_fingerprint(data) == first
        write_cache(tmp_path / "c", data, ae(), **options)
        assert content(tmp_path / "c") == before


@pytest.mark.parametrize("kind, file", [(folder, "3.gif"), (imagenet, "train/n00000000/3.JPEG")])
def test_a_change_that_keeps_size_and_date_is_seen(tmp_path, kind, file):
    kind(tmp_path)
    first = dataset_fingerprint(reopened(kind, tmp_path))
    stamp = (tmp_path / file).stat()
    middle(tmp_path / file)
    os.utime(tmp_path / file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (tmp_path / file).stat().st_size == stamp.st_size
    assert dataset_fingerprint(reopened(kind, tmp_path)) != first


class Before(torch.utils.data.Dataset):
    "Clips as version 0.1 listed them: by size and date, and their place."

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        return self.clips[i]

    def listing(self):
        return self.clips.stamp_listing()


@pytest.mark.parametrize("kind", [folder, imagenet, tars, saved, npy])
@pytest.mark.parametrize("half", [False, True], ids=["finished", "half"])
def test_caches_of_version_0_1_go_on_or_are_refused(tmp_path, monkeypatch, kind, half):
    if kind is saved:
        pytest.importorskip("datasets")
    ae = IdentityEncoder if kind is npy else Tiny
    options = dict(batch_size=2, shard_size=2, progress=False)
    kind(tmp_path / "data")
    old = Before(reopened(kind, tmp_path / "data"))
    look = "minisora.latents.cache_plan._look"
    with monkeypatch.context() as m:
        m.setattr(
            look,
            lambda c, listed=False: [short_hash(c.frames.numpy().tobytes()), c.caption, c.source],
        )
        if half and ae is Tiny:
            with pytest.raises(Stop):
                write_cache(tmp_path / "c", old, Dying(), **options)
        else:
            write_cache(tmp_path / "c", old, ae(), **options)
    plan = tmp_path / ("c.part/plan.json" if half and ae is Tiny else "c/manifest.json")
    known = json.loads(plan.read_text())["id"]
    cache = write_cache(tmp_path / "c", reopened(kind, tmp_path / "data"), ae(), **options)
    assert len(cache) == 6 and cache.manifest["id"] == known and not verify_cache(tmp_path / "c")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.*"):
        os.utime(file, ns=(7, 7))
    if kind is saved:
        return  # its fingerprint travels with it
    with pytest.raises(ValueError, match="a cache of version 0.1 also if a file was moved"):
        write_cache(tmp_path / "c", reopened(kind, tmp_path / "copy"), ae(), **options)
    assert LatentCache(tmp_path / "c").manifest["id"] == known
