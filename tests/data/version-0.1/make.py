"""How this folder was made, for the record: run once, with commit c8e070a on the path, before the rebuilding.

`python make.py OUT` writes models, caches, checkpoints and a run as that version wrote them, and `expected.safetensors`
with what that version then said. `tests/test_versions.py` holds later versions to it."""
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from minisora import train
from minisora.autoencoder import CausalVideoVAE, ImageVAE, Windows, autoencoder_by_name, train_video_vae
from minisora.clips import SceneClips, Vocabulary, stack, to_float
from minisora.diffusion import Diffusion, draw
from minisora.dit import DiT, DiTConfig
from minisora.interpolants import Interpolant
from minisora.latent_cache import LatentCache, write_cache
from minisora.metrics import Judge
from minisora.pipeline import Run, make_video
from minisora.sampling import sample, settle
from minisora.single_gpu import Avatar, Continuation, FoldedVAE, sample_after
from minisora.temporal import VideoDiT, VideoDiTConfig, inflate, resize_video
from minisora.train import fit, load_checkpoint

torch.set_num_threads(1)
OUT, EXPECTED = Path(sys.argv[1]), {}


def awake(model, seed=0):
    "Redraw what is zero: a fresh transformer answers exactly zero."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.abs().max() == 0: p.copy_(0.2 * torch.randn(p.shape, generator=g))
    return model.eval()


def inputs(config, n=2):
    "Latents, times and ids for a model, a function of its config only."
    size = config.size if len(config.size) == 3 else (1, *config.size)
    x = draw(3, 0, range(n), (config.channels, *size))[0]
    t = torch.tensor([.3, .8])
    if getattr(config, 'caption', 0): return x, t, draw(4, 0, range(n), (config.caption,))[0]
    words = getattr(config, 'vocab', 0) or getattr(config, 'num_classes', 0)
    slots = getattr(config, 'slots', 1)
    return x, t, (torch.arange(n * slots) % words).view(n, slots) if words else None


SMALL = dict(size=(4, 4, 4), channels=2, patch=(2, 2, 2), width=16, depth=4, heads=2)
WIDE = SMALL
MODELS = dict(
    joint=VideoDiTConfig(**SMALL, vocab=5, slots=2, relative_bias=True, context=True, label_std=.5, norm='rms', mlp='swiglu',
                         qk_norm=True),
    data=VideoDiTConfig(**SMALL, vocab=5, precondition='x', t_clip=.1),
    edm=VideoDiTConfig(**SMALL, precondition='edm', smaller=True),
    rope=VideoDiTConfig(**WIDE, vocab=3, positions='rope', smaller=True, trained=(8, 4, 8)),
    factorised=VideoDiTConfig(**WIDE, vocab=3, attention='factorised', positions='rope', relative_bias=True, context=True, slots=2),
    inflated=VideoDiTConfig(**SMALL, attention='factorised', positions='inflated'),
    latte=VideoDiTConfig(**dict(SMALL, patch=(1, 2, 2)), vocab=4, attention='factorised', positions='latte', learned_time=True,
                         images=2, learn_sigma=True, time='ddpm'),
    caption=VideoDiTConfig(**dict(SMALL, patch=(1, 2, 2)), attention='factorised', positions='latte', caption=12),
)
IMAGES = dict(
    dit=DiTConfig(size=(8, 8), width=16, depth=2, heads=2, num_classes=5),
    sit=DiTConfig(size=(8, 4), width=16, depth=2, heads=2, num_classes=0, learn_sigma=False, time='flow', time_scale=1.,
                  positions='rope', qk_norm=True, norm='rms', mlp='swiglu', relative_bias=True, precondition='edm'),
)

for name, config in MODELS.items():
    model = awake(VideoDiT(config, seed=1))
    model.save_pretrained(OUT / 'models' / name)
    with torch.no_grad(): EXPECTED[f'models/{name}'] = model(*inputs(config))
    if name == 'latte':
        x, t, _ = inputs(config)
        more = draw(5, 0, range(2), (2, 6, 4, 4))[0]
        y = torch.tensor([[0, 1, 2], [3, 4, 0]])
        with torch.no_grad(): EXPECTED['models/latte with images'] = model(more, t, y)
    if name in ('edm', 'rope'):
        with torch.no_grad(): EXPECTED[f'models/{name} of a smaller clip'] = model(inputs(config)[0][:, :, :2, :, :2], torch.tensor([.3, .8]))
for name, config in IMAGES.items():
    model = awake(DiT(config, seed=1))
    model.save_pretrained(OUT / 'models' / name)
    with torch.no_grad(): EXPECTED[f'models/{name}'] = model(*inputs(config))
video = resize_video(VideoDiT.from_pretrained(OUT / 'models' / 'joint'), (8, 4, 4), 'thw')
with torch.no_grad(): EXPECTED['resized'] = video(*inputs(video.config))
still = awake(DiT(DiTConfig(size=(8, 8), width=16, depth=2, heads=2, num_classes=5), seed=2))
with torch.no_grad(): EXPECTED['inflated from an image model'] = inflate(still, 3)(draw(3, 0, range(2), (4, 3, 8, 8))[0], torch.tensor([.3, .8]), torch.tensor([[1], [2]]))

# autoencoders and the judge
clips = SceneClips(8, frames=9, size=16)
x = to_float(stack(clips)[0])
torch.manual_seed(0)
autos = dict(image=ImageVAE(channels=4, width=8, enc_width=4, smooth=8), causal=CausalVideoVAE(channels=8, width=16, depth=1))
for name, ae in autos.items():
    ae.init_pca(x)
    awake(ae)
    ae.save_pretrained(OUT / 'autoencoders' / name)
folded = FoldedVAE.around(autos['causal'], fold=2, channels=6, refine=8)
with torch.no_grad(): folded.init_pca([autos['causal'].encode(x).mode])
awake(folded)
for name, ae in dict(autos, folded=folded).items():
    with torch.no_grad():
        z = ae.encode(x[:2])
        EXPECTED[f'autoencoders/{name} mean'], EXPECTED[f'autoencoders/{name} clip'] = z.mean.contiguous(), ae.decode(z.mean).contiguous()
judge = Judge(dict(colour=['red', 'green'], motion=['left', 'right', 'up']), width=4, frames=4, size=16).eval()
judge.save_pretrained(OUT / 'judge')
with torch.no_grad(): EXPECTED['judge'] = judge.features(x[:2])
state = OUT / 'video-vae.state.safetensors'
windows = lambda: Windows([(stack(clips)[0], 1.)], frames=5, crop=16, recolour=.5, mix=.5)
train_video_vae(CausalVideoVAE(channels=4, width=8, depth=1), windows(), steps=4, batch=2, state=state, every=2)
shutil.copy(state, OUT / 'video-vae-after-4.safetensors')
longer = CausalVideoVAE(channels=4, width=8, depth=1)
train_video_vae(longer, windows(), steps=6, batch=2, state=state, every=2)
state.unlink()
EXPECTED['video-vae after 6'] = torch.cat([p.detach().flatten() for p in longer.parameters()])[::7]

# latent caches
images = SceneClips(10, frames=4, size=16)
flat = ImageVAE(channels=4, width=8, enc_width=4)
flat.init_pca(to_float(stack(images)[0]))
flat.save_pretrained(OUT / 'autoencoders' / 'flat')
vocabulary = Vocabulary.from_captions([images[i].caption for i in range(10)], drop=('a', 'moves'))
(OUT / 'vocabulary.json').write_text(json.dumps(vocabulary.to_dict()))
for name, options in dict(float16=dict(), int8=dict(dtype='int8', flips=True), moments=dict(moments=True, dtype='bfloat16', per_channel=True),
                          float32=dict(dtype='float32', sample_seed=3)).items():
    write_cache(OUT / 'caches' / name, images, flat, batch_size=4, shard_size=8, progress=False, **options)
    cache = LatentCache(OUT / 'caches' / name, vocabulary=vocabulary, seed=5)
    cache.set_epoch(2)
    batch = cache[[3, 9, 0]]
    EXPECTED[f'caches/{name}'], EXPECTED[f'caches/{name} condition'] = batch['latents'].contiguous(), batch['condition']

# checkpoints: three steps of six, and what six steps gave
data = torch.randn(12, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), (torch.arange(24) % 5).view(12, 2)
still = torch.randn(12, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12)[:, None] % 5
COMMON = dict(steps=6, batch_size=4, lr=1e-3, log_every=2, save_every=3, progress=False, warmup=2)
joint = MODELS['joint']
RUNS = dict(
    plain=(lambda: VideoDiT(joint), data, Interpolant(prediction='data', weight='velocity', max_weight=25., delta=4., steady=.05, shift=6., std=1.4),
           dict(schedule='linear', more_ema=(.5,), spikes='skip')),
    routed=(lambda: VideoDiT(replace(joint, route=.5, route_blocks=(1, 3), checkpoint=True, checkpoint_every=2)), data, Interpolant(), {}),
    factorised=(lambda: VideoDiT(replace(MODELS['factorised'], channels=2, vocab=5, checkpoint=True)), data, Interpolant(path='gvp'), dict(optimizer='muon')),
    ddpm=(lambda: DiT(replace(IMAGES['dit'], checkpoint=True)), still, Diffusion(variance='learned-range', weight='min-snr'), dict(accumulate=2)),
    continued=(lambda: VideoDiT(replace(joint, channels=3)), data, Continuation(prediction='data', weight='velocity', given=(0, 1)), dict(condition_dropout=.2)),
)


def weights(trained):
    return torch.cat([p.detach().flatten() for m in (trained.model, trained.ema) for p in m.parameters()])[::7]


for name, (make, samples, objective, options) in RUNS.items():
    out = OUT / 'checkpoints' / name
    fit(make(), samples, objective, out=out, stop_at=3, **COMMON, **options)
    kept = OUT / 'kept'
    shutil.copytree(out, kept)
    done = fit(make(), samples, objective, out=out, **COMMON, **options)
    EXPECTED[f'checkpoints/{name} after 6'] = weights(done)
    EXPECTED[f'checkpoints/{name} loss'] = torch.tensor([r['loss'] for r in done.log], dtype=torch.float64)
    shutil.rmtree(out)
    kept.rename(out)

# a whole run of `make video`, and an avatar
TINY = dict(clips=12, size=32, frames=8, ae_steps=4, steps=6, width=16, depth=2, heads=2, patch=(2, 2, 2), judge_steps=3, eval_clips=4, sample_steps=3,
            channels=4, smooth=4, tune_steps=0, settle=2, modern=True, eta=1.)
make_video(OUT / 'run', 'a red ring moves left', progress=False, **TINY)
for p in OUT.glob('run/preview-*.png'): p.unlink()
for name in ('metrics.json', 'times.json', 'contact_sheet.png', 'a-red-ring-moves-left.gif', 'a-red-ring-moves-left.png', 'a-red-ring-moves-left.mp4'):
    (OUT / 'run' / name).unlink()
shutil.rmtree(OUT / 'run' / 'judge')
EXPECTED['run'] = Run(OUT / 'run', progress=False).sample(['a red ring moves left', 'a blue ball grows'], seed=5)
last = sorted((OUT / 'run' / 'training' / 'checkpoints').glob('step-*'))
for p in last[:-1]: shutil.rmtree(p)
words = Vocabulary.from_captions(['hello', 'rest'])
objective = Continuation(prediction='data', weight='velocity', given=(0, 1))
film = VideoDiTConfig(size=(3, 1, 1), channels=7, patch=(1, 1, 1), width=16, depth=2, heads=2, vocab=len(words), slots=words.slots)
avatar = Avatar(awake(VideoDiT(film)), folded, words, objective, mean=.1, std=1.5, fps=12., options=dict(steps=3, shift=2., guidance=1.))
avatar.save_pretrained(OUT / 'avatar')
avatar = Avatar.from_pretrained(OUT / 'avatar')
EXPECTED['avatar clips'] = avatar.clips(['hello'], seed=1).contiguous()
EXPECTED['avatar film'] = avatar.film(['hello', 'rest'], seed=1).contiguous()

# samplers
model, objective = VideoDiT.from_pretrained(OUT / 'models' / 'joint'), Interpolant(shift=3.)
y = torch.tensor([[1, 2], [3, 0]])
for solver, options in dict(euler={}, heun={}, midpoint={}, rk4={}, ddim=dict(eta=.5), sde=dict(form='linear')).items():
    EXPECTED[f'samples/{solver}'] = sample(model, objective, y, steps=4, solver=solver, guidance=2., guidance_interval=(0., .5), shift=3., seed=3, **options)
EXPECTED['samples/settled'] = settle(model, objective, EXPECTED['samples/euler'], y, times=2, seed=4)
still = DiT.from_pretrained(OUT / 'models' / 'dit')
for solver in ('ancestral', 'ddim'):
    EXPECTED[f'samples/diffusion {solver}'] = sample(still, Diffusion(variance='learned-range'), torch.tensor([[1], [2]]), steps=4, solver=solver, seed=3)

# what ships, here only as the numbers it gives
DATA = Path(train.__file__).resolve().parents[1] / 'data'
run = Run(DATA / 'first-video', progress=False)
EXPECTED['data/first-video'] = run.sample(['a red ring moves left'], seed=5, steps=4)[0, :, ::5].contiguous()
vae = autoencoder_by_name(DATA / 'video-vae')
scene = to_float(stack(SceneClips(1, frames=9, size=64))[0])
with torch.no_grad(): EXPECTED['data/video-vae'] = vae(scene)[0, :, ::4].contiguous()
judge = Judge.from_pretrained(DATA / 'judge')
with torch.no_grad(): EXPECTED['data/judge'] = judge.features(to_float(stack(SceneClips(2))[0]))
avatar = Avatar.from_pretrained(DATA / 'avatar')
with torch.no_grad():
    z = sample_after(avatar.model, avatar.objective, avatar.vocabulary.encode_batch(['hello']), None, steps=1, shift=3., seed=1)
    EXPECTED['data/avatar codes'] = z[:, ::3].contiguous()
    EXPECTED['data/avatar inner latents'] = avatar.autoencoder.latents(z * avatar.std + avatar.mean)[:, :4, ::4, ::6, ::6].contiguous()
save_file({k: v.detach().contiguous().clone() for k, v in EXPECTED.items()}, OUT / 'expected.safetensors')
