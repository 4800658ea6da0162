"""Captioned clips: procedural scenes, moving digits, folders of video files, Hugging Face `datasets`"""
import csv, difflib, io, json, math, os, re, statistics
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
import av
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

@dataclass(frozen=True)
class Clip:
    """One captioned clip, whatever it came from.

    `frames` is uint8 (3, T, H, W); `fps` is frames per second; `source` says where it came from (a file's path,
    'scene:seed:i'); `attributes` holds what is known of it, such as {'object': 'ring', 'motion': 'left'}."""
    frames: torch.Tensor
    caption: str
    fps: float = 8.0
    source: str = ''
    attributes: dict = field(default_factory=dict)

def to_float(frames):
    "uint8 pixels 0…255 to float32 in [-1, 1], any shape."
    if frames.dtype != torch.uint8: raise ValueError(f'pixels must be uint8, not {frames.dtype}')
    return frames.float() / 127.5 - 1

def to_uint8(x):
    "Float pixels in [-1, 1] to uint8, any shape; what lies outside is clamped."
    if not x.is_floating_point(): raise ValueError(f'pixels must be float, not {x.dtype}')
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

def stack(clips):
    "Clips (or a whole dataset of them) to uint8 frames (B, 3, T, H, W) and the list of their captions."
    clips = [clips[i] for i in range(len(clips))]
    shapes = {tuple(c.frames.shape) for c in clips}
    if len(shapes) != 1: raise ValueError(f'clips must be of one shape to stack, found {sorted(shapes) or "none"}')
    return torch.stack([c.frames for c in clips]), [c.caption for c in clips]

OBJECTS = ('ball', 'square', 'triangle', 'ring', 'cross', 'star')
COLOURS = {'red': (235, 60, 50), 'green': (60, 200, 80), 'blue': (60, 110, 250),
           'yellow': (250, 220, 60), 'purple': (185, 80, 230), 'white': (240, 240, 240)}
MOTIONS = ('left', 'right', 'up', 'down', 'grow', 'shrink', 'orbit', 'bounce', 'swing')
SIMPLE_MOTIONS = MOTIONS[:6]
VERBS = {'left': 'moves left', 'right': 'moves right', 'up': 'moves up', 'down': 'moves down', 'grow': 'grows',
         'shrink': 'shrinks', 'orbit': 'orbits', 'bounce': 'bounces', 'swing': 'swings'}

def scene_caption(obj, colour, motion):
    "('ring', 'red', 'left') to 'a red ring moves left'."
    return f'a {colour} {obj} {VERBS[motion]}'

def polygon_distance(x, y, points):
    "Signed distance to a polygon, negative inside; `x`, `y` arrays of one shape (Quilez, 2D distance functions)."
    d, s = np.full(x.shape, np.inf), np.ones(x.shape)
    for (ax, ay), (bx, by) in zip(points, points[-1:] + points[:-1]):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        h = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)    # the nearest point of this edge
        d = np.minimum(d, (wx - ex * h) ** 2 + (wy - ey * h) ** 2)
        c1, c2, c3 = y >= ay, y < by, ex * wy > ey * wx                 # does a ray to the right cross it?
        s = np.where((c1 & c2 & c3) | (~c1 & ~c2 & ~c3), -s, s)
    return s * np.sqrt(d)

def ngon(n, inner=None, turn=-math.pi / 2):
    "Corner points of a regular n-gon or, with radius `inner`, of an n-pointed star; outer radius 1."
    k = n if inner is None else 2 * n
    radius = [1.0 if inner is None or i % 2 == 0 else inner for i in range(k)]
    angle = [turn + 2 * math.pi * i / k for i in range(k)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radius, angle)]

def signed_distance(obj, x, y):
    "Signed distance, negative inside, to a shape of about radius 1 at the origin; `x`, `y` of one shape."
    if obj == 'ball': return np.hypot(x, y) - 0.9
    if obj == 'ring': return np.abs(np.hypot(x, y) - 0.72) - 0.25
    if obj == 'square': return np.maximum(np.abs(x), np.abs(y)) - 0.8
    if obj == 'cross':
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1.0, ay - 0.32), np.maximum(ax - 0.32, ay - 1.0))
    if obj == 'triangle': return polygon_distance(x, y, ngon(3))
    if obj == 'star': return polygon_distance(x, y, ngon(5, 0.45))
    raise ValueError(f'unknown object {obj!r}; known: {", ".join(OBJECTS)}')

def trajectory(motion, rng, frames=16, scale=1.):
    """Centre x, centre y and radius in each frame, (T,) each, in units of the frame's side (y points down).

    `rng` draws where it starts, how far it goes and how large it is (times `scale`); it never leaves the frame."""
    if motion not in MOTIONS: raise ValueError(f'unknown motion {motion!r}; known: {", ".join(MOTIONS)}')
    s, one = np.linspace(0, 1, frames), np.ones(frames)
    r = rng.uniform(.14, .19) * scale
    if motion in ('left', 'right', 'up', 'down'):
        d = rng.uniform(.30, .50)
        a, b = .5 + rng.uniform(-1, 1) * (.5 - d / 2 - r), .5 + rng.uniform(-1, 1) * (.5 - r)
        run = a + d * (s - .5) * (1 if motion in ('right', 'down') else -1)
        return (run, b * one, r * one) if motion in ('left', 'right') else (b * one, run, r * one)
    if motion in ('grow', 'shrink'):
        lo, hi = rng.uniform(.07, .10), rng.uniform(.22, .28)
        x, y = .5 + rng.uniform(-1, 1, 2) * (.5 - hi)
        return x * one, y * one, lo + (hi - lo) * (s if motion == 'grow' else 1 - s)
    return periodic(motion, rng, s, r)

def periodic(motion, rng, s, r):
    "The three motions that come back to where they began: orbit, bounce and swing; see `trajectory`."
    one, turn = np.ones(len(s)), 2 * math.pi * s
    if motion == 'orbit':
        R, p, r = rng.uniform(.18, .26), rng.uniform(0, 2 * math.pi), r * .8
        cx, cy = .5 + rng.uniform(-1, 1, 2) * (.5 - R - r)
        return cx + R * np.cos(p + turn), cy + R * np.sin(p + turn), r * one
    if motion == 'bounce':
        h, x = rng.uniform(.30, .45), .5 + rng.uniform(-1, 1) * (.5 - r)
        floor = 1 - r - rng.uniform(0, .08)
        return x * one, floor - h * np.abs(np.cos(turn)), r * one
    A, y, p = rng.uniform(.15, .25), .5 + rng.uniform(-1, 1) * (.5 - r), rng.choice([0, math.pi])
    cx = .5 + rng.uniform(-1, 1) * (.5 - A - r)
    return cx + A * np.sin(p + turn), y * one, r * one

def render_scene(obj, colour, motion, seed=0, frames=16, size=64):
    """A procedural scene, uint8 (3, T, H, W), antialiased, on black: a pure function of its arguments.

    `seed` is anything that `np.random.default_rng` takes, such as [seed, i]."""
    if colour not in COLOURS: raise ValueError(f'unknown colour {colour!r}; known: {", ".join(COLOURS)}')
    cx, cy, r = (a[:, None, None] for a in trajectory(motion, np.random.default_rng(seed), frames))  # (T, 1, 1)
    g = (np.arange(size) + .5) / size                                   # pixel centres
    x, y = np.broadcast_arrays((g - cx) / r, (g[:, None] - cy) / r)     # (T, H, W), in radii
    cover = np.clip(.5 - signed_distance(obj, x, y) * r * size, 0, 1)   # (T, H, W), the part of a pixel that is inside
    rgb = np.array(COLOURS[colour]).reshape(3, 1, 1, 1)
    return torch.from_numpy(np.round(cover * rgb).astype(np.uint8))     # (3, T, H, W)

def combinations(objects, split='train', motions=MOTIONS, stride=6):
    """All (object, colour, motion) of a split: 'train', 'heldout' or 'all'.

    One combination in ten is held out, spread evenly: each object, colour and motion is still trained on."""
    if split not in ('train', 'heldout', 'all'):
        raise ValueError(f"split must be 'train', 'heldout' or 'all', not {split!r}")
    unknown = [m for m in motions if m not in MOTIONS]
    if unknown: raise ValueError(f'unknown motion {unknown[0]!r}; known: {", ".join(MOTIONS)}')
    out = []
    for i, o in enumerate(objects):
        for j, c in enumerate(COLOURS):
            for k, m in enumerate(MOTIONS):
                held = (stride * i + j + 3 * k) % 10 == 0
                if m in motions and (split == 'all' or held == (split == 'heldout')): out.append((o, c, m))
    return out

def scene_combinations(split='train', motions=MOTIONS):
    "All (object, colour, motion) of the procedural scenes in a split; see `combinations`."
    return combinations(OBJECTS, split, motions)

class SceneClips(torch.utils.data.Dataset):
    "`n` procedural scenes of a split ('train', 'heldout', 'all'); item i is a pure function of (seed, i)."
    def __init__(self, n, split='train', seed=0, motions=MOTIONS, frames=16, size=64):
        self.n, self.combos, self.seed = n, scene_combinations(split, motions), seed
        self.frames, self.size = frames, size

    def __len__(self): return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n: raise IndexError(f'clip {i} of {self.n}')
        o, c, m = self.combos[i % len(self.combos)]
        frames = render_scene(o, c, m, [self.seed, i], self.frames, self.size)
        return Clip(frames, scene_caption(o, c, m), 8.0, f'scene:{self.seed}:{i}', dict(object=o, colour=c, motion=m))

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

def load_digits(path='hub', split='train'):
    """Digit images uint8 (N, H, W) and labels int64 (N,): from an .npz file that holds `train_images`,
    `train_labels`, `test_images`, `test_labels`, or, with path 'hub', MNIST through Hugging Face `datasets`."""
    if path == 'hub':
        from datasets import load_dataset
        rows = load_dataset('ylecun/mnist', split=split)
        return np.stack([np.asarray(i) for i in rows['image']]), np.array(rows['label'])
    if not Path(path).is_file(): raise FileNotFoundError(f'no digits at {path}')
    with np.load(path, allow_pickle=False) as f:
        missing = [k for k in (f'{split}_images', f'{split}_labels') if k not in f]
        if missing: raise ValueError(f'{path} has no array {missing[0]!r}; it has: {", ".join(f)}')
        return f[f'{split}_images'], f[f'{split}_labels'].astype(np.int64)

def render_image(image, colour, motion, seed=0, frames=16, size=64, margin=.1):
    """A grey image uint8 (h, w) tinted and moved like a scene: uint8 (3, T, H, W), antialiased, on black.

    The part of the image inside `margin` (on each side) fills the square that holds the scene's shape."""
    if colour not in COLOURS: raise ValueError(f'unknown colour {colour!r}; known: {", ".join(COLOURS)}')
    cx, cy, r = (torch.from_numpy(a).float() for a in trajectory(motion, np.random.default_rng(seed), frames, 1.25))
    k, zero = (1 - 2 * margin) / (2 * r), torch.zeros(frames)           # image side / frame side
    theta = torch.stack([k, zero, k * (1 - 2 * cx), zero, k, k * (1 - 2 * cy)], -1).view(frames, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, (frames, 1, 3 * size, 3 * size), align_corners=False)
    x = torch.as_tensor(image).float().expand(frames, 1, *image.shape)  # (T, 1, h, w)
    x = torch.nn.functional.grid_sample(x, grid, align_corners=False)   # (T, 1, 3H, 3W): nine samples a pixel
    cover = torch.nn.functional.avg_pool2d(x, 3)[:, 0] / 255            # (T, H, W)
    rgb = torch.tensor(COLOURS[colour]).view(3, 1, 1, 1)
    return (cover * rgb).round().to(torch.uint8)                        # (3, T, H, W)

class DigitClips(torch.utils.data.Dataset):
    """`n` clips of moving images, such as MNIST digits: colour × label × motion, one in ten combinations held out.

    `images` uint8 (N, h, w) and `labels` (N,) are any arrays; label k is called `names[k]`. Item i is a pure
    function of (seed, i). Captions are like 'a red three moves left'; the label's name is `attributes['object']`."""
    def __init__(self, images, labels, n, split='train', seed=0, motions=MOTIONS, frames=16, size=64, names=DIGITS):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ValueError(f'images must be uint8 (N, h, w), not {images.dtype} {images.shape}')
        if labels.shape != images.shape[:1]:
            raise ValueError(f'{len(images)} images need as many labels, not {labels.shape}')
        found = set(labels.tolist())
        if not found <= set(range(len(names))):
            raise ValueError(f'label {max(found - set(range(len(names))))} has no name: {len(names)} names are given')
        self.images, self.n, self.seed, self.frames, self.size = images, n, seed, frames, size
        self.where = {names[k]: np.flatnonzero(labels == k) for k in found}
        self.combos = [c for c in combinations(names, split, motions, stride=7) if c[0] in self.where]

    def __len__(self): return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n: raise IndexError(f'clip {i} of {self.n}')
        o, c, m = self.combos[i % len(self.combos)]
        which = int(np.random.default_rng([self.seed, i, 1]).choice(self.where[o]))
        frames = render_image(self.images[which], c, m, [self.seed, i], self.frames, self.size)
        return Clip(frames, scene_caption(o, c, m), 8.0, f'digit:{which}:{self.seed}:{i}',
                    dict(object=o, colour=c, motion=m))

def square(image, size, aspect=1.0):
    """One picture, uint8 (H, W, 3 or 4) or (H, W), to uint8 (size, size, 3): centre crop, antialiased resize.

    Transparent pixels are laid over black. `aspect` is the width of a stored pixel over its height."""
    image = np.asarray(image)
    if image.ndim == 2: image = np.stack([image] * 3, -1)
    if image.shape[-1] == 4:                                            # colour × alpha, over black
        image = np.round(image[..., :3] * (image[..., 3:] / 255)).astype(np.uint8)
    h, w = image.shape[:2]
    ch, cw = min(h, w * aspect), min(w, h / aspect)                     # the largest centred square, as stored
    box = ((w - cw) / 2, (h - ch) / 2, (w + cw) / 2, (h + ch) / 2)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC, box=box, reducing_gap=2))

def time_span(container, stream):
    """First moment and end of a video in seconds, from the time-stamps of its packets, and the rate of a video that
    has no time-stamps (else None). The header is not asked: its duration may be missing or wrong."""
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    stamps, unit = sorted(p.pts for p in packets if p.pts is not None), float(stream.time_base or 1)
    if len(stamps) < len(packets):
        rate = float(stream.average_rate or 25)
        return 0., len(packets) / rate, rate
    if not stamps: raise ValueError('it holds no pictures')
    steps = [b - a for a, b in zip(stamps, stamps[1:]) if b > a]
    step = statistics.median(steps) if steps else 1 / (float(stream.average_rate or 25) * unit)
    return stamps[0] * unit, (stamps[-1] + step) * unit, None

def decoder(stream):
    "A function from packet to frames; VP8/VP9 with an alpha channel needs libvpx, ffmpeg's own decoder drops it."
    name = {'vp8': 'libvpx', 'vp9': 'libvpx-vp9'}.get(stream.codec_context.name)
    if stream.metadata.get('alpha_mode') == '1' and name in av.codecs_available:
        return av.CodecContext.create(name, 'r').decode
    stream.thread_type = 'AUTO'
    return stream.decode

def shown_at(container, stream, times, rate=None):
    "For each of the rising `times` (s), the frame on screen at that moment. Only one frame is held at a time."
    decode = decoder(stream)
    frames = (f for p in container.demux(stream) for f in decode(p))
    k, shown, stamp = 0, None, -math.inf
    for i, frame in enumerate(frames):
        if rate: stamp = i / rate
        elif frame.pts is not None: stamp = float(frame.pts * stream.time_base)
        while shown is not None and k < len(times) and stamp > times[k] + 1e-6:
            yield shown
            k += 1
        shown = frame
    if shown is None: raise ValueError('no frame could be decoded')
    for _ in times[k:]: yield shown

def pixels(frame):
    "A PyAV frame to uint8 (H, W, 3), or (H, W, 4) where it has transparency."
    alpha = any(c.is_alpha for c in frame.format.components) or frame.format.name == 'pal8'
    return frame.to_ndarray(format='rgba' if alpha else 'rgb24')

def upright(frame, size, aspect=1.0):
    "A PyAV frame to uint8 (size, size, 3), turned the way the camera's rotation note asks for."
    return np.rot90(square(pixels(frame), size, aspect), round((frame.rotation or 0) / 90))

def caption_of(path):
    "'signs/Thank_You.mp4' to 'thank you': the file's name, lower-cased, underscores and dashes to spaces."
    stem = Path(path).stem
    return ' '.join(re.sub(r'[_\-]+', ' ', stem).lower().split()) or stem.lower()

def read_video(path, frames=16, size=64, fps=None, caption=None):
    """A video file (path) or its bytes to a Clip of uint8 (3, frames, size, size), evenly spaced in time.

    Without `fps` the whole video is squeezed into the frames; with it, the middle `frames / fps` seconds are taken
    (a shorter video holds its last frame). Frames are turned upright, centre-cropped, resized, alpha goes over black.
    A file that is missing, empty, damaged or without video raises an error that names it and says why."""
    name = 'video bytes' if isinstance(path, (bytes, io.BytesIO)) else str(path)
    try:
        if name == str(path) and not Path(path).exists(): raise FileNotFoundError('no such file')
        if name == str(path) and not Path(path).stat().st_size: raise ValueError('the file is empty')
        images, rate = decode_video(path, frames, size, fps)
    except (av.FFmpegError, ValueError, OSError, IndexError) as e:
        kind = FileNotFoundError if isinstance(e, FileNotFoundError) else ValueError
        raise kind(f'cannot read {name}: {getattr(e, "strerror", None) or e}') from None
    clip = torch.from_numpy(np.stack(images)).permute(3, 0, 1, 2).contiguous()     # (3, T, H, W)
    return Clip(clip, caption_of(path) if caption is None else caption, rate, name)

def open_video(path):
    "Open a path or bytes with PyAV; returns the container and its first video stream."
    if isinstance(path, bytes): path = io.BytesIO(path)
    if isinstance(path, io.BytesIO): path.seek(0)
    else: path = f'file:{Path(path).absolute()}'           # a name may begin with a dash or hold a colon
    container = av.open(path)
    if container.streams.video: return container, container.streams.video[0]
    container.close()
    raise ValueError('it holds no video stream')

def decode_video(path, frames, size, fps):
    "The upright squares, a list of uint8 (size, size, 3), and their rate; opens the file twice. See `read_video`."
    container, stream = open_video(path)
    with container: start, end, rate = time_span(container, stream)
    span = frames / fps if fps else end - start
    first = max(start, (start + end - span) / 2)
    times = [first + (k + .5) * span / frames for k in range(frames)]      # the middle of each frame's turn
    container, stream = open_video(path)
    with container:
        aspect = float(stream.sample_aspect_ratio or 1)
        out, last = [], None
        for frame in shown_at(container, stream, times, rate):
            if frame is not last: picture, last = upright(frame, size, aspect), frame
            out.append(picture)
    return out, frames / span

def write_video(path, frames, fps=8, scale=1):
    """Write frames (3, T, H, W), uint8 or float in [-1, 1], or a Clip, as an mp4 that browsers play (H.264, yuv420p).

    `scale` enlarges each pixel. The file appears whole or not at all. Returns the path."""
    if isinstance(frames, Clip): frames, fps = frames.frames, frames.fps
    if frames.ndim != 4 or frames.shape[0] != 3 or not frames.shape[1]:
        raise ValueError(f'frames must be (3, T, H, W), not {tuple(frames.shape)}')
    if fps <= 0: raise ValueError(f'fps must be above 0, not {fps}')
    x = (frames if frames.dtype == torch.uint8 else to_uint8(frames)).cpu().permute(1, 2, 3, 0).numpy()
    x = x.repeat(scale, 1).repeat(scale, 2)                                     # (T, H, W, 3)
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), 'edge')   # H.264 wants even sides
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        encode(part, x, fps)
        os.replace(part, path)
    except (OSError, av.FFmpegError) as e:
        raise OSError(e.errno, f'cannot write {path}: {e.strerror}') from None
    finally: part.unlink(missing_ok=True)
    return path

def encode(path, pictures, fps):
    "Pictures uint8 (T, H, W, 3), even sides, to an mp4 file: H.264 where PyAV has it, else MPEG-4."
    name = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
    with av.open(f'file:{path.absolute()}', 'w', format='mp4', options={'movflags': 'faststart'}) as out:
        stream = out.add_stream(name, rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.options = 'yuv420p', {'crf': '16'} if name == 'libx264' else {'q:v': '2'}
        for p in pictures: out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format='rgb24')))
        out.mux(stream.encode())

VIDEOS = ('.mp4', '.mov', '.mkv', '.webm', '.avi', '.m4v', '.mpg', '.mpeg', '.ts', '.ogv', '.flv', '.wmv', '.gif')
MANIFESTS = ('manifest.csv', 'manifest.jsonl', 'captions.csv', 'captions.jsonl', 'metadata.csv', 'metadata.jsonl')

def read_manifest(path):
    """A manifest's rows as dicts with the keys `file` and `caption` and whatever else it has.

    CSV with a header line, or JSONL with one object a line; a `file_name` column will do for `file`."""
    path = Path(path)
    if not path.is_file(): raise FileNotFoundError(f'no manifest at {path}')
    with open(path, encoding='utf-8-sig', newline='') as f:
        try: rows = list(csv.DictReader(f)) if path.suffix == '.csv' else [json.loads(s) for s in f if s.strip()]
        except ValueError as e: raise ValueError(f'{path} is no {path.suffix[1:].upper()} of text: {e}') from None
    if not rows: raise ValueError(f'{path} has no rows')
    for n, row in enumerate(rows, 1):
        if not isinstance(row, dict): raise ValueError(f'{path}, row {n}: not an object with file and caption')
        if 'file' not in row and 'file_name' in row: row['file'] = row.pop('file_name')
        for key in ('file', 'caption'):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise ValueError(f'{path}, row {n}: no {key!r}; columns are: {", ".join(map(str, row))}')
    return rows

class FolderClips(torch.utils.data.Dataset):
    """The video files of a folder (and those below it), decoded when asked for, each a Clip of uint8 (3, T, H, W).

    Captions are the file names, or come from a manifest (CSV or JSONL with the columns file, caption), given or
    found in the folder as manifest.csv, manifest.jsonl …; `path` may be the manifest itself. Each file is decoded
    once at the start: those that cannot be read stand in `refused` as (file, reason) and not in the data set.
    The first `keep` clips stay in memory. See `read_video` for `size`, `frames` and `fps`."""
    def __init__(self, path, size=64, frames=16, fps=None, manifest=None, keep=512, progress=False):
        path = Path(path)
        if manifest is None and path.is_file(): path, manifest = path.parent, path
        if not path.exists(): raise FileNotFoundError(f'no folder at {path}')
        if not path.is_dir(): raise NotADirectoryError(f'{path} is not a folder')
        self.path, self.size, self.frames, self.fps = path, size, frames, fps
        self.rows, self.refused, self.kept = [], [], {}
        for row in tqdm(self._listed(manifest), desc=f'reading {path.name}', unit='file', disable=not progress):
            try: clip = self._read(row)
            except ValueError as e: self.refused.append((row['file'], str(e).split(': ', 1)[-1]))
            else:
                if len(self.kept) < keep: self.kept[len(self.rows)] = clip
                self.rows.append(row)
        if not self.rows: raise ValueError(f'no readable clip in {path}' + self._reasons())

    def _listed(self, manifest):
        found = [self.path / m for m in MANIFESTS if (self.path / m).is_file()]
        manifest = manifest or (found[0] if found else None)
        if manifest is None:
            files = sorted(p.relative_to(self.path) for p in self.path.rglob('*') if p.is_file())
            return [dict(file=str(f), caption=caption_of(f)) for f in files if not f.name.startswith('.')]
        rows = read_manifest(manifest)
        for n, row in enumerate(rows, 1):
            if not (self.path / row['file']).is_file():
                raise FileNotFoundError(f'{manifest}, row {n}: no file {self.path / row["file"]}')
        return rows

    def _read(self, row):
        file = self.path / row['file']
        if file.suffix.lower() not in VIDEOS: raise ValueError(f'cannot read {file}: its name is not that of a video')
        clip = read_video(file, self.frames, self.size, self.fps, row['caption'])
        return replace(clip, attributes={k: v for k, v in row.items() if k not in ('file', 'caption')})

    def _reasons(self):
        return ''.join(f'; {f}: {r}' for f, r in self.refused[:3]) + ('; …' if len(self.refused) > 3 else '')

    def __len__(self): return len(self.rows)

    def __getitem__(self, i):
        if not 0 <= i < len(self): raise IndexError(f'clip {i} of {len(self)}')
        return self.kept[i] if i in self.kept else self._read(self.rows[i])

def open_dataset(name, split='train'):
    "A `datasets.Dataset` from a folder that `save_to_disk` wrote, or from the hub by its name."
    import datasets
    if not Path(name).exists(): return datasets.load_dataset(str(name), split=split)
    try: found = datasets.load_from_disk(str(name))
    except FileNotFoundError as e: raise ValueError(f'{name} is no folder written by save_to_disk') from e
    if not isinstance(found, datasets.DatasetDict): return found
    if split not in found: raise ValueError(f'{name} has no split {split!r}; it has: {", ".join(found)}')
    return found[split]

class HubClips(torch.utils.data.Dataset):
    """Clips from a Hugging Face data set: a `datasets.Dataset`, a folder that it was saved to, or a name on the hub.

    `column` holds a video, or a list of pictures, or one picture (a clip of one frame); found by its type if not
    named. `caption` names the column of the text or class label. Other plain columns become attributes."""
    def __init__(self, dataset, column=None, caption=None, split='train', size=64, frames=16, fps=None):
        import datasets
        if isinstance(dataset, (str, Path)): dataset = open_dataset(dataset, split)
        kinds = dataset.features
        self.column = self._find(column, kinds, lambda k: type(kinds[k]).__name__ in ('Video', 'Image', 'Array4D')
                                 or isinstance(getattr(kinds[k], 'feature', None), datasets.Image), 'video or image')
        self.caption = self._find(caption, kinds, lambda k: k in ('caption', 'text', 'prompt', 'label'), 'caption')
        self.label = getattr(kinds[self.caption], 'names', None)               # a class label's names
        if isinstance(kinds[self.column], datasets.Video):                      # we decode: no torchcodec needed
            dataset = dataset.cast_column(self.column, datasets.Video(decode=False))
        self.data, self.size, self.frames, self.fps = dataset, size, frames, fps
        self.extra = [k for k, v in kinds.items() if type(v).__name__ in ('Value', 'ClassLabel') and k != self.caption]

    @staticmethod
    def _find(name, kinds, test, what):
        found = name or next((k for k in kinds if test(k)), None)
        if found in kinds: return found
        raise ValueError(f'no {what} column{"" if name is None else f" {name!r}"}; columns are: {", ".join(kinds)}')

    def __len__(self): return len(self.data)

    def __getitem__(self, i):
        if not 0 <= i < len(self): raise IndexError(f'clip {i} of {len(self)}')
        row = self.data[i]
        text = self.label[row[self.caption]] if self.label else str(row[self.caption])
        try: clip = self._clip(row[self.column], text)
        except ValueError as e: raise ValueError(f'row {i}: {e}') from None
        return replace(clip, source=f'row {i}', attributes={k: row[k] for k in self.extra})

    def _clip(self, value, text):
        if isinstance(value, dict):                                             # an undecoded video
            where = value['bytes'] if value.get('bytes') else value['path']
            return read_video(where, self.frames, self.size, self.fps, text)
        several = isinstance(value, list) or np.ndim(value) == 4
        pictures = [square(rgb(p), self.size) for p in (value if several else [value])]
        pick = np.linspace(0, len(pictures), self.frames, endpoint=False) if several else [0]
        x = np.stack([pictures[int(k)] for k in pick])                          # (T, H, W, 3)
        return Clip(torch.from_numpy(x).permute(3, 0, 1, 2).contiguous(), text, self.fps or 8.0)

def rgb(picture):
    "A PIL image of any mode, or an array, to a uint8 array (H, W, 3), (H, W, 4) or (H, W)."
    if not isinstance(picture, Image.Image): return np.asarray(picture, np.uint8)
    return np.asarray(picture.convert('RGBA' if picture.has_transparency_data else 'RGB'))

class Vocabulary:
    """Captions to word ids (slots,): id 0 is 'no word here', the words follow, and `len(vocab)` is the model's null.

    Words in `drop` carry no meaning ('a', 'moves') and are left out, unless nothing else is left."""
    def __init__(self, words, slots, drop=()):
        self.words, self.slots, self.drop = tuple(words), int(slots), tuple(drop)
        twice = [w for w in self.words if self.words.count(w) > 1]
        if twice: raise ValueError(f'word {twice[0]!r} stands twice in the vocabulary')
        if self.slots < 1: raise ValueError(f'slots must be at least 1, not {slots}')
        self.ids = {w: i for i, w in enumerate(self.words, 1)}

    @classmethod
    def from_captions(cls, captions, drop=()):
        "The words of these captions, sorted, and as many slots as the longest needs."
        split = [content_words(c, drop) for c in captions]
        if not any(split): raise ValueError('no words in the captions')
        return cls(sorted({w for s in split for w in s}), max(map(len, split)), drop)

    def __len__(self): return len(self.words) + 1

    def encode(self, caption):
        "One caption to ids, int64 (slots,). An unknown word, or too many words, is a ValueError that says which."
        words = content_words(caption, self.drop, self.ids)
        for w in words:
            if w not in self.ids: raise ValueError(f'unknown word {w!r} in prompt {caption!r}; {self._known(w)}')
        if len(words) > self.slots:
            raise ValueError(f'prompt {caption!r} has {len(words)} words; the model knows captions of {self.slots}')
        if not words: raise ValueError(f'prompt {caption!r} has no words')
        return torch.tensor([self.ids[w] for w in words] + [0] * (self.slots - len(words)))

    def encode_batch(self, captions):
        "A list of captions to ids, int64 (B, slots)."
        return torch.stack([self.encode(c) for c in captions])

    def _known(self, word):
        near = difflib.get_close_matches(word, self.words, 3, .6)
        hint = f'; did you mean {" or ".join(map(repr, near))}?' if near else ''
        listed, more = self.words[:30], len(self.words) - 30
        return f'known: {", ".join(listed)}' + (f' … and {more} more' if more > 0 else '') + hint

    def to_dict(self): return dict(words=list(self.words), slots=self.slots, drop=list(self.drop))

    @classmethod
    def from_dict(cls, d): return cls(d['words'], d['slots'], d['drop'])

    def __eq__(self, other): return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __repr__(self): return f'Vocabulary({len(self.words)} words, {self.slots} slots)'

def content_words(caption, drop=(), known=()):
    "A caption's words, lower-cased, without those in `drop` unless all are; 'moving' counts as a known 'moves'."
    words = [_variant(w, {*drop, *known}) for w in re.findall(r"[^\W_]+(?:'[^\W_]+)*", caption.lower())]
    return [w for w in words if w not in drop] or words

def _variant(word, known):
    "`word`, or the form of it that is known: moving, move → moves; an, the → a."
    forms = [word[:-3] + e for e in ('s', 'es')] if word.endswith('ing') else [word + 's']
    if word in ('an', 'the'): forms = ['a']
    return word if word in known else next((f for f in forms if f in known), word)
