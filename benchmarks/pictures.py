"""Pictures that scripts leave in nbs/images and beside their figures."""

from PIL import Image


def save_small(picture, file):
    "A picture as a PNG of 128 colors, small enough for a lesson."
    picture.convert("RGB").quantize(128).save(file, optimize=True)


def stack_pictures(pictures, axis="down"):
    "Pictures below each other, or with axis='across' beside each other, as one picture."
    wide = [picture.width for picture in pictures]
    high = [picture.height for picture in pictures]
    down = axis == "down"
    size = (max(wide), sum(high)) if down else (sum(wide), max(high))
    whole = Image.new("RGB", size)
    for i, picture in enumerate(pictures):
        whole.paste(picture, (0, sum(high[:i])) if down else (sum(wide[:i]), 0))
    return whole
