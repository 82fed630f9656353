import numpy as np

from rcg_lightning.data.store_writer import StoreWriter
from rcg_lightning.planning.representation_report import largest_cluster


def store_of(folder, rows):
    writer = StoreWriter(folder, len(rows), 1, 64, {"dataset": "some", "split": "train", "representation": "encoder"})
    for shard in writer.pending():
        writer.write(shard, {"representation": rows[shard.start : shard.stop, None].astype(np.float32)})
    writer.finish({})
    return folder


def test_one_cluster_that_holds_most_images_is_found(tmp_path):
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(300, 8)) + 20 * rng.normal(size=(20, 8))[np.arange(300) % 20]
    assert largest_cluster(store_of(tmp_path / "spread", groups)) < 0.3
    collapsed = np.concatenate([1e-3 * rng.normal(size=(270, 8)), 50 * rng.normal(size=(30, 8))])
    assert largest_cluster(store_of(tmp_path / "collapsed", collapsed)) > 0.8
