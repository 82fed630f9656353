"""Cost of an evaluation: through files, as in official codes, and streaming with stored reference moments.

``python -m rcg_lightning.bench.evaluation_cost`` prints CPU seconds of this process, medians of several runs. Weights
are random, in the layout of the published Inception: speed does not depend on their values.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from rcg_lightning.core.frechet import frechet_distance, moments
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.metrics.feature_extractors import InceptionExtractor
from rcg_lightning.metrics.feature_statistics import FeatureStatistics
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.types import to_uint8

DIM = 2048
BATCH = 64


class _Unloaded(FeatureExtractorInceptionV3):
    """torch-fidelity's network with its initial random weights."""

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return None


def random_network(folder: Path) -> tuple[nn.Module, Path]:
    """Return torch-fidelity's Inception with random weights, and their file."""
    path = folder / "inception.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    layers = [str(DIM), "logits_unbiased"]
    network = _Unloaded("inception-v3-compat", layers, feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return network.eval().requires_grad_(False), path


def through_files(images: Tensor, folder: Path, network: nn.Module) -> None:
    """Truncate images (N, C, H, W) in [0, 1], write them as PNG, read them back and compute their features."""
    for i, image in enumerate(images):
        pixels = (image.numpy() * 255).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i:06d}.png")
    featurise(folder, network)


def featurise(folder: Path, network: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of the features of a folder of images; all are stored, as in torch-fidelity."""
    batches = []
    for batch in open_samples(folder):
        batches += [network(part)[0] for part in batch.split(BATCH)]
    features = torch.cat(batches).double().numpy()
    return features.mean(axis=0), np.cov(features, rowvar=False)


def streaming(images: Tensor, extractor: InceptionExtractor) -> None:
    """Quantise images in memory and accumulate the moments of their features."""
    sums = FeatureStatistics(extractor.dim, extractor.classes)
    for part in images.split(BATCH):
        found = extractor(to_uint8(part))
        sums.update(found.pooled, found.logits)
    sums.compute()


def cost(work: Callable[[], object], times: int) -> float:
    """Return the median CPU seconds of this process."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def measure(count: int, size: int, times: int) -> dict[str, float]:
    """Return CPU seconds of ``count`` images of ``size`` x ``size``; neither variant includes the Fréchet distance."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    images = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        network, path = random_network(folder)
        extractor = InceptionExtractor(path)
        extractor.setup()
        for part in ("made", "real"):
            (folder / part).mkdir()
        through_files(images, folder / "real", network)  # writes the reference files, and warms up
        streaming(images[:BATCH], extractor)
        Moments(torch.zeros(DIM).double(), torch.eye(DIM).double()).save(folder / "moments.npz")
        found = {
            "generated, through files": cost(lambda: through_files(images, folder / "made", network), times),
            "generated, streaming": cost(lambda: streaming(images, extractor), times),
            "reference, featurised again": cost(lambda: featurise(folder / "real", network), times),
            "reference, stored moments": cost(lambda: Moments.load(folder / "moments.npz"), times),
        }
    rows = torch.randn(2, 3 * DIM, DIM, generator=generator, dtype=torch.float64)
    sets = [moments(rows[0]), moments(1.1 * rows[1])]
    return found | {"Fréchet distance, 2048 dimensions": cost(lambda: frechet_distance(*sets[0], *sets[1]), times)}


def report(found: dict[str, float]) -> str:
    """Format times and ratios as text."""
    files, stream = found["generated, through files"], found["generated, streaming"]
    whole = (files + found["reference, featurised again"]) / (stream + found["reference, stored moments"])
    lines = [f"{name:<42} {seconds:8.2f} s" for name, seconds in found.items()]
    lines += [f"{'whole evaluation, times as fast':<42} {whole:8.2f}", f"{'generated alone':<42} {files / stream:8.2f}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rcg_lightning.bench.evaluation_cost", description=__doc__)
    parser.add_argument("--count", type=int, default=64, help="images")
    parser.add_argument("--size", type=int, default=256, help="their height and width")
    parser.add_argument("--times", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(report(measure(args.count, args.size, args.times)))


if __name__ == "__main__":
    main()
