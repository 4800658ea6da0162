"""`CascadePipeline`: a prompt becomes a code, latents, pixels; saved; and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.autoencoder import generator
from helpers.cascade import (
    OBJECTIVE,
    TOLD,
    WORDS,
    cascade,
    pictures,
    shake,
    stage_b,
    stage_c,
    wordless,
)
from helpers.models import close
from helpers.pipeline import never, picturing_pipeline
from safetensors.torch import load_file, save_file

from minisora.cache_run import sample_saved
from minisora.cascade import CASCADE_PRESETS, add_time
from minisora.models.prompts import NoPrompt
from minisora.cascade_decoding import PiecewiseDecoder, Pieces, cut, decode_code, frame_noise
from minisora.cascade_objective import CodeConditionedModel
from minisora.cascade_pipeline import CascadePipeline, load_pipeline
from minisora.core.noise import indexed_noise
from minisora.data.vocabulary import Vocabulary
from minisora.interpolants import Interpolant
from minisora.latents.paella_vq import PaellaVQ
from minisora.latents.semantic import SemanticCompressor
from minisora.latents.video_vae import CausalVideoVAE
from minisora.pipeline import VideoPipeline

PROMPTS = ["a red ring", "a blue star", "a red ring"]


@pytest.fixture(scope="module")
def pipe():
    return cascade()


@pytest.fixture
def refusing(monkeypatch):
    "Whatever makes something fails the test: a wrong call must be refused before."
    monkeypatch.setattr("minisora.cascade_pipeline.sample", never)
    monkeypatch.setattr("minisora.cascade_pipeline.decode_code", never)
    monkeypatch.setattr(SemanticCompressor, "_encode", never)


def clips_of(n, frames=4, height=64, width=64):
    return torch.rand(n, 3, frames, height, width, generator=generator()) * 2 - 1


# ---------------------------------------------------------------- a call


def test_a_call_gives_what_a_video_pipeline_gives(pipe, tmp_path):
    made = pipe(PROMPTS, seed=3, num_videos_per_prompt=2, num_inference_steps=1)
    assert made.frames.shape == (6, 3, 4, 64, 64) and made.fps == 9.6
    assert made.prompts == [p for p in PROMPTS for _ in range(2)]
    assert made.frames.abs().max() <= 1 and made.frames.std() > 0.05
    assert len(made.save(tmp_path / "x.gif")) == 6
    assert pipe("a red ring", output_type="np").frames.shape == (1, 4, 64, 64, 3)


def test_the_steps_of_a_call_are_public(pipe):
    made = pipe(PROMPTS, seed=3, guidance_scale=3.0, solver="heun")
    codes = pipe.codes(PROMPTS, seed=3, guidance_scale=3.0, solver="heun")
    assert codes.shape == (3, 4, 4, 2, 2)
    close(pipe.decode(codes, PROMPTS, seed=3), made.frames)


@pytest.mark.parametrize("options", [{}, dict(solver="sde"), dict(solver="ddim", eta=1)])
def test_a_clip_is_the_same_alone_and_in_a_batch(pipe, options):
    options = dict(decoder=dict(options, guidance_scale=2.0), num_inference_steps=2, **options)
    options["num_frames"] = 2
    together = pipe(PROMPTS, seed=5, **options).frames
    alone = [pipe(p, seed=5, index=[i], **options).frames for i, p in enumerate(PROMPTS)]
    close(torch.cat(alone), together)
    close(pipe(PROMPTS, seed=5, batch_size=2, **options).frames, together)
    assert (together[0] - together[2]).abs().max() > 0.01, "other noise for another index"


def test_steps_of_a_length_of_their_own():
    pipe = pictures(
        prior=stage_c(1, down=(1, 1), up=(1, 1)), decoder=stage_b(1, down=(1, 1), up=(1, 1))
    )
    options = dict(solver="dopri5", rtol=1.0, atol=1.0)
    codes = pipe.codes(PROMPTS[:2], **options)
    together = pipe.decode(codes, PROMPTS[:2], **options)
    close(pipe.decode(codes[1:], PROMPTS[1:2], index=[1], **options), together[1:])


def test_seed_and_generator(pipe):
    frames = pipe(PROMPTS[:1], seed=1).frames
    assert torch.equal(pipe(PROMPTS[:1], seed=1).frames, frames)
    assert not torch.equal(pipe(PROMPTS[:1], seed=2).frames, frames)
    drawn = pipe(PROMPTS[:1], generator=generator(4)).frames
    assert torch.equal(pipe(PROMPTS[:1], generator=generator(4)).frames, drawn)
    assert not torch.equal(drawn, frames)


def test_both_stages_hear_the_prompt_and_the_code(pipe):
    codes = pipe.codes(PROMPTS[:1], seed=2)
    other = pipe.codes(PROMPTS[1:2], seed=2)
    assert (codes - other).abs().max() > 1e-3
    told = pipe.decode(codes, PROMPTS[:1], seed=2)
    for changed in (
        pipe.decode(codes, PROMPTS[1:2], seed=2),
        pipe.decode(codes, seed=2),
        pipe.decode(other, PROMPTS[:1], seed=2),
    ):
        assert (changed - told).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["num_inference_steps", "guidance_scale"])
def test_a_call_replaces_the_pipelines_options(pipe, name):
    usual = pipe(PROMPTS[:1]).frames
    for changed in ({name: 5}, dict(decoder={name: 5})):
        assert (pipe(PROMPTS[:1], **changed).frames - usual).abs().max() > 1e-4


def test_clips_of_another_length_and_single_pictures(pipe):
    made = pipe(PROMPTS[:2], num_frames=6)
    assert made.frames.shape[2] == 6
    single = pipe(PROMPTS[:2], num_frames=1).frames
    assert single.shape == (2, 3, 1, 64, 64)
    plain = pictures()
    assert plain(PROMPTS[:1]).frames.shape[2] == 1 and plain.clip_shape == (3, 1, 64, 64)
    with pytest.raises(ValueError, match="num_frames=2: this prior makes pictures"):
        plain("a red ring", num_frames=2)


def test_a_larger_clip(pipe):
    made = pipe("a red ring", size=(80, 128), decoder=dict(num_inference_steps=1))
    assert made.frames.shape == (1, 3, 4, 80, 128)


def test_without_words_and_with_a_decoder_that_knows_none():
    assert wordless()([None, None], num_inference_steps=1).frames.shape[0] == 2
    pipe = cascade(decoder=stage_b(prompt=NoPrompt()))
    codes = pipe.codes("a red ring")
    assert torch.equal(pipe.decode(codes, "a red ring"), pipe.decode(codes))
    assert pipe(PROMPTS, decoder=dict(guidance_scale=3.0)).frames.shape[0] == 3


def test_noise_of_decoder_and_prior_have_nothing_in_common(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "minisora.cascade_decoding.sample", lambda *a, **o: seen.append(o["noise"]) or o["noise"]
    )
    decode_code(pipe.decoder, OBJECTIVE, torch.zeros(1, 4, 4, 2, 2), seed=3)
    codes, _ = indexed_noise(3, 0, [0], (4, 4, 2, 2))
    assert (seen[0].flatten()[:64] - codes.flatten()).abs().max() > 0.5


# ---------------------------------------------------------------- clips through the code


def test_a_reconstruction_is_as_large_as_the_clip(pipe):
    clips = clips_of(2, 5, 72, 96)
    codes = pipe.encode(clips)
    assert codes.shape == (2, 4, 5, 2, 2)
    close(codes, pipe.encode(clips, frames=2))
    made = pipe.reconstruct(clips, PROMPTS[:2], seed=1)
    assert made.shape == clips.shape and made.abs().max() <= 1
    again = pipe.decode(codes, PROMPTS[:2], (72, 96), seed=1)
    close(made, again)
    close(made[1:], pipe.reconstruct(clips[1:], PROMPTS[1:2], seed=1, index=[1]))
    pixels = ((clips + 1) * 127.5).round().to(torch.uint8)
    assert (pipe.reconstruct(pixels, PROMPTS[:2], seed=1) - made).abs().mean() < 0.02


def test_codes_are_normalized(pipe):
    clips = clips_of(2)
    raw = pipe.compressor.encode(clips).mode
    std = torch.tensor([1.0, 2.0, 0.5, 1.5]).view(4, 1, 1, 1)
    close(pipe.encode(clips), (raw - 0.1) / std)


def test_latents_are_normalized(pipe, monkeypatch):
    latents = torch.randn(1, 4, 4, 16, 16, generator=generator())
    monkeypatch.setattr("minisora.cascade_pipeline.decode_code", lambda *a, **o: latents)
    made = pipe.decode(torch.zeros(1, 4, 4, 2, 2))
    close(made, pipe.autoencoder.decode(latents * 2 - 0.1).clamp(-1, 1).detach())


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize(
    "length, size, overlap, unit", [(53, 8, 2, 1), (212, 32, 8, 2), (9, 8, 7, 1)]
)
def test_pieces_cover_everything_and_begin_at_places(length, size, overlap, unit):
    found = cut(length, size, overlap, unit)
    total = torch.zeros(length)
    for part, weights in found:
        assert part.start % unit == 0 and len(weights) == part.stop - part.start == size
        total[part] += weights
    assert total.min() > 0
    for (a, _), (b, _) in zip(found, found[1:]):
        assert a.stop - b.start >= overlap
    assert [p.stop for p, _ in cut(17, 8)] == [8, 16, 17]
    assert cut(5, 8, 2)[0][0] == slice(0, 5) and len(cut(5, 8, 2)) == 1


def asked(model, pieces, size=(16, 16), frames=4, guided=False, **options):
    code = torch.randn(2, 4, frames, 3, 3, generator=generator(1))
    x = torch.randn(2, 4, frames, *size, generator=generator(2))
    t = torch.tensor([0.3, 0.7])
    y = WORDS.encode_batch(PROMPTS[:2])
    if guided:
        x, t, y = (
            torch.cat([x, x]),
            torch.cat([t, t]),
            torch.cat([y, torch.full_like(y, len(WORDS))]),
        )
    with torch.no_grad():
        whole = CodeConditionedModel(model, code, **options)(x, t, y)
        return whole, PiecewiseDecoder(model, code, size, pieces, **options)(x, t, y)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("options", [{}, dict(code_guidance=True)])
def test_a_single_piece_is_the_model_itself(guided, options):
    whole, pieced = asked(stage_b(), Pieces(), guided=guided, **options)
    close(whole, pieced)


def test_frames_of_a_picture_model_may_be_cut_anywhere():
    for frames in (1, 3, 7):
        whole, pieced = asked(stage_b(1), Pieces(frames=frames), frames=7)
        close(whole, pieced)


def test_a_tile_is_told_its_part_of_the_code():
    "A network that sees single places only: cutting must change nothing."
    model = stage_b(
        1,
        kernel=1,
        widths=(16,),
        heads=(0,),
        down=(1,),
        up=(1,),
        down_repeats=(1,),
        up_repeats=(1,),
    )
    for module in model.modules():
        if hasattr(module, "gamma"):
            torch.nn.init.zeros_(module.gamma)  # its norms are over the whole picture
    for pieces in (Pieces(tile=8), Pieces(tile=6, overlap=0), Pieces(tile=10, overlap=6, frames=2)):
        whole, pieced = asked(model, pieces, (20, 36), 3)
        close(whole, pieced)
    code = torch.randn(2, 4, 3, 3, 3, generator=generator(1))
    assert len(PiecewiseDecoder(model, code, (20, 36), Pieces(tile=8)).parts) == 3 * 6


def test_pieces_of_a_model_that_knows_time(pipe):
    model = stage_b()
    code = torch.randn(1, 4, 11, 2, 2, generator=generator(1))
    parts = PiecewiseDecoder(model, code, (16, 16)).parts
    assert [p[0].start for p in parts] == [0, 2, 5, 7] and all(len(p[1]) == 4 for p in parts)
    whole, pieced = asked(model, Pieces(), frames=11)
    assert 1e-4 < (whole - pieced).abs().max() and (whole - pieced).std() < whole.std() / 2


def test_a_longer_clip_begins_with_the_noise_of_the_shorter():
    short, long = [frame_noise(3, [0, 5], (4, n, 2, 3)) for n in (2, 5)]
    assert torch.equal(long[:, :, :2], short) and long.shape == (2, 4, 5, 2, 3)
    assert (long[:, :, 0] - long[:, :, 1]).abs().max() > 0.1
    same = frame_noise(3, [0, 5], (4, 5, 2, 3), same=True)
    assert torch.equal(same[:, :, 4], long[:, :, 0])


def test_with_the_same_noise_a_still_code_gives_a_still_clip():
    pipe = pictures()
    codes = pipe.codes("a red ring").expand(-1, -1, 3, -1, -1)
    still = pipe.decode(codes, same_noise=True)
    close(still, still[:, :, :1].expand_as(still))
    moving = pipe.decode(codes)
    close(moving[:, :, :1], still[:, :, :1])
    assert (moving[:, :, 0] - moving[:, :, 1]).abs().max() > 0.01


def test_the_guidance_of_a_code(pipe):
    codes = pipe.codes(PROMPTS[:1])
    usual, guided = [
        pipe.decode(codes, PROMPTS[:1], guidance_scale=3.0, code_guidance=value)
        for value in (False, True)
    ]
    assert (usual - guided).abs().max() > 1e-3


# ---------------------------------------------------------------- saved and loaded


def test_saved_and_loaded_it_gives_the_same_bits(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "x")
    about = json.loads((tmp_path / "x" / "pipeline.json").read_text())
    assert about["kind"] == "cascade-pipeline" and about["compressor"]
    for again in (CascadePipeline.from_pretrained(tmp_path / "x"), load_pipeline(tmp_path / "x")):
        assert torch.equal(again(PROMPTS, seed=3).frames, pipe(PROMPTS, seed=3).frames)
        assert torch.equal(again.reconstruct(clips_of(1)), pipe.reconstruct(clips_of(1)))
        assert again.fps == pipe.fps and again.sampling == pipe.sampling
        assert again.vocabulary == WORDS and again.decoder_objective == OBJECTIVE
    changed = load_pipeline(tmp_path / "x", sampling=dict(num_inference_steps=1))
    assert changed.sampling == dict(num_inference_steps=1)
    with pytest.raises(ValueError, match="pipeline.json: kind must be"):
        VideoPipeline.from_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match="no field 'sampler'"):
        load_pipeline(tmp_path / "x", sampler={})


def test_a_folder_of_half_precision(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    for part in ("prior", "decoder", "autoencoder", "compressor"):
        file = tmp_path / part / "model.safetensors"
        weights = load_file(file)
        save_file(
            {k: v.half() if v.is_floating_point() else v for k, v in weights.items()},
            file,
            {"format": "pt"},
        )
    again = load_pipeline(tmp_path)
    made = again(PROMPTS[:1]).frames
    assert next(again.prior.parameters()).dtype == torch.float32
    assert 0 < (made - pipe(PROMPTS[:1]).frames).abs().mean() < 0.02


def test_without_a_compressor(tmp_path):
    pipe = cascade(compressor=None)
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    assert again.compressor is None and not (tmp_path / "compressor").exists()
    for call in (again.encode, again.reconstruct):
        with pytest.raises(ValueError, match="has no compressor"):
            call(clips_of(1))


def test_a_video_pipeline_is_loaded_too(tmp_path):
    plain = picturing_pipeline()
    plain.save_pretrained(tmp_path)
    assert type(load_pipeline(tmp_path)) is VideoPipeline
    with pytest.raises(
        ValueError, match="kind must be one of 'cascade-pipeline', not 'video-pipeline'"
    ):
        CascadePipeline.from_pretrained(tmp_path)


def test_the_command_line_samples_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    paths = sample_saved(tmp_path, "a red ring", num_inference_steps=1)
    assert all(path.exists() for path in paths) and paths[0].suffix == ".mp4"


def test_pushed_to_the_hub(pipe, monkeypatch):
    seen = {}

    class Api:
        def __init__(self, token):
            seen["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            seen["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path):
            seen["files"] = sorted(p.name for p in folder_path.iterdir())
            return "commit"

    monkeypatch.setattr("minisora.cascade_pipeline.HfApi", Api)
    assert pipe.push_to_hub("user/name", private=True, token="t") == "commit"
    assert seen["repo"] == ("user/name", True, True) and seen["token"] == "t"
    assert {"pipeline.json", "prior", "decoder", "autoencoder", "compressor"} <= set(seen["files"])


@pytest.mark.parametrize("part", ["prior", "decoder", "autoencoder", "compressor"])
def test_a_part_that_is_missing_is_named(pipe, tmp_path, part):
    pipe.save_pretrained(tmp_path)
    (tmp_path / part / "config.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=f"{part}.*config.json"):
        load_pipeline(tmp_path)


def test_a_file_of_something_else_is_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "pipeline.json"
    about = json.loads(file.read_text())
    del about["code_std"]
    file.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="pipeline.json: not a cascade pipeline of this version"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match="no pipeline.json in it"):
        CascadePipeline.from_pretrained(tmp_path / "prior")


# ---------------------------------------------------------------- what is refused


WRONG_PARTS = {
    "code channels of prior and decoder: 3 and 4": lambda: dict(prior=stage_c(channels=3)),
    "code channels of decoder and decoder_objective: 4 and 5": lambda: dict(
        decoder_objective=replace(OBJECTIVE, code_channels=5)
    ),
    r"places of the code of prior and decoder_objective: \(2, 2\) and \(3, 2\)": lambda: dict(
        decoder_objective=replace(OBJECTIVE, code_height=3)
    ),
    "channels of decoder and autoencoder: 4 and 3": lambda: dict(
        autoencoder=PaellaVQ(channels=3, width=16, blocks=1, codebook=16)
    ),
    "codes of prior and compressor for pictures of 64 × 64": lambda: dict(
        compressor=SemanticCompressor(3, width=8)
    ),
    "one latent of 4 frames": lambda: dict(autoencoder=CausalVideoVAE(channels=4, width=8)),
    "objective must be that of a prior": lambda: dict(objective=OBJECTIVE),
    "decoder_objective must be one that is told a code": lambda: dict(
        decoder_objective=Interpolant()
    ),
    "decoder must be a CascadeUNet with code_channels": lambda: dict(decoder=stage_c()),
    "autoencoder must have encode": lambda: dict(autoencoder=None),
    "prior: the model knows 6 word ids: vocabulary=… is missing": lambda: dict(vocabulary=None),
    "vocabulary must be a Vocabulary, not 'words'": lambda: dict(vocabulary="words"),
    "prior: the model has 6 word ids in 3 slots, the vocabulary 4 in 1": lambda: dict(
        vocabulary=Vocabulary.from_captions(["red", "ring", "blue"])
    ),
    "decoder: the model has 9 word ids": lambda: dict(
        decoder=stage_b(prompt=replace(TOLD, vocab=9, each=False))
    ),
    "code_mean has 3 numbers for 4 channels": lambda: dict(code_mean=[1.0, 2.0, 3.0]),
    "std must be finite, and std above 0": lambda: dict(std=0.0),
    "fps must be": lambda: dict(fps=0),
    "CascadePipeline has no option 'steps_'": lambda: dict(sampling=dict(steps_=1)),
    "decoder has no option 'tiles'": lambda: dict(decoder_sampling=dict(tiles=1)),
    "sampling must be a dict": lambda: dict(sampling=3),
    "decoder must be a dict": lambda: dict(decoder_sampling=3),
}


@pytest.mark.parametrize("said", WRONG_PARTS)
def test_parts_that_do_not_belong_together(said):
    with pytest.raises(ValueError, match=said):
        cascade(**WRONG_PARTS[said]())


def test_a_stage_that_was_trained_otherwise():
    prior = stage_c()
    prior.trained_with = dict(mean=[0.3], std=None)
    with pytest.raises(
        ValueError, match=r"prior: the model was trained on latents of mean=\[0.3\]"
    ):
        cascade(prior=prior)
    decoder = stage_b()
    decoder.trained_with = dict(objective=replace(OBJECTIVE, code_height=4).to_dict())
    with pytest.raises(ValueError, match="decoder: the model was trained with code_height=4"):
        cascade(decoder=decoder)


CALLS = {
    "prompt must be a text": dict(prompt=3),
    "unknown word 'green'": dict(prompt="a green ring"),
    "output_type must be": dict(output_type="jpg"),
    "batch_size must be": dict(batch_size=0),
    "num_videos_per_prompt must be": dict(num_videos_per_prompt=0),
    "num_frames must be": dict(num_frames=0),
    "CascadePipeline has no option 'guidence_scale'": dict(guidence_scale=1.0),
    "no option 'renoise_times'": dict(renoise_times=1),
    "solver 'euler' has no option 'eta'": dict(eta=1.0),
    "decoder has no option 'overlapp'; did you mean": dict(decoder=dict(overlapp=2)),
    "decoder must be a dict": dict(decoder=7),
    "tile must be": dict(decoder=dict(tile=0)),
    "same_noise must be": dict(decoder=dict(same_noise=2)),
    "size must be rows and columns, multiples of 8 and 8": dict(size=(60, 64)),
    "not 64": dict(size=64),
    "index has 1 numbers for 2 clips": dict(prompt=PROMPTS[:2], index=[0]),
    "seed must be": dict(seed=-1),
    "generator must be": dict(generator=3),
}


@pytest.mark.parametrize("said", CALLS)
def test_a_wrong_call_is_refused_before_anything_is_made(pipe, refusing, said):
    with pytest.raises(ValueError, match=said):
        pipe(**dict(prompt="a red ring") | CALLS[said])


CODES = {
    r"codes must be a tensor \(B, 4, T, h, w\), not \(1, 3, 4, 2, 2\)": (1, 3, 4, 2, 2),
    r"not \(4, 4, 2, 2\)": (4, 4, 2, 2),
    "one or more": (0, 4, 4, 2, 2),
}


@pytest.mark.parametrize("said", CODES)
def test_wrong_codes(pipe, refusing, said):
    with pytest.raises(ValueError, match=said):
        pipe.decode(torch.zeros(CODES[said]))


@pytest.mark.parametrize(
    "said, given",
    {
        "without NaN": dict(codes=torch.full((1, 4, 4, 2, 2), torch.nan)),
        "prompt has 2 texts for 1 clips": dict(prompt=PROMPTS[:2]),
        "tile must be a multiple of 2": dict(tile=7),
        "overlap must be below the tile of 16": dict(overlap=16),
        "shared must be below the 4 frames": dict(shared=4),
        "size must be": dict(size=(64, 60)),
    }.items(),
)
def test_what_decode_refuses(pipe, monkeypatch, said, given):
    monkeypatch.setattr("minisora.cascade_decoding.sample", never)
    with pytest.raises(ValueError, match=said):
        pipe.decode(**dict(codes=torch.zeros(1, 4, 4, 2, 2)) | given)


@pytest.mark.parametrize(
    "said, clips",
    {
        "multiples of 8 and 8, not": torch.zeros(1, 3, 2, 60, 64),
        r"clips must be a tensor \(B, 3, T, H, W\)": torch.zeros(3, 2, 64, 64),
        "without NaN": torch.full((1, 3, 2, 64, 64), 2.0),
    }.items(),
)
def test_what_cannot_be_reconstructed(pipe, refusing, said, clips):
    with pytest.raises(ValueError, match=said):
        pipe.reconstruct(clips)


def test_shaken_stages_answer():
    "What the tests rest on: a network that answers zero would hide any fault."
    whole, _ = asked(shake(stage_b()), Pieces())
    assert whole.std() > 0.1


# ---------------------------------------------------------------- a preview of the code

PREVIEWING = dict(preview=8, pixel_channels=108)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("options", [{}, dict(code_guidance=True)])
def test_a_single_piece_sees_the_whole_preview(guided, options):
    whole, pieced = asked(stage_b(**PREVIEWING), Pieces(), guided=guided, **options)
    close(whole, pieced)
    blind, _ = asked(stage_b(**PREVIEWING | dict(preview=0)), Pieces(), guided=guided, **options)
    assert (whole - blind).abs().max() > 1e-3


def test_a_tile_sees_its_part_of_the_preview():
    model = stage_b(1, **PREVIEWING)
    code = torch.randn(1, 4, 2, 3, 3, generator=generator(1))
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, told: seen.append(told["pixels"]), with_kwargs=True
    )
    pieces = Pieces(tile=8, overlap=4)
    PiecewiseDecoder(model, code, (16, 16), pieces)(torch.zeros(1, 4, 2, 16, 16), torch.zeros(1))
    whole = model.look(code, (8, 8))  # the network's places are 2 × 2 latents
    assert whole.shape == (1, 108, 2, 8, 8) and len(seen) == 9
    for part, (row, column) in zip(seen, [(r, c) for r in (0, 2, 4) for c in (0, 2, 4)]):
        assert torch.equal(part, whole[..., row : row + 4, column : column + 4])


def test_a_preview_is_what_the_plain_decoder_makes():
    model = stage_b(1, **PREVIEWING)
    code = torch.randn(2, 4, 3, 2, 3, generator=generator(1))
    frames = model.preview(code.transpose(1, 2).flatten(0, 1)).clamp(-1, 1)
    assert frames.shape == (6, 3, 64, 96)
    frames = torch.nn.functional.interpolate(frames, (48, 72), mode="bilinear", antialias=True)
    seen = torch.nn.functional.pixel_shuffle(model.look(code, (8, 12)).transpose(1, 2), 6)
    close(seen.flatten(0, 1), frames)
    assert stage_b(1).look(code, (8, 12)) is None


def test_with_a_preview_saved_loaded_and_made_a_video_model(tmp_path):
    picture = stage_b(1, **PREVIEWING)
    moving = add_time(picture, 4).freeze_pictures()
    for model in (picture, moving):
        assert not any(p.requires_grad for p in model.preview.parameters())
    assert torch.equal(moving.preview.state_dict()["0.weight"], picture.preview[0].weight)
    pipe = cascade(decoder=shake(moving))
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    assert torch.equal(again(PROMPTS[:1]).frames, pipe(PROMPTS[:1]).frames)


@pytest.mark.parametrize("wrong", [dict(pixel_channels=3), dict(code_channels=0), dict(preview=-1)])
def test_a_preview_needs_a_code_and_its_pixels(wrong):
    config = replace(CASCADE_PRESETS["b-tiny"], **PREVIEWING)
    with pytest.raises(ValueError, match="CascadeUNetConfig.preview"):
        replace(config, **wrong)
