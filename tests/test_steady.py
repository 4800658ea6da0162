"""What makes objects move evenly: windows of clips and latents, the tuned decoder."""

import torch

from minisora.autoencoder import ImageVAE, finetune_decoder, train_autoencoder
from minisora.clips import SceneClips, to_float
from minisora.latents.crops import foreground_crop


def test_windows_of_clip_and_latents_agree():
    clips = SceneClips(4, seed=1)
    x = to_float(torch.stack([clips[i].frames for i in range(4)]))
    z = x[:, :1, :, ::8, ::8]  # a cell's first pixel stands for its latent
    a, b = foreground_crop(x, z, 5, torch.Generator().manual_seed(0))
    assert a.shape == (4, 3, 16, 40, 40) and torch.equal(a[:, :1, :, ::8, ::8], b)
    assert all(k.max() > 0 for k in a)  # something is to be seen in each
    assert foreground_crop(x, z, 99, torch.Generator())[0].shape == x.shape


def test_a_tuned_decoder_mends_what_a_model_gets_wrong():
    clips = SceneClips(32, seed=1)
    ae = ImageVAE(channels=4, enc_width=0, width=8, smooth=8)
    train_autoencoder(ae, clips, steps=30)
    x = to_float(torch.stack([clips[i].frames for i in range(8)]))
    wrong = lambda z: 0.8 * z + 0.3  # a model with one habit

    def predict(index, generator):
        return wrong(ae.encode(to_float(torch.stack([clips[int(i)].frames for i in index]))).mode)

    def error():
        with torch.no_grad():
            return ((ae.decode(wrong(ae.encode(x).mode)) - x) ** 2).mean().item()

    before = error()
    encoder = ae.skip_in.weight.clone()
    with torch.no_grad():
        kept = ae.encode(x).mode
    finetune_decoder(ae, clips, predict, steps=40, batch=2)
    assert error() < 0.7 * before
    assert (
        torch.equal(encoder, ae.skip_in.weight)
        and torch.equal(kept, ae.encode(x).mode)
        and not ae.training
    )
