"""Pictures of one shade, packed into files and tars."""

import io
import tarfile

import numpy as np
from PIL import Image


def grey(level, h=20, w=30):
    return Image.fromarray(np.full((h, w), level, np.uint8))


def packed(picture, kind="PNG"):
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()


def write_tar(path, parts, mode="w"):
    "A tar file of {name: bytes}."
    with tarfile.open(path, mode) as tar:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path
