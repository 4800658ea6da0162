"""Our causal video autoencoder: pieces and tiles give what the whole gives, and its training repeats and goes on."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_autoencoder import awake, generator, noise_clips, scenes

from minisora import autoencoder as A


def small(first_alone=True, **options):
    return awake(
        A.CausalVideoVAE(**dict(channels=4, width=8, depth=1, first_alone=first_alone) | options)
    )


def latents(ae, t, h=2, w=3):
    return torch.randn(1, ae.spec.channels, t, h, w, generator=generator())


def close(a, b, relative=1e-5):
    return a.shape == b.shape and (a - b).abs().max() < relative * b.abs().max()


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("later", [4, 8])
def test_a_clip_encoded_in_pieces_is_the_clip_encoded_whole(first_alone, later):
    ae = small(first_alone)
    first = 5 if first_alone else 4
    x = noise_clips(2, first + 16)
    pieces = [x[:, :, :first], *x[:, :, first:].split(later, 2)]
    with torch.no_grad():
        whole, parts = ae.encode(x), list(A.encode_pieces(ae, iter(pieces)))
        alone = [ae.encode(pieces[0]).mean] + [
            ae._encode(p, going_on=True).mean for p in pieces[1:]
        ]
    assert close(torch.cat([p.mean for p in parts], 2), whole.mean)
    assert close(torch.cat([p.logvar for p in parts], 2), whole.logvar)
    assert not close(torch.cat(alone, 2), whole.mean, 1e-3), (
        "without memory the pieces would not fit"
    )


@pytest.mark.parametrize("first_alone", [True, False])
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_latents_decoded_in_pieces_are_the_latents_decoded_whole(first_alone, step):
    ae = small(first_alone)
    z = latents(ae, 5)
    with torch.no_grad():
        whole, parts = ae.decode(z), list(A.decode_pieces(ae, z, step))
    assert len(parts) == -(-5 // step) and close(torch.cat(parts, 2), whole)


def test_pieces_leave_no_memory_and_may_be_interleaved():
    "A reader who encodes or decodes something else between two pieces must not disturb them."
    ae = small()
    z, x = latents(ae, 6), noise_clips(1, 5)
    with torch.no_grad():
        want, plain = ae.decode(z), ae.encode(x).mean
        parts = []
        for piece in A.decode_pieces(ae, z, 2):
            parts.append(piece)
            assert torch.equal(ae.encode(x).mean, plain)
            ae.decode(z.flip(2))
        next(A.decode_pieces(ae, z, 2))  # left in the middle
    assert close(torch.cat(parts, 2), want)
    assert all(m.memory is None for m in ae.modules() if isinstance(m, A.CausalConv3d))


def test_memory_of_the_past_is_small():
    "Two frames a layer with a past, whatever the length of the pieces, and nothing that holds on to a piece."
    ae = small()
    past = A.Past(ae.dec)
    with torch.no_grad(), past:
        ae._decode(latents(ae, 9))
    held = [f for f in past.frames.values() if len(f)]
    assert held and all(
        f.shape[2] == 2 and f.untyped_storage().nbytes() == f.numel() * 4 for f in held
    )


def test_pieces_refuse_by_name():
    ae = small()
    with pytest.raises(ValueError, match="number of frames must be a multiple of 4, not 5"):
        list(A.encode_pieces(ae, noise_clips(1, 10).split(5, 2)))
    with pytest.raises(ValueError, match=r"number of frames must be 1 \+ a multiple of 4, not 4"):
        list(A.encode_pieces(ae, noise_clips(1, 8).split(4, 2)))
    with pytest.raises(ValueError, match="latents must be at least 1, not 0"):
        list(A.decode_pieces(ae, latents(ae, 2), 0))
    for call in (A.encode_pieces, A.decode_pieces):
        with pytest.raises(ValueError, match="ImageVAE: only a CausalVideoVAE can stream"):
            list(call(A.ImageVAE(width=4, enc_width=4), []))


# ---------------------------------------------------------------- tiles


def test_tiles_with_a_wide_margin_are_the_whole():
    "The decoder of depth 1 sees less than 6 latents to each side: with that margin no tile lacks anything."
    ae = small()
    z = latents(ae, 2, 22, 19)
    with torch.no_grad():
        whole = ae.decode(z)
    assert close(A.tiled_decode(ae, z, tile=15, overlap=13, margin=6), whole)
    narrow = A.tiled_decode(ae, z, tile=14, overlap=2, margin=0)
    assert not close(narrow, whole, 1e-3) and narrow.shape == whole.shape


def test_a_picture_smaller_than_a_tile_is_decoded_whole():
    ae = small()
    z = latents(ae, 2, 5, 20)
    with torch.no_grad():
        whole = ae.decode(z)
    assert torch.equal(A.tiled_decode(ae, z, tile=24, overlap=8), whole)


@pytest.mark.parametrize(
    "size, tile, overlap",
    [(60, 24, 8), (106, 24, 8), (24, 24, 8), (25, 24, 8), (7, 24, 8), (100, 10, 9)],
)
def test_tiles_cover_everything_and_overlap_enough(size, tile, overlap):
    starts = A.tile_starts(size, tile, overlap)
    assert starts[0] == 0 and starts[-1] == max(0, size - tile)
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))
    side, total = min(tile, size), torch.zeros(size)
    for s in starts:
        w = A.tile_ramp(s, side, size, overlap, overlap // 3)
        assert 0 <= w.min() and w.max() <= 1 and (w.max() == 1 or overlap > tile // 2)
        total[s : s + side] += w
    assert total.min() > 0.4, "somewhere no tile has its say"


def test_tiles_work_for_any_autoencoder():
    ae = awake(A.ImageVAE(width=4, enc_width=4))
    z = torch.randn(1, 4, 2, 20, 20, generator=generator())
    with torch.no_grad():
        whole = ae.decode(z)
    assert close(A.tiled_decode(ae, z, tile=14, overlap=11, margin=5), whole)


@pytest.mark.parametrize("tile, overlap, margin", [(8, 8, 0), (8, 4, 2), (8, 4, -1)])
def test_tiles_refuse_by_name(tile, overlap, margin):
    ae = small()
    with pytest.raises(
        ValueError, match=f"0 <= 2·margin < overlap < tile, not {margin}, {overlap}, {tile}"
    ):
        A.tiled_decode(ae, latents(ae, 1), tile, overlap, margin)


# ---------------------------------------------------------------- eyes and critic


def windows(frames=5, crop=16):
    return A.Windows([(scenes(8), 3.0), (scenes(5, size=40, frames=9), 1.0)], frames, crop)


def test_mixed_clips_lie_between_two_and_recoloured_ones_keep_black():
    x = torch.rand(64, 3, 1, 2, 2, generator=generator()) * 2 - 1
    share = (A.mixed(x, generator()) - x) / (x.roll(1, 0) - x)
    assert (share - share[:, :1, :1, :1, :1]).abs().max() < 1e-3 and share.min() > -1e-3
    assert 0.4 < share.max() < 0.501
    black = -torch.ones(2, 3, 1, 2, 2)
    assert torch.equal(A.recoloured(black, generator()), black)
    plain, some = (
        A.Windows([(scenes(8), 1.0)], 5, 16, mix=m).draw(40, generator())[0] for m in (0.0, 0.4)
    )
    changed = (plain != some).flatten(1).any(1).float().mean()
    assert 0.15 < changed < 0.65, "about mix of the windows, and no others"


def test_eyes_learn_and_see_a_blur():
    texture = (
        (torch.rand(6, 3, 1, 24, 24, generator=generator()) * 255).byte().expand(-1, -1, 5, -1, -1)
    )
    w = A.Windows([(texture, 1.0)], 5, 16)
    eyes, (clip, kind) = A.train_eyes(w.frame, 6, steps=100, batch=24)
    assert kind > 0.6, "by chance it would be one in four"
    x = w.draw(4, generator())[0]
    blurred = A.spoilt(A.to_frames(x), torch.ones(20, dtype=torch.long))
    assert eyes.distance(x, x) == 0 and eyes.distance(
        A.to_clips(blurred, 4), x
    ) > 10 * eyes.distance(x + 0.02, x)
    assert not any(p.requires_grad for p in eyes.parameters())


def test_spoilt_does_what_it_says():
    f = torch.rand(4, 3, 16, 16, generator=generator())
    out = A.spoilt(f, torch.arange(4))
    assert torch.equal(out[0], f[0]) and torch.allclose(out[3], 0.8 * f[3])
    assert out[1].std() < f[1].std() and out[2].std() < f[2].std()
    blocks = A.spoilt(f, torch.full((4,), 2)) - 0.5 * f
    assert torch.allclose(blocks[..., ::4, ::4], blocks[..., 3::4, 3::4])


def test_hinge_loss_of_the_critic():
    critic, x = A.Critic(width=4), noise_clips(2, 4)
    with torch.no_grad():
        for p in critic.parameters():
            p.zero_()
        critic[-1].bias.fill_(3.0)
        assert critic.loss(x, x).item() == pytest.approx(
            0 + 4
        )  # real above 1 costs nothing, fake above -1 does
        critic[-1].bias.fill_(-0.5)
        assert critic.loss(x, x).item() == pytest.approx(1.5 + 0.5)


def test_terms_of_the_loss():
    ae, x = small(), noise_clips(2, 5)
    quiet = A.VideoLoss(noise=0.0, foreground=0.0)
    with torch.no_grad():
        total, terms, y = quiet(ae, x, generator())
        want = dict(
            l1=(y - x).abs().mean().item(),
            l2=((y - x) ** 2).mean().item(),
            kl=ae.encode(x).kl().mean().item(),
        )
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(want, rel=1e-4)
    assert total.item() == pytest.approx(want["l1"] + 5 * want["l2"] + 1e-6 * want["kl"], rel=1e-4)


def test_each_clip_counts_the_same_whatever_its_background():
    "Weights have mean 1 a clip: black around an object must not make a clip count more or less."
    x = torch.full((2, 3, 5, 32, 32), -1.0)
    x[0, :, :, :4, :4] = 1.0
    x[1] = 0.5

    class Off:
        def encode(self, x):
            return A.Moments(torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1))

        def decode(self, z):
            return x + torch.tensor([0.1, 0.3]).view(2, 1, 1, 1, 1)

    _, terms, _ = A.VideoLoss(foreground=8.0)(Off(), x, generator())
    assert terms["l1"].item() == pytest.approx(0.2, rel=1e-3)


# ---------------------------------------------------------------- training


def run(ae=None, **options):
    ae = ae or A.CausalVideoVAE(channels=4, width=8, depth=1)
    log = A.train_video_vae(ae, windows(), **dict(steps=6, batch=2, every=3) | options)
    return torch.cat([p.detach().flatten() for p in ae.parameters()]), log


def test_video_training_repeats_and_leaves_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    (a, log), (b, _), (c, _) = run(), run(), run(seed=1)
    assert (
        torch.equal(a, b) and not torch.equal(a, c) and torch.equal(before, torch.get_rng_state())
    )
    assert (
        log["steps"] == 6
        and log.keys() >= {"l1", "l2", "kl", "seconds"}
        and "perceptual" not in log
    )


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, adversarial):
    loss = A.VideoLoss(adversarial=adversarial)
    whole, log = run(loss=loss)
    state = tmp_path / "state.safetensors"

    class Stop(Exception):
        pass

    def stop(step, done, terms):
        if state.is_file():
            raise Stop  # at step 6, after the state of step 3

    with pytest.raises(Stop):
        run(loss=loss, state=state, report=stop)
    again, more = run(loss=loss, state=state)
    assert torch.equal(again, whole) and more["steps"] == 6 and more["l1"] == log["l1"]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    finished, none = run(loss=loss, state=state)
    assert torch.equal(finished, whole) and none["steps"] == 6, (
        "a finished run has nothing left to do"
    )


def test_a_spoilt_state_is_an_error_that_names_it(tmp_path):
    state = tmp_path / "state.safetensors"
    run(steps=1, state=state)
    with pytest.raises(ValueError, match="state.safetensors: another model's state"):
        run(A.CausalVideoVAE(channels=5, width=8, depth=1), state=state)
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match="state.safetensors: not a whole safetensors file"):
        run(state=state)


def test_each_term_is_used():
    eyes = A.train_eyes(windows().frame, 13, steps=2)[0]
    plain, _ = run()
    seen, log = run(eyes=eyes)
    assert not torch.equal(plain, seen) and log["perceptual"] > 0
    fooled, log = run(loss=A.VideoLoss(adversarial=0.5))
    assert not torch.equal(plain, fooled) and "adversarial" in log


def test_video_training_beats_the_pca():
    ae, w = A.CausalVideoVAE(channels=4, width=32, depth=1), windows()
    x = w.draw(16, generator(3))[0]
    ae.init_pca(w.draw(256, generator())[0])
    with torch.no_grad():
        before = (ae(x) - x).square().mean().item()
    A.train_video_vae(ae, w, steps=80, batch=4, lr=5e-3)
    with torch.no_grad():
        after = (ae(x) - x).square().mean().item()
    assert after < 0.9 * before, (before, after)


def test_a_video_loss_that_is_not_finite_changes_nothing():
    ae = A.CausalVideoVAE(channels=4, width=8, depth=1)
    opt = torch.optim.AdamW(ae.parameters(), 1e-2)
    with torch.no_grad():
        ae.dec[-2].bias.fill_(1e30)
    before = [p.detach().clone() for p in ae.parameters()]
    with pytest.raises(FloatingPointError, match="lower lr"):
        A.video_step(ae, None, [opt], noise_clips(1, 5), generator(), A.VideoLoss(), None)
    assert all(torch.equal(p, q) for p, q in zip(ae.parameters(), before))


def test_windows_come_from_sources_by_their_share():
    w = windows()
    x, which = w.draw(200, generator())
    assert x.shape == (200, 3, 5, 16, 16) and -1 <= x.min() and x.max() <= 1
    assert 0.6 < (which < 8).float().mean() < 0.9 and which.max() < 13
    assert set(which.tolist()) == set(range(13))


def test_windows_lie_where_something_moves():
    x = torch.full((3, 6, 64, 64), 200, dtype=torch.uint8)  # bright, at rest
    x[:, ::2, 40:48, 8:16] = 0  # and here it flickers
    hit = [(A.busy_window(x, 4, 16, generator(s)) == 0).any().item() for s in range(40)]
    assert sum(hit) > 12  # by chance it would be four
    rest = A.busy_window(x[..., :32, :], 4, 16, generator())
    assert rest.shape == (3, 4, 16, 16)


def test_windows_refuse_by_name():
    with pytest.raises(ValueError, match="must be uint8"):
        A.Windows([(scenes(2).float(), 1.0)], 5, 16)
    with pytest.raises(ValueError, match="windows of 9 frames, 16 pixels do not fit"):
        A.Windows([(scenes(2), 1.0)], 9, 16)
    with pytest.raises(ValueError, match="windows of 5 frames, 48 pixels do not fit"):
        A.Windows([(scenes(2), 1.0)], 5, 48)


def test_a_state_holds_no_more_than_tensors(tmp_path):
    "Nothing is pickled; the file opens as safetensors, and holds weights, moments and the generator."
    run(steps=2, state=tmp_path / "s.safetensors")
    held = load_file(tmp_path / "s.safetensors")
    assert (
        "generator" in held
        and any(k.endswith("exp_avg_sq") for k in held)
        and any(k.startswith("ae.") for k in held)
    )
    save_file(
        {k: v for k, v in held.items() if k != "ae.skip_in.bias"},
        tmp_path / "s.safetensors",
        metadata=dict(step="2", seconds="1"),
    )
    with pytest.raises(ValueError, match="another model's state"):
        run(state=tmp_path / "s.safetensors")
