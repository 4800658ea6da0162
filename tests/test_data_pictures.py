"""Pictures: cropped to any shape, averaged down, turned upright, transparency over black."""

import numpy as np
import pytest
from helpers.clips import quarters
from PIL import Image

from minisora.data.pictures import crop_anchor, resize_crop
from minisora.data.video import read_video


def test_shrinking_averages():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_crop(stripes, 16)[4:12, 4:12].astype(int)) <= 8
    ramp = np.tile(np.arange(0, 200, 5, dtype=np.uint8), (40, 1))  # 5 a pixel, then 6.25 a pixel
    assert set(np.diff(resize_crop(ramp, 32)[16, 2:-2, 0].astype(int))) <= {6, 7}


def test_a_transparent_color_of_a_palette_lies_over_black(tmp_path):
    picture = Image.fromarray(np.repeat(np.arange(2, dtype=np.uint8), 16)[None].repeat(32, 0), "P")
    picture.putpalette([200, 150, 100, 250, 250, 250])
    picture.save(tmp_path / "x.png", transparency=1)  # the right half is not there
    got = read_video(tmp_path / "x.png", 1, 32).frames
    assert got[0, 0, 0, 3] == 200 and got[..., 17:].max() == 0


def test_the_center_crop_is_what_it_was():
    "A square in the center: against PIL asked for it by hand."
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 255, (45, 71, 3), np.uint8)
    by_hand = Image.fromarray(image).resize(
        (16, 16), Image.BICUBIC, box=(13, 0, 58, 45), reducing_gap=2
    )
    assert (resize_crop(image, 16) == np.asarray(by_hand)).all()
    assert (resize_crop(image, (16, 16)) == np.asarray(by_hand)).all()
    assert (resize_crop(image, (45, 71)) == image).all()


def test_crops_keep_the_aspect():
    "A circle stays a circle in any shape, also where stored pixels are not square."
    yy, xx = np.mgrid[0:80, 0:80]
    disc = ((np.hypot(yy - 39.5, xx - 39.5) < 14) * 255).astype(np.uint8)
    for shape, aspect in (((40, 64), 1.0), ((64, 24), 1.0), ((40, 40), 2.0)):
        stored = disc if aspect == 1 else disc[:, ::2]
        out = resize_crop(stored, shape, aspect)[..., 0] > 127
        assert out.shape == shape
        h, w = np.ptp(np.nonzero(out)[0]) + 1, np.ptp(np.nonzero(out)[1]) + 1
        assert abs(h - w) <= 1 and h > 12


def test_an_anchor_moves_the_crop():
    x = quarters()
    left, centre, right = (resize_crop(x, 40, anchor=(0.5, p))[20, 20, 0] for p in (0, 0.5, 1))
    assert left < centre < right and abs(left - 80) < 6 and abs(right - 160) < 6
    top, bottom = (resize_crop(x, (20, 60), anchor=(p, 0.5))[10, 30, 1] for p in (0, 1))
    assert abs(top - 60) < 8 and abs(bottom - 180) < 8


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: resize_crop(quarters(), 0), "size must be"),
        (lambda: resize_crop(quarters(), (8, 8, 8)), "size must be"),
        (lambda: resize_crop(quarters(), 7.5), "size must be"),
        (lambda: crop_anchor("middle"), "crop must be"),
        (lambda: crop_anchor((0.5, 2)), "crop must be"),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError) as e:
        call()
    assert words in str(e.value) and "\n" not in str(e.value)


def test_the_middle_is_the_middle_in_both_spellings():
    assert crop_anchor("center") == crop_anchor("centre") == (0.5, 0.5)
