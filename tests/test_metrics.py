"""Metrics on clips whose score is known, and the report made of them."""

import json
import math

import pytest
import torch
from helpers.metrics import FALLING, STEADY, generator, square_at

from minisora import metrics
from minisora.clips import OBJECTS, SIMPLE_MOTIONS, SceneClips
from minisora.data.video import stack_clips
from minisora.evaluation.features import FEATURE_EXTRACTORS, FeatureExtractor
from minisora.evaluation.foreground import as_pixels, foreground_track
from minisora.evaluation.frechet import (
    extrapolated,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    precision_recall,
)
from minisora.evaluation.judge import AttributeClassifier
from minisora.evaluation.samples import GeneratedClips, generate_clips
from minisora.metrics import (
    format_report,
    area_flicker,
    evaluate,
    foreground_psnr,
    gaussian_frechet,
    jerk_px,
    psnr,
    shape_iou,
    shape_measures,
)


# ---------------------------------------------------------------- motion


def test_jerk():
    assert jerk_px(square_at(STEADY)) < 1e-3
    assert jerk_px(square_at(FALLING)) == pytest.approx(2, abs=1e-3)
    three = torch.cat([square_at(STEADY[:6]), square_at(FALLING), square_at(FALLING)])
    assert jerk_px(three) == pytest.approx(2, abs=1e-3)  # the median
    assert jerk_px(three, per_clip=True).tolist() == pytest.approx([0, 2, 2], abs=1e-3)


def test_flicker():
    assert area_flicker(square_at(STEADY)) < 1e-4
    blink = square_at(STEADY).float()
    blink[:, :, 1::2] *= 0.5
    half = math.log((1 - 0.1) / (0.5 - 0.1))  # the threshold takes 0.1 off both
    assert area_flicker(blink.byte()) == pytest.approx(2 * half, rel=0.05)


def test_empty_clips_get_the_worst_score_and_no_nan():
    empty = square_at([None] * 7)
    gone = square_at(STEADY[:4] + [None] * 3)
    assert jerk_px(empty) == 80 and area_flicker(empty) == pytest.approx(math.log(48 * 80))
    assert jerk_px(gone) > 1 and area_flicker(gone) > 0.5
    at, mass, _ = foreground_track(gone)
    assert torch.isfinite(at).all() and torch.isfinite(mass).all() and mass.min() > 0
    assert evaluate(torch.cat([empty, gone, square_at(STEADY)]))["empty"] == 2


def test_real_scenes_are_smooth():
    x, _ = stack_clips(SceneClips(24, "all", 5, SIMPLE_MOTIONS))
    m = evaluate(x)
    assert m["jerk_px"] < 0.06 and m["area_flicker"] < 0.012 and m["empty"] == 0 and m["n"] == 24
    assert m["jerk_px"] == jerk_px(x) and m["area_flicker"] == pytest.approx(area_flicker(x))
    for k in ("jerk_px", "area_flicker", "empty"):
        low, high = m[f"{k}_interval"]
        assert low <= m[k] <= high and low < high
    again = evaluate(SceneClips(24, "all", 5, SIMPLE_MOTIONS), batch=7)
    assert (
        again["area_flicker_interval"] == pytest.approx(m["area_flicker_interval"])
        and again["n"] == 24
    )


def test_bad_clips_are_refused():
    clip = square_at(STEADY)
    with pytest.raises(ValueError, match="at least 3 frames, not 2"):
        jerk_px(clip[:, :, :2])
    with pytest.raises(ValueError, match=r"must be \(B, 3, T, H, W\)"):
        jerk_px(clip[0])
    with pytest.raises(ValueError, match="no clips"):
        area_flicker(clip[:0])
    with pytest.raises(ValueError, match="NaN"):
        jerk_px(as_pixels(clip) * float("nan"))


# ---------------------------------------------------------------- PSNR


def test_psnr_of_known_errors():
    a = torch.zeros(2, 3, 4, 8, 8)
    assert psnr(a, a + 0.2) == pytest.approx(20, abs=1e-3)  # 10 log10(2² / 0.2²)
    b = a.clone()
    b[1] += 0.2
    assert psnr(a, b, per_clip=True).tolist() == pytest.approx([100, 20], abs=1e-3)
    assert psnr(a, b) == pytest.approx(23.01, abs=0.01)  # mean error first, then the logarithm
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(a, a[:1])


def test_black_flatters_psnr_but_not_the_foregrounds():
    x, _ = stack_clips(SceneClips(12, "all", 5, SIMPLE_MOTIONS))
    black = torch.zeros_like(x)
    assert 14 < psnr(black, x) < 18 and foreground_psnr(black, x) < 8
    assert foreground_psnr(x, x) == pytest.approx(100)
    assert math.isfinite(foreground_psnr(black, black))


def test_foreground_psnr_looks_at_the_foreground_only():
    clip = as_pixels(square_at([(30, 20)] * 3))
    far = clip.clone()
    far[..., :10, :10] = 1.0  # wrong, but far from the square
    assert foreground_psnr(far, clip) == pytest.approx(100) and psnr(far, clip) < 30
    near = clip.clone()
    near[..., 21, 31] = -1.0
    assert foreground_psnr(near, clip) < 25


# ---------------------------------------------------------------- shapes


def test_each_drawn_object_fits_its_own_shape_best():
    clips = SceneClips(36, "all", 5, ("left",))
    named = [clips[i].attributes["object"] for i in range(36)]
    assert set(named) == set(OBJECTS)
    fit = shape_iou(stack_clips(clips)[0])
    assert fit.shape == (36, 6) and 0 <= fit.min() and fit.max() <= 1
    own = fit[range(36), [OBJECTS.index(name) for name in named]]
    assert own.min() > 0.85 and torch.equal(own, fit.amax(1))
    found = shape_measures(clips, named, batch=7)
    assert found["shape_right"] == 1 and found["shape_overlap"] == pytest.approx(own.mean().item())
    other = named[1:] + named[:1]
    expected = sum(a == b for a, b in zip(named, other)) / 36
    assert shape_measures(clips, other)["shape_right"] == pytest.approx(expected) and expected < 1


def test_a_shape_does_not_depend_on_size_and_place_and_nothing_fits_nothing():
    clips = [square_at([(9, 9)] * 4, side=8), square_at([(50, 30)] * 4, side=15)]
    small, large = (shape_iou(clip)[0] for clip in clips)
    square = OBJECTS.index("square")
    assert small.argmax() == large.argmax() == square
    assert small[square] > 0.9 and large[square] > 0.9
    assert shape_iou(square_at([None] * 4)).max() == 0


def test_what_shapes_refuse():
    clip = square_at([(9, 9)] * 4)
    with pytest.raises(ValueError, match="object must be one of 'ball'.*not 'stair'"):
        shape_measures(clip, ["stair"])
    with pytest.raises(ValueError, match="1 clips, but 2 objects"):
        shape_measures(clip, ["star", "star"])


# ---------------------------------------------------------------- Fréchet


def test_frechet_against_the_closed_form():
    "For commuting covariances: |Δμ|² + Σ (σa - σb)²."
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator(), dtype=torch.float64))
    sa = torch.tensor([1.0, 2, 3, 0.5, 0]).double()
    sb = torch.tensor([2.0, 2, 0.1, 0.5, 1]).double()
    shift = torch.tensor([1.0, 0, -2, 0, 0.5]).double()
    got = gaussian_frechet(torch.zeros(5).double(), q * sa**2 @ q.T, shift, q * sb**2 @ q.T)
    assert got == pytest.approx((shift.square().sum() + (sa - sb).square().sum()).item(), rel=1e-6)


# ---------------------------------------------------------------- the report


class Reader:
    attributes = {"motion": sorted(SIMPLE_MOTIONS)}

    def predict(self, clips):
        return [dict(motion="left")] * len(clips)


def test_report(tmp_path):
    real, made = (SceneClips(24, "all", s, SIMPLE_MOTIONS) for s in (1, 2))
    samples = generate_clips(
        tmp_path, lambda i: torch.stack([made[k].frames for k in i]), 24, batch=10
    )
    colour = FeatureExtractor(lambda x: x.mean((2, 3, 4)), "mean colour")
    wanted = [made[i].attributes for i in range(24)]
    got = evaluate(samples, real, Reader(), wanted, [colour], k=3)
    assert got["n"] == 24 and got["motion_right"] == pytest.approx(
        sum(w["motion"] == "left" for w in wanted) / 24
    )
    assert (
        got["jerk_px"] == jerk_px(torch.stack([c.frames for c in samples]))
        and got["real"]["n"] == 24
    )
    f = got["Fréchet distance, mean colour"]
    a = colour(real)
    b = colour(samples)
    assert f["frechet"] == frechet_distance(a, b) and f["dimensions"] == 3 and f["k"] == 3
    assert f["frechet_interval"] == frechet_interval(a, b, 30)
    assert (f["precision"], f["recall"]) == tuple(precision_recall(a, b, 3).values())
    assert json.loads(json.dumps(got)).keys() == got.keys()
    lines = format_report(got).splitlines()
    assert any(x.startswith("all_right") and "[" in x for x in lines) and "real" in lines
    assert not any("interval" in x for x in lines) and any(
        x.startswith("  frechet ") for x in lines
    )


def test_report_needs(tmp_path):
    x = torch.zeros(2, 3, 4, 8, 8).byte()
    with pytest.raises(ValueError, match="real=…"):
        evaluate(x, networks=[FeatureExtractor(len, "n")])
    with pytest.raises(ValueError, match="wanted=…"):
        evaluate(x, judge=Reader())
    assert evaluate(x)["empty"] == 2


def test_a_report_as_text():
    """A line per number, parts last, further in; an interval in brackets; text and whole numbers
    as they are."""
    report = dict(part=dict(k=5), n=3, jerk_px=0.123456, jerk_px_interval=(0.1, 0.2))
    assert format_report(report).splitlines() == [
        "n                                 3",
        "jerk_px                      0.1235  [0.1, 0.2]",
        "part",
        "  k                               5",
    ]


# ---------------------------------------------------------------- version 0.1

# what `minisora.metrics.__all__` listed there
EARLIER = """
JUDGE INCEPTION NETWORKS pixels some pairs foreground traces centroid_and_mass empty_frames
bootstrap_interval binomial_interval second_difference motion_of jerk_px area_flicker
motion_measures ideal_shapes shape_overlap shape_measures decibels psnr foreground_mask
foreground_psnr object_boxes glances layer Judge attribute_values class_ids spoil reconstructions
train_judge judge_clips confusion checked_features two_sets mean_and_covariance gaussian_distance
mean_and_root frechet_distance FeatureNetwork judge_network shipped_judge_network eyes_network
settings_kept transnet_network inception_weights inception_network frechet_extrapolated
frechet_interval distances nearest_radii ball_counts precision_recall density_coverage
nearest_clip same_settings write_clips read_clips Samples generate_clips feature_measures measure
report_lines
""".split()


@pytest.mark.filterwarnings("ignore:minisora.metrics")
@pytest.mark.parametrize("name", EARLIER)
def test_a_name_of_version_0_1_is_still_there(name):
    assert callable(getattr(metrics, name)) or name in ("JUDGE", "INCEPTION", "NETWORKS")


@pytest.mark.filterwarnings("ignore:minisora.metrics")
def test_names_of_version_0_1_do_what_they_did():
    assert metrics.Judge is AttributeClassifier and metrics.Samples is GeneratedClips
    assert metrics.NETWORKS is FEATURE_EXTRACTORS
    at, mass = metrics.centroid_and_mass(square_at(STEADY))
    track = foreground_track(square_at(STEADY))
    assert at.equal(track.centroid) and mass.equal(track.mass)
    assert metrics.empty_frames(square_at(STEADY)).equal(track.empty)
    report = metrics.measure(square_at(STEADY))
    assert report == evaluate(square_at(STEADY)) == metrics.motion_measures(square_at(STEADY))
    assert "\n".join(metrics.report_lines(report)) == format_report(report)


def test_an_earlier_name_warns_and_a_wrong_one_is_refused():
    with pytest.warns(
        DeprecationWarning, match="minisora.metrics.decibels is now minisora.metrics.mse_to_psnr"
    ):
        assert metrics.decibels is metrics.mse_to_psnr
    with pytest.raises(AttributeError, match="no attribute 'decibel'"):
        metrics.decibel


# ---------------------------------------------------------------- nothing that flatters


def looks(x):
    """Features of a network that does not know black: constant for an empty clip, inside the real
    ones."""
    seen = x.std((2, 3, 4))
    return torch.where(seen > 0.01, seen, torch.full_like(seen, 0.12))


EMPTY = {
    "black": -1.0,
    "white": 1.0,
    "gray": 0.1,
    "gray with the noise of a codec": 0.1
    + 0.01 * torch.randn(24, 3, 6, 32, 32, generator=generator()),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("count", [24, 23, 12])
def test_empty_clips_are_outside(name, count):
    x = torch.full((24, 3, 6, 32, 32), -1.0)
    g = generator()
    for clip in x:
        side = int(torch.randint(6, 14, (), generator=g))
        clip[:, :, 8 : 8 + side, 8 : 8 + side] = torch.rand(3, 1, 1, 1, generator=g)
    made = x.clone()
    value = EMPTY[name]
    made[:count] = value if isinstance(value, float) else value[:count]
    network = FeatureExtractor(looks, "looks")
    found = evaluate(made, x, networks=[network], k=3)[network.distance_name]
    share = 1 - count / 24
    assert found["precision"] <= share and found["coverage"] <= share * 4
    assert found["density"] <= share * 2
    if share == 0:
        assert found["precision"] == found["density"] == found["recall"] == found["coverage"] == 0
    whole = evaluate(x, x, networks=[network], k=3)[network.distance_name]
    assert whole["precision"] == whole["recall"] == whole["coverage"] == 1


@pytest.mark.parametrize("n, dimensions", [(16, 192), (24, 192), (100, 192), (20, 64), (15, 4)])
def test_too_few_clips_to_extrapolate_are_said(n, dimensions):
    g = generator()
    a, b = (torch.randn(n, dimensions, generator=g).exp() for _ in range(2))
    assert extrapolated(a, b) is None
    report = dict(judge=dict(frechet=3.0, frechet_extrapolated=extrapolated(a, b)))
    line = format_report(report).splitlines()[-1]
    assert line.split(maxsplit=1) == ["frechet_extrapolated", "too few"]


def test_enough_clips_to_extrapolate():
    g = generator()
    a, b = (torch.randn(400, 16, generator=g) + shift for shift in (0, 0.5))
    assert extrapolated(a, b) == pytest.approx(frechet_infinity(a, b))
    assert extrapolated(a, b) == pytest.approx(4, abs=0.5)
    alike = [extrapolated(*torch.randn(2, 200, 16, generator=g)) for _ in range(8)]
    assert all(found is None or found >= 0 for found in alike) and any(f == 0 for f in alike)
