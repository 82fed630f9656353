"""Folders of small autoencoders with random weights, for codecs."""

import torch

KL_SIZES = {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4}


def spread(network, seed):
    """Scale a network's latents so that they reach different codes, and the codes alike."""
    with torch.no_grad():
        network.codebook.weight.normal_(generator=torch.Generator().manual_seed(seed))
        network.encoder.out_conv.weight.mul_(4)
    return network


def save_vq(folder, kind=None, seed=0, channels=1, **sizes):
    """Write a tokenizer of 8x8 images with 16 tokens; return its folder."""
    from rcg_lightning.networks.vqgan import MaskGITVQGAN
    from rcg_lightning.pretrained.autoencoders import autoencoder_settings
    from rcg_lightning.pretrained.network_folder import save_network

    given = {"width": 8, "multipliers": [1, 2], "blocks": 1, "codes": 12, "dim": 4, "groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = spread((kind or MaskGITVQGAN)(channels, **given | sizes), seed)
    save_network(folder, network, autoencoder_settings(network))
    return folder


def kl_network(seed=0, channels=3):
    """Return a diffusers AutoencoderKL that halves images once."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoencoderKL(in_channels=channels, out_channels=channels, **KL_SIZES, **blocks).eval()


def save_kl(folder, seed=0, channels=3):
    """Write a KL autoencoder in diffusers' layout; return its folder."""
    kl_network(seed, channels).save_pretrained(folder)
    return folder
