import os

__version__ = "0.2.0"

# Threads of OpenMP that wait should sleep: where other work shares the cores, those that spin keep
# them from the thread that still has something to do. Read when torch is loaded, so set before.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

# The names that are needed most; each is imported when it is asked for.
_HOMES = {
    'SceneClips': 'clips',
    'FolderClips': 'data.folders',
    'load_autoencoder': 'autoencoder',
    'write_cache': 'latent_cache',
    'LatentCache': 'latent_cache',
    'DiT': 'dit',
    'DiTConfig': 'dit',
    'VideoDiT': 'temporal',
    'VideoDiTConfig': 'temporal',
    'GaussianDiffusion': 'diffusion',
    'Interpolant': 'interpolants',
    'fit': 'train',
    'sample': 'sampling',
    'VideoPipeline': 'pipeline',
    'CascadePipeline': 'cascade_pipeline',
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
