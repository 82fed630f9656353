import numpy as np
from PIL import Image

from rcg_lightning.planning.duplicates import count_repeats, tiny


def photo(seed, noise=0.0, size=64):
    """Return a smooth random image; ``noise`` changes it a little, as another JPEG quality does."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((pixels + noise * rng.normal(size=pixels.shape)).clip(0, 255).astype(np.uint8))


def repeats(images):
    return count_repeats(np.stack([tiny(image) for image in images]), [image.tobytes() for image in images])


def test_different_images_repeat_nothing():
    found = repeats([photo(seed) for seed in range(60)])
    assert (found.exact, found.near) == (0, 0)


def test_copies_and_small_changes_are_found():
    originals = [photo(seed) for seed in range(20)]
    copies = [photo(seed) for seed in range(5)]
    changed = [photo(seed, noise=3) for seed in range(5, 12)] + [photo(12).resize((48, 48))]
    found = repeats([*originals, *copies, *changed])
    assert (found.exact, found.near) == (5, 8)


def test_flat_images_of_different_colours_differ():
    found = repeats([Image.new("RGB", (32, 32), (value, value, value)) for value in range(0, 250, 25)])
    assert (found.exact, found.near) == (0, 0)
