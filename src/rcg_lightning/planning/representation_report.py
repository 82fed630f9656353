"""Whether representations tell images apart: one cluster that holds most of them is a warning."""

from pathlib import Path

import numpy as np
import torch

from rcg_lightning.data.image_split import fixed_subset
from rcg_lightning.data.kmeans import kmeans
from rcg_lightning.data.store import Store

CLUSTERS, IMAGES = 20, 5000


def largest_cluster(folder: Path) -> float:
    """Return the share of a store's representations in the largest of ``CLUSTERS`` clusters."""
    store = Store.open(folder)
    rows = fixed_subset(store.size, IMAGES)
    points = torch.from_numpy(np.asarray(store.read("representation", rows), np.float32))
    found = kmeans(points.flatten(1), min(CLUSTERS, len(points)))
    return float(torch.bincount(found.assignment).max()) / len(points)
