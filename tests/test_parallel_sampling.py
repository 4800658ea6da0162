"""Processes that share out rows of a batch, tokens of a clip, and tiles give what one gives."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from helpers.autoencoder import generator, inner_vae, small_vae, wide_clips
from helpers.pipeline import picturing_pipeline, speaking_pipeline
from helpers.train import randomized, together
from helpers.upsampling import with_upsampler

from minisora.core.protocols import ModelWrapper, wrapped
from minisora.diffusion import GaussianDiffusion
from minisora.frames import FrameConditionedModel
from minisora.interpolants import Interpolant
from minisora.latents.compression import PCACompressedVAE
from minisora.latents.tiling import TileParallel, tiled_decode, tiled_encode
from minisora.models.conditions import Unconditional, WordCondition
from minisora.models.layouts import Factorized
from minisora.models.preconditioning import DirectOutput
from minisora.models.windows import Windows
from minisora.parallel import Parallel
from minisora.parallel_sampling import (
    BatchParallel,
    batch_group,
    gather_rows,
    parallel_pipeline,
    row_counts,
)
from minisora.sampling import CallCounter, sample
from minisora.temporal import VideoDiT, VideoDiTConfig
from minisora.training.distributed import join_processes

CONFIG = VideoDiTConfig(
    size=(5, 4, 4),
    channels=2,
    patch=(1, 2, 2),
    width=24,
    depth=2,
    heads=3,
    condition=WordCondition(vocab=5, slots=2),
)
LEARNED = replace(CONFIG, output=DirectOutput(learn_sigma=True))
NO_WORDS = replace(CONFIG, condition=Unconditional())
PROMPTS = torch.tensor([[1, 2], [3, 4], [0, 1]])
LINEAR = Interpolant()
RANGE = GaussianDiffusion(variance="learned-range")

# what is asked: model, objective, clips, options of `sample`
REQUESTS = dict(
    one_clip=(CONFIG, LINEAR, 1, dict(guidance=3.0)),
    three_clips=(CONFIG, LINEAR, 3, dict(guidance=3.0, solver="heun")),
    sometimes_guided=(CONFIG, LINEAR, 3, dict(guidance=3.0, guidance_interval=(0.3, 1.0))),
    in_batches=(CONFIG, LINEAR, 3, dict(guidance=3.0, batch_size=2)),
    unguided=(CONFIG, LINEAR, 3, dict(guidance=1.0, solver="sde")),
    one_unguided=(CONFIG, LINEAR, 1, dict(guidance=1.0)),
    no_words=(NO_WORDS, LINEAR, 3, {}),
    adaptive=(CONFIG, LINEAR, 3, dict(guidance=3.0, solver="dopri5", together=True, rtol=1e-2)),
    one_by_one=(CONFIG, LINEAR, 2, dict(guidance=3.0, solver="dopri5", rtol=1e-2)),
    learned_range=(LEARNED, RANGE, 1, dict(guidance=3.0, solver="ancestral")),
)


class Rows(ModelWrapper):
    "A model that notes how many rows each call has."

    def __init__(self, model):
        super().__init__(model)
        self.rows = []

    def __call__(self, x, t, y=None):
        self.rows.append(len(x))
        return self.model(x, t, y)


def ask(request, group=None):
    "Latents, and the rows of each call of this process."
    config, objective, n, options = REQUESTS[request]
    model = Rows(randomized(VideoDiT(config), 0.1).eval())
    what = dict(n=n) if config is NO_WORDS else dict(condition=PROMPTS[:n])
    if options.get("solver") == "dopri5":  # whose choice of steps would magnify float32's rounding
        model.double()
        what["noise"] = torch.randn(n, 2, 5, 4, 4, generator=generator(), dtype=torch.float64)
    z = sample(BatchParallel(model, group), objective, steps=3, **what, **options)
    return z, model.rows


def near(a, b, label, tolerance=1e-5):
    assert a.shape == b.shape, label
    error = (a - b).abs().max() / b.abs().max()
    if error > tolerance:
        raise AssertionError(f"{label} differs by {error:.1e}")


@pytest.mark.parametrize("world", [2, 4])
def test_rows_are_shared_out(world, tmp_path):
    """Every sampler: the latents of one process, on all; and of each call's rows each process
    computes its share only (one, which is dropped, where there are fewer than processes)."""
    alone = {request: ask(request) for request in REQUESTS}
    assert alone["one_clip"][1] == [2, 2, 2] and alone["three_clips"][1] == [6] * 5

    def job(rank):
        join_processes("cpu")
        for request, (expected, whole) in alone.items():
            z, rows = ask(request, dist.group.WORLD)
            near(z, expected, request)
            assert rows == [max(1, row_counts(n, world)[rank]) for n in whole], request
            others = [torch.empty_like(z) for _ in range(world)]
            dist.all_gather(others, z)
            assert all(torch.equal(other, z) for other in others), request

    assert together(job, tmp_path, world) == [""] * world


def test_each_process_has_one_half_of_guidance(tmp_path):
    "Of two, the first sees the captions only, the second null ids only, both in every step."

    def job(rank):
        join_processes("cpu")
        seen = []

        def model(x, t, y):
            seen.append(y)
            return x

        model.null_id = 5
        shape = (2, 5, 4, 4)
        sample(BatchParallel(model, dist.group.WORLD), LINEAR, PROMPTS, shape=shape, steps=4)
        half = torch.full_like(PROMPTS, 5) if rank else PROMPTS
        assert len(seen) == 4 and all(torch.equal(y, half) for y in seen)

    assert together(job, tmp_path) == ["", ""]


LAYOUTS = dict(
    joint=(CONFIG, "ulysses"),
    ring=(CONFIG, "ring"),
    factorized=(replace(CONFIG, layout=Factorized()), "dsp"),
    windows=(replace(CONFIG, layout=Windows(((1, 0, 0), (0, 2, 2)))), "dsp"),
)


def test_tokens_and_rows_are_shared_out(tmp_path):
    "Four processes: two for the tokens of each half of guidance, both wrappers around one model."

    def guided(config, group=None, wrappers=()):
        model = Rows(randomized(VideoDiT(config)).eval())
        with wrapped(model.model, *wrappers):
            z = sample(BatchParallel(model, group), LINEAR, PROMPTS, steps=3, guidance=3.0)
        return z, model.rows

    alone = {name: guided(config)[0] for name, (config, _) in LAYOUTS.items()}

    def job(rank):
        for name, (config, method) in LAYOUTS.items():
            parallel = Parallel(sequence=2, method=method)
            processes = join_processes("cpu", parallel=parallel)
            group = batch_group(processes)
            assert dist.get_process_group_ranks(group) == ([1, 3] if rank % 2 else [0, 2])
            z, rows = guided(config, group, parallel.wrappers(processes))
            near(z, alone[name], name)
            assert rows == [3, 3, 3], name

    assert together(job, tmp_path, 4) == [""] * 4


class Calls(ModelWrapper):
    "An autoencoder that notes the shapes it is asked for."

    def __init__(self, model):
        super().__init__(model)
        self.shapes = []

    def encode(self, x):
        self.shapes.append(tuple(x.shape))
        return self.model.encode(x)

    def decode(self, z):
        self.shapes.append(tuple(z.shape))
        return self.model.decode(z)


TILES = dict(tile=8, overlap=3, margin=1)


@pytest.mark.parametrize("world", [2, 4])
def test_tiles_are_shared_out(world, tmp_path):
    "As many calls as one process makes, all together; the same pixels and latents on all."
    ae = small_vae()
    z = torch.randn(3, 4, 2, 12, 7, generator=generator())  # two tiles
    clips = torch.rand(2, 3, 5, 96, 56, generator=generator()) * 2 - 1
    pca = PCACompressedVAE.from_autoencoder(inner_vae(), 2, 3)
    with torch.no_grad():
        pca.init_pca([pca.inner.encode(wide_clips()).mode])
    codes = torch.randn(1, pca.spec.channels, 2, 6, 4, generator=generator())
    jobs = dict(
        decoded=(6, lambda ae: tiled_decode(ae, z, **TILES)),
        one_tile=(1, lambda ae: tiled_decode(ae, z[:1], 24, 8, 2)),
        encoded=(4, lambda ae: tiled_encode(ae, clips, **TILES)),
        whole=(3, lambda ae: ae.decode(z)),
    )
    with torch.no_grad():
        alone = {name: call(ae) for name, (_, call) in jobs.items()}
        alone_pca = pca.decode_tiled(codes, 6, 3, 1)
    for name, (_, call) in jobs.items():
        assert torch.equal(call(TileParallel(ae)), alone[name])  # without a group: itself

    def job(rank):
        join_processes("cpu")
        for name, (count, call) in jobs.items():
            asked = Calls(ae)
            near(call(TileParallel(asked, dist.group.WORLD)), alone[name], name, 1e-6)
            assert len(asked.shapes) == len(range(rank, count, world)), name
            assert all(shape[0] == 1 for shape in asked.shapes)
        near(
            TileParallel(pca, dist.group.WORLD).decode_tiled(codes, 6, 3, 1), alone_pca, "pca", 1e-6
        )

    assert together(job, tmp_path, world) == [""] * world


def count_rows(module, rows):
    "Note the rows of each call of a module."
    module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))


def test_a_pipeline_is_shared_out(tmp_path):
    "Prompts, given frames, films and larger clips, with tokens shared out or not."
    speaking = speaking_pipeline()
    larger = with_upsampler()
    for part in (speaking.model, speaking.autoencoder, larger.model, larger.autoencoder):
        part.double()  # inside; else a film, which encodes its own end, magnifies rounding
    larger.upsampler.model.double()
    picture = (torch.rand(3, 1, 32, 64, generator=generator()) * 255).byte()
    few = dict(num_inference_steps=2, guidance_scale=2.0)
    asked = []
    decoded = []
    count_rows(speaking.model, asked)
    count_rows(speaking.autoencoder.inner.dec, decoded)

    def made(pipe, larger):
        "Clips, and how many rows this process's model and decoder had in a call of the pipeline."
        asked.clear()
        decoded.clear()
        clips = pipe(["hello", "you", "rest"], seed=3, **few).frames
        rows = sum(asked), sum(decoded)
        return rows, dict(
            clips=clips,
            continued=pipe("hello", frames=picture, known_guidance=1.5, **few).frames,
            film=pipe.film(["hello", "you"], **few).frames,
            larger=larger(["hello", "rest"], size=64, **few).frames,
        )

    heads = speaking.model.config.heads
    rows, alone = made(speaking, larger)
    assert rows == (2 * 6, 3)  # two steps of a doubled batch

    def job(rank):
        for parallel, share in (
            (None, 2 * row_counts(6, 4)[rank]),
            (Parallel(sequence=2), 2 * 3),
            (Parallel(sequence=4, method="ring"), 2 * 6),
            (Parallel(tensor=2), 2 * 3),
        ):
            shared = [parallel_pipeline(pipe, parallel) for pipe in (speaking, larger)]
            assert not hasattr(speaking.model.layout, "inner")
            assert speaking.model.blocks[0].attn.heads == heads
            rows, frames = made(*shared)
            assert rows == (share, rank < 3), (rows, parallel)
            for name, clips in frames.items():
                near(clips, alone[name], f"{parallel} {name}")

    assert together(job, tmp_path, 4) == [""] * 4


def test_different_requests_are_named(tmp_path):
    "On all processes, and none of them hangs."
    model = randomized(VideoDiT(CONFIG)).eval()
    ae = small_vae()

    def job(rank):
        join_processes("cpu")
        shared = BatchParallel(model, dist.group.WORLD)
        order = PROMPTS.flip(0) if rank else PROMPTS
        same = "BatchParallel: all processes must ask for the same, and "
        for message, request in (
            (r"x is \(6, 2, 5, 4, 4\) in process 0 .* \(4, .*\) in process 1", PROMPTS[rank:]),
            ("y is not the same in process 0", order),
        ):
            with pytest.raises(ValueError, match=same + message):
                sample(shared, LINEAR, request, steps=1)
        with pytest.raises(ValueError, match=same + "x is not the same .* another seed"):
            sample(shared, LINEAR, PROMPTS, steps=1, seed=rank)
        x = torch.zeros(2, 2, 5, 4, 4)
        with pytest.raises(ValueError, match=same + r"y is (None|\(2, 2\)) in process 0"):
            shared(x, torch.zeros(2), None if rank else PROMPTS[:2])
        with pytest.raises(ValueError, match="BatchParallel is for sampling and has no gradients"):
            shared(x.requires_grad_(), torch.zeros(2), PROMPTS[:2])
        z = torch.zeros(1 + rank, 4, 2, 4, 4)
        with pytest.raises(ValueError, match=r"TileParallel: .* x is \(1, 4, 2, 4, 4\) in"):
            TileParallel(ae, dist.group.WORLD).decode(z)

    assert together(job, tmp_path) == ["", ""]


def test_alone_nothing_changes():
    "No group: the same bits. No processes: the pipeline itself."
    model = randomized(VideoDiT(CONFIG)).eval()
    counter = CallCounter(model)
    alone = sample(model, LINEAR, PROMPTS, steps=2)
    assert torch.equal(sample(BatchParallel(counter), LINEAR, PROMPTS, steps=2), alone)
    assert counter.calls == 2
    pipe = picturing_pipeline()
    assert parallel_pipeline(pipe) is pipe
    with pytest.raises(ValueError, match="for 2 processes or a multiple, not 1"):
        parallel_pipeline(pipe, Parallel(sequence=2))
    with pytest.raises(ValueError, match="a VideoPipeline is asked for, not UpsamplingPipeline"):
        parallel_pipeline(with_upsampler().upsampler)
    with pytest.raises(ValueError, match="parallel_pipeline: shard is .* must be 1 here, not 2"):
        parallel_pipeline(pipe, Parallel(shard=2))


def test_what_holds_rows_goes_around():
    known = FrameConditionedModel(randomized(VideoDiT(CONFIG)), torch.zeros(1, 2, 1, 4, 4))
    with pytest.raises(ValueError, match="a FrameConditionedModel holds rows of its own"):
        BatchParallel(known)
    assert copy.copy(BatchParallel(CallCounter(known))).model.known is known.known


def test_shares_differ_by_one_at_most():
    for rows in range(1, 12):
        for n in range(1, 6):
            counts = row_counts(rows, n)
            assert sum(counts) == rows and len(counts) == n and max(counts) - min(counts) <= 1


def test_rows_come_back_in_order(tmp_path):
    def job(rank):
        join_processes("cpu")
        for counts in ([2, 1], [1, 0], [3, 3]):
            whole = torch.arange(sum(counts) * 2.0).view(-1, 2)
            mine = whole.split(counts)[rank]
            assert torch.equal(gather_rows(mine, counts, dist.group.WORLD), whole)

    assert together(job, tmp_path) == ["", ""]
