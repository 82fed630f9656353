"""Published files of statistics as references: mean and covariance, and the ADM suite's reference batches."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from rcg_lightning.array_files import npz_names
from rcg_lightning.artifacts import cache_folder, file_sha256, fingerprint
from rcg_lightning.evaluation.reference import FORMAT, MAX_STORED_FEATURES, RealSet, Reference
from rcg_lightning.evaluation.sample_readers import open_samples
from rcg_lightning.metrics.feature_extractors import FeatureExtractor
from rcg_lightning.metrics.fid import Moments
from rcg_lightning.metrics.prdc import NEIGHBOURS
from rcg_lightning.types import require

log = logging.getLogger(__name__)
NAME = "statistics"  # of such a reference in the names of metrics


def read_statistics(
    path: Path,
    extractor: FeatureExtractor | None = None,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> Reference:
    """Read an .npz with mu and sigma as a reference: enough for a Fréchet distance.

    The ADM suite's reference batches hold more: mu_s and sigma_s, for sFID, and some images, arr_0, uint8
    (N, H, W, 3), whose features serve precision, recall and kernel distances. The moments remain the published ones,
    which come from many more images.

    Args:
        path: the file.
        extractor: without it, images in the file are ignored.
        device: where their features are computed.
        folder: cache of their features, named by checksums of file and extractor; None is the user's cache.

    Raises:
        UserError: the file is missing or of another kind, or its statistics are not of the extractor's features.
    """
    require(path.is_file(), f"no reference statistics at {path}: correct the path or make them first")
    arrays = npz_names(path, "reference statistics")
    with_images = extractor is not None and "arr_0" in arrays
    moments = Moments.load(path) if arrays & {"mu", "sigma"} or not with_images else None
    if moments is not None and extractor is not None:
        require(
            len(moments.mean) == extractor.dim,
            f"{path} holds statistics of {len(moments.mean)} features, the extractor makes {extractor.dim}: "
            "published statistics are of InceptionExtractor",
        )
    if extractor is None or "arr_0" not in arrays:
        assert moments is not None
        real = Reference("", RealSet(moments))
    else:
        real = _measured(path, extractor, device, folder or cache_folder("statistics"))
    train = real.train if moments is None else replace(real.train, moments=moments, spatial=None)
    if arrays & {"mu_s", "sigma_s"}:
        train = replace(train, spatial=Moments.load(path, "_s"))
    return replace(real, train=train, name=NAME)


def _measured(path: Path, extractor: FeatureExtractor, device: torch.device | str, folder: Path) -> Reference:
    """Measure the images in a file as a reference, or load it from ``folder``."""
    inputs = [file_sha256(path), extractor.identity, extractor.spatial_dim, NEIGHBOURS, MAX_STORED_FEATURES, FORMAT]
    identity = fingerprint(inputs)
    stored = folder / f"statistics-{extractor.name}-{identity}.safetensors"
    known = Reference.cached(stored)
    if known is not None:
        return known
    found = Reference.measure(open_samples(path), None, extractor, identity, device)
    found = replace(
        found, train=replace(found.train, images=None)
    )  # only a few of the training images, so no nearest ones
    try:
        found.save(stored)
    except (OSError, SafetensorError) as error:
        log.warning(
            "features of %s could not be stored in %s (%s): they are computed again each time", path, folder, error
        )
    return found
