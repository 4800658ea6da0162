"""Metrics on clips whose score is known."""

import math

import pytest
import torch

from minisora import metrics as M
from minisora.clips import SIMPLE_MOTIONS, Clip, SceneClips, stack


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def square_at(path, side=6, size=(48, 80), colour=(255, 255, 255), ground=(0, 0, 0)):
    "A clip (1, 3, T, H, W) of a square whose corner goes along integer (x, y)s; None: a frame without it."
    x = torch.tensor(ground, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, len(path), *size).clone()
    for t, at in enumerate(path):
        if at is not None:
            x[:, t, at[1] : at[1] + side, at[0] : at[0] + side] = torch.tensor(
                colour, dtype=torch.uint8
            ).view(3, 1, 1)
    return x[None]


# ---------------------------------------------------------------- motion

STEADY = [(10 + 3 * t, 5 + 2 * t) for t in range(7)]
FALLING = [(20, 1 + t * t) for t in range(6)]


def test_centroid_and_mass_of_a_square():
    at, mass = M.centroid_and_mass(square_at(STEADY))
    assert torch.allclose(at[0], torch.tensor(STEADY).float() + 2.5, atol=1e-3)
    assert torch.allclose(mass, torch.full((1, 7), 36 * 0.9), rtol=1e-4)


@pytest.mark.parametrize(
    "ground, colour", [((255, 255, 255), (0, 0, 0)), ((30, 90, 200), (200, 30, 40))]
)
def test_background_may_have_any_colour(ground, colour):
    at, _ = M.centroid_and_mass(square_at(STEADY, colour=colour, ground=ground))
    assert torch.allclose(at[0], torch.tensor(STEADY).float() + 2.5, atol=1e-3)


def test_codec_noise_is_no_foreground():
    clip = M.pixels(square_at(STEADY))
    noisy = clip + 0.04 * torch.randn(clip.shape, generator=generator())
    off = (M.centroid_and_mass(noisy)[0] - M.centroid_and_mass(clip)[0]).norm(dim=-1)
    assert off.max() < 0.2
    assert M.empty_frames(
        torch.full_like(clip, -1) + 0.04 * torch.randn(clip.shape, generator=generator())
    ).all()


def test_jerk():
    assert M.jerk_px(square_at(STEADY)) < 1e-3
    assert M.jerk_px(square_at(FALLING)) == pytest.approx(2, abs=1e-3)
    three = torch.cat([square_at(STEADY[:6]), square_at(FALLING), square_at(FALLING)])
    assert M.jerk_px(three) == pytest.approx(2, abs=1e-3)  # the median
    assert M.jerk_px(three, per_clip=True).tolist() == pytest.approx([0, 2, 2], abs=1e-3)


def test_flicker():
    assert M.area_flicker(square_at(STEADY)) < 1e-4
    blink = square_at(STEADY).float()
    blink[:, :, 1::2] *= 0.5
    half = math.log((1 - 0.1) / (0.5 - 0.1))  # the threshold takes 0.1 off both
    assert M.area_flicker(blink.byte()) == pytest.approx(2 * half, rel=0.05)


def test_empty_clips_get_the_worst_score_and_no_nan():
    empty, gone = square_at([None] * 7), square_at(STEADY[:4] + [None] * 3)
    assert M.jerk_px(empty) == 80 and M.area_flicker(empty) == pytest.approx(math.log(48 * 80))
    assert M.jerk_px(gone) > 1 and M.area_flicker(gone) > 0.5
    at, mass = M.centroid_and_mass(gone)
    assert torch.isfinite(at).all() and torch.isfinite(mass).all() and mass.min() > 0
    assert M.motion_measures(torch.cat([empty, gone, square_at(STEADY)]))["empty"] == 2


def test_real_scenes_are_smooth():
    x, _ = stack(SceneClips(24, "all", 5, SIMPLE_MOTIONS))
    m = M.motion_measures(x)
    assert m["jerk_px"] < 0.06 and m["area_flicker"] < 0.012 and m["empty"] == 0 and m["n"] == 24
    assert m["jerk_px"] == M.jerk_px(x) and m["area_flicker"] == pytest.approx(M.area_flicker(x))
    for k in ("jerk_px", "area_flicker", "empty"):
        low, high = m[f"{k}_interval"]
        assert low <= m[k] <= high and low < high
    again = M.motion_measures(SceneClips(24, "all", 5, SIMPLE_MOTIONS), batch=7)
    assert (
        again["area_flicker_interval"] == pytest.approx(m["area_flicker_interval"])
        and again["n"] == 24
    )


def test_bootstrap_interval():
    values = torch.randn(400, generator=generator()) + 3
    low, high = M.bootstrap_interval(values)
    half = 1.96 * values.std().item() / 20  # the textbook's interval of a mean
    middle = values.mean().item()
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.15 * half)
    low, high = M.bootstrap_interval([0.0] * 9 + [90.0], "median")
    assert low == 0 and high < 90 < 10 * M.bootstrap_interval([0.0] * 9 + [90.0])[1]
    with pytest.raises(ValueError, match="not 'mode'"):
        M.bootstrap_interval(values, "mode")
    with pytest.raises(ValueError, match="N ≥ 1"):
        M.bootstrap_interval([])


def test_bad_clips_are_refused():
    clip = square_at(STEADY)
    with pytest.raises(ValueError, match="at least 3 frames, not 2"):
        M.jerk_px(clip[:, :, :2])
    with pytest.raises(ValueError, match=r"must be \(B, 3, T, H, W\)"):
        M.jerk_px(clip[0])
    with pytest.raises(ValueError, match="no clips"):
        M.area_flicker(clip[:0])
    with pytest.raises(ValueError, match="NaN"):
        M.jerk_px(M.pixels(clip) * float("nan"))


# ---------------------------------------------------------------- PSNR


def test_psnr_of_known_errors():
    a = torch.zeros(2, 3, 4, 8, 8)
    assert M.psnr(a, a + 0.2) == pytest.approx(20, abs=1e-3)  # 10 log10(2² / 0.2²)
    b = a.clone()
    b[1] += 0.2
    assert M.psnr(a, b, per_clip=True).tolist() == pytest.approx([100, 20], abs=1e-3)
    assert M.psnr(a, b) == pytest.approx(23.01, abs=0.01)  # mean error first, then the logarithm
    with pytest.raises(ValueError, match="differ in shape"):
        M.psnr(a, a[:1])


def test_black_flatters_psnr_but_not_the_foregrounds():
    x, _ = stack(SceneClips(12, "all", 5, SIMPLE_MOTIONS))
    black = torch.zeros_like(x)
    assert 14 < M.psnr(black, x) < 18 and M.foreground_psnr(black, x) < 8
    assert M.foreground_psnr(x, x) == pytest.approx(100)
    assert math.isfinite(M.foreground_psnr(black, black))


def test_foreground_psnr_looks_at_the_foreground_only():
    clip = M.pixels(square_at([(30, 20)] * 3))
    far = clip.clone()
    far[..., :10, :10] = 1.0  # wrong, but far from the square
    assert M.foreground_psnr(far, clip) == pytest.approx(100) and M.psnr(far, clip) < 30
    near = clip.clone()
    near[..., 21, 31] = -1.0
    assert M.foreground_psnr(near, clip) < 25


# ---------------------------------------------------------------- Fréchet


def test_frechet_against_the_closed_form():
    "For commuting covariances: |Δμ|² + Σ (σa - σb)²."
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator(), dtype=torch.float64))
    sa, sb = (
        torch.tensor([1.0, 2, 3, 0.5, 0]).double(),
        torch.tensor([2.0, 2, 0.1, 0.5, 1]).double(),
    )
    shift = torch.tensor([1.0, 0, -2, 0, 0.5]).double()
    got = M.gaussian_distance(torch.zeros(5).double(), q * sa**2 @ q.T, shift, q * sb**2 @ q.T)
    assert got == pytest.approx((shift.square().sum() + (sa - sb).square().sum()).item(), rel=1e-6)


def test_frechet_against_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    a = (
        torch.randn(200, 12, generator=generator(), dtype=torch.float64)
        @ torch.randn(12, 12, generator=generator(1)).double()
    )
    b = torch.randn(150, 12, generator=generator(2), dtype=torch.float64) * 2 + 1
    want = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()).item()
    assert M.frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert M.frechet_distance(a, b) == pytest.approx(M.frechet_distance(b, a), rel=1e-9)


def test_frechet_with_fewer_samples_than_dimensions():
    a, b = torch.randn(10, 40, generator=generator()), torch.randn(10, 40, generator=generator(1))
    assert M.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert 0 < M.frechet_distance(a, b) < 100


def test_frechet_of_few_samples_is_biased_upwards():
    d = [
        M.frechet_distance(
            torch.randn(n, 8, generator=generator(n)), torch.randn(n, 8, generator=generator(n + 1))
        )
        for n in (12, 100, 2000)
    ]
    assert d[0] > 3 * d[1] > 9 * d[2] > 0


def test_frechet_interval():
    a, b = (
        torch.randn(300, 4, generator=generator()),
        torch.randn(300, 4, generator=generator(1)) + 1,
    )
    low, high = M.frechet_interval(a, b)
    assert low < M.frechet_distance(a, b) < high and 0 < high - low < 3
    assert M.frechet_interval(a, b) == (low, high)
    few = M.frechet_interval(a[:30], b[:30])
    assert few[1] - few[0] > 1.5 * (high - low)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), "3 and 4 dimensions"),
        (torch.zeros(1, 3), torch.zeros(5, 3), "N ≥ 2"),
        (torch.full((5, 3), math.nan), torch.zeros(5, 3), "NaN"),
    ],
)
def test_frechet_refuses(a, b, message):
    with pytest.raises(ValueError, match=message):
        M.frechet_distance(a, b)


def test_feature_network():
    clips = torch.randint(0, 255, (5, 3, 2, 4, 4), generator=generator()).byte()
    net = M.FeatureNetwork(lambda x: x.mean((2, 3, 4)), "mean colour", batch=2)
    assert torch.allclose(net(clips), M.pixels(clips).mean((2, 3, 4))) and net.name == "mean colour"
    with pytest.raises(ValueError, match=r"must be \(5, D\)"):
        M.FeatureNetwork(lambda x: x, "raw")(clips)
    for name in ("FID", "fvd", "our FVD"):
        with pytest.raises(ValueError, match="mean one certain network"):
            M.FeatureNetwork(len, name)


# ---------------------------------------------------------------- nearest


def test_nearest_clip():
    real = torch.randint(0, 255, (21, 3, 4, 8, 8), generator=generator()).byte()
    made = M.pixels(real[[20, 3]]).clone()
    made[1] += 0.1 * (made[1] < 0)
    index, distance = M.nearest_clip(made, real, batch=8)
    assert index.tolist() == [20, 3] and distance[0] == 0
    assert distance[1].item() == pytest.approx(
        (0.01 * (M.pixels(real[[3]]) < 0).float().mean()).sqrt().item(), rel=1e-3
    )
    held = [Clip(r, "") for r in real]
    assert M.nearest_clip(made, held)[0].tolist() == [20, 3]
    with pytest.raises(ValueError, match="real ones"):
        M.nearest_clip(made, real[..., :4])
    with pytest.raises(ValueError, match="no real clips"):
        M.nearest_clip(made, real[:0])


# ---------------------------------------------------------------- the judge


class Reader:
    "A stand-in for a judge that reads what it was told."

    attributes = {"colour": ["blue", "red"], "motion": ["left", "right", "up"]}

    def __init__(self, read):
        self.read = read

    def predict(self, clips):
        return self.read


READ = [
    dict(colour="red", motion="up"),
    dict(colour="red", motion="left"),
    dict(colour="blue", motion="up"),
]
WANTED = [
    dict(colour="red", motion="up", fps=8),
    dict(colour="red", motion="up", fps=8),
    dict(colour="red", motion="up", fps=8),
]


def test_shares_are_counted_by_attribute_and_together():
    got = M.judge_clips(Reader(READ), torch.zeros(3, 3, 1, 8, 8), WANTED)
    assert got["n"] == 3 and got["all_right"] == pytest.approx(1 / 3)
    assert got["colour_right"] == pytest.approx(2 / 3) and got["motion_right"] == pytest.approx(
        2 / 3
    )
    assert got["all_right_interval"] == M.binomial_interval(1, 3) and "fps_right" not in got
    assert got["colour_right_interval"] == M.binomial_interval(2, 3)
    table = M.confusion(Reader(READ), torch.zeros(3, 3, 1, 8, 8), "motion", WANTED)
    assert table.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 2]]


def test_what_judging_refuses():
    clips = torch.zeros(3, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="3 clips, but 2 sets"):
        M.judge_clips(Reader(READ), clips, WANTED[:2])
    with pytest.raises(ValueError, match="knows no colour 'pink'; it knows blue, red"):
        M.judge_clips(Reader(READ), clips, [dict(w, colour="pink") for w in WANTED])
    with pytest.raises(ValueError, match="nothing to judge: the judge reads colour, motion"):
        M.judge_clips(Reader(READ), clips, [{}] * 3)


def test_wilson_interval():
    low, high = M.binomial_interval(90, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-3)  # the textbook's values
    assert M.binomial_interval(10, 10)[1] == 1 and 0.65 < M.binomial_interval(10, 10)[0] < 0.75
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            M.binomial_interval(*bad)


COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}


def two_attribute_clips(n, size=(32, 32), frames=6):
    "Squares of three colours that go left or right."
    out = []
    for i in range(n):
        colour, way = list(COLOURS)[i % 3], ("left", "right")[i // 3 % 2]
        x0, y0 = (int(v) for v in torch.randint(0, 8, (2,), generator=generator(i)))
        path = [
            (x0 + (2 * t if way == "right" else 2 * (frames - 1 - t)), y0) for t in range(frames)
        ]
        out.append(
            Clip(
                square_at(path, size=size, colour=COLOURS[colour])[0],
                "",
                attributes=dict(colour=colour, way=way, index=i),
            )
        )
    for c in out:
        del c.attributes["index"]
    return out


@pytest.fixture(scope="module")
def judged():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    judge = M.train_judge(two_attribute_clips(48), steps=80, width=8, batch=12)
    assert torch.equal(before, torch.get_rng_state()), "training consumed the global generator"
    return judge


def test_judge_learns_both_attributes(judged):
    assert judged.attributes == {"colour": ["blue", "green", "red"], "way": ["left", "right"]}
    held = two_attribute_clips(96)[48:]
    assert M.judge_clips(judged, held)["all_right"] >= 0.95
    still, wanted = (
        torch.stack([c.frames[:, 3:4].expand(-1, 6, -1, -1) for c in held]),
        [c.attributes for c in held],
    )
    got = M.judge_clips(judged, still, wanted)  # frozen: the colour is right, the way is not
    assert got["colour_right"] >= 0.95 and got["way_right"] <= 0.75


def test_judge_reads_any_size_and_length(judged):
    for clip in (
        torch.zeros(1, 3, 1, 48, 80),
        torch.zeros(1, 3, 21, 96, 96),
        torch.zeros(1, 3, 6, 16, 16, dtype=torch.uint8),
    ):
        assert set(judged.predict(clip)[0]) == {"colour", "way"}
        assert judged.features(M.pixels(clip)).shape == (1, 96)


def test_judge_training_repeats():
    clips = two_attribute_clips(12)
    a, b, c = (
        M.train_judge(clips, steps=3, width=4, batch=4, seed=s).state_dict() for s in (0, 0, 1)
    )
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


def test_judge_learns_the_autoencoders_handwriting():
    "Half of each batch are reconstructions: through an inverting codec, only a judge that saw it reads on."
    clips, held = two_attribute_clips(48), two_attribute_clips(60)[48:]

    class Inverse(torch.nn.Module):
        def forward(self, x):
            return -x

    coded = M.reconstructions(torch.stack([c.frames for c in held]), Inverse())
    wanted = [c.attributes for c in held]
    seen, unseen = (
        M.train_judge(clips, steps=80, width=8, batch=12, autoencoder=a) for a in (Inverse(), None)
    )
    assert (
        M.judge_clips(seen, coded, wanted)["colour_right"]
        >= 0.9
        > M.judge_clips(unseen, coded, wanted)["colour_right"]
    )


def test_judge_saved_and_loaded(judged, tmp_path):
    judged.save_pretrained(tmp_path)
    again = M.Judge.from_pretrained(tmp_path)
    x = torch.stack([c.frames for c in two_attribute_clips(6)])
    assert again.attributes == judged.attributes and again.predict(x) == judged.predict(x)
    assert torch.equal(again.features(M.pixels(x)), judged.features(M.pixels(x)))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        M.Judge.from_pretrained(tmp_path / "nowhere")


def test_judge_needs_attributes():
    with pytest.raises(ValueError, match="no attributes that a judge could learn"):
        M.train_judge([Clip(torch.zeros(3, 2, 8, 8).byte(), "")], steps=1)
    with pytest.raises(ValueError, match="no clips"):
        M.train_judge([], steps=1)
    values = M.attribute_values(
        [
            Clip(torch.zeros(1), "", attributes=dict(a=2, b=1)),
            Clip(torch.zeros(1), "", attributes=dict(a=1)),
        ]
    )
    assert values == {"a": [1, 2]}
