"""Batches: their keys, views joined to stored rows, ranges of processes, and runs that resume bit for bit."""

from itertools import islice
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from torch import nn

from rcg_lightning.callbacks.reseed import Reseed
from rcg_lightning.data.data_module import ImageDataModule, as_floats
from rcg_lightning.data.datasets import Digits
from rcg_lightning.data.image_folders import FlatFolder, ImageFolder
from rcg_lightning.data.index_samplers import FixedBatches, StreamSampler, rank_range
from rcg_lightning.data.store import Store
from rcg_lightning.data.store_writer import ShardCollector, StoreWriter
from rcg_lightning.data.transforms import AsIs, CenterCrop, RandomCrop, RandomResizedCrop, Views
from rcg_lightning.errors import UserError
from rcg_lightning.types import DataSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of 30 images of different sizes in two classes."""
    monkeypatch.setenv("RCG_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for number in range(30):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        size = generator.integers(20, 40, 2)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number:02d}.png")
    return tmp_path / "photos"


def data(source=None, needs=("image", "label"), **settings):
    datamodule = ImageDataModule(source or Digits(limit=100), **{"batch_size": 16, **settings})
    datamodule.needs = set(needs)
    return datamodule


def extract(datamodule, folder, split="train", floats="float32", column="pixels", **identity):
    """Store the images themselves: the simplest encoder."""
    identity = {**datamodule.store_identity(split), column: "identity", **identity}
    writer = StoreWriter(folder, len(datamodule.images(split)), datamodule.view_count(split), 7, identity, floats)
    collector = ShardCollector(writer)
    needs, datamodule.needs = datamodule.needs, {"image"}
    datamodule.extract(split, writer.pending())
    for batch in datamodule.predict_dataloader():
        columns = {column: batch["image"].numpy().astype(np.float32) / 255}
        collector.add(batch["index"].numpy(), batch["view"].numpy(), columns)
    datamodule.needs = needs
    writer.finish()
    return folder


# batches


def test_a_batch_holds_the_needed_keys_and_no_more():
    batch = next(iter(data(needs={"image", "label", "pair"}).train_dataloader()))
    assert set(batch) == {"index", "view", "image", "label", "pair"}
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (16, 1, 8, 8)
    images = Digits(limit=100).train()
    assert torch.equal(batch["image"], torch.from_numpy(images.array[batch["index"]]))
    assert batch["label"].tolist() == images.labels[batch["index"]].tolist()
    floats = as_floats(batch)
    assert floats["image"].dtype == torch.float32
    assert float(floats["image"].max()) == 1.0


def test_images_that_are_not_needed_are_not_read(photos, monkeypatch):
    datamodule = data(ImageFolder(photos), needs={"label"}, transform=CenterCrop(16))
    monkeypatch.setattr(datamodule.images("train"), "load", None)
    assert set(next(iter(datamodule.train_dataloader()))) == {"index", "view", "label"}


def test_the_spec_describes_the_data():
    datamodule = data(source := Digits(channels=3, limit=100), transform=CenterCrop(16))
    datamodule.setup()
    spec = datamodule.spec
    assert spec.image == (3, 16, 16)
    assert spec.classes == 10
    assert spec.identities["dataset"] == source.train().fingerprint
    assert DataSpec.from_dict(spec.to_dict()) == spec
    assert data(transform=AsIs()).spec.image == (1, 8, 8)


def test_a_pair_is_two_independent_crops_that_depend_on_the_epoch(photos):
    datamodule = data(
        FlatFolder(photos, eval_share=0), {"image", "pair"}, transform=RandomResizedCrop(16, flip=True), batch_size=30
    )
    first, second = islice(datamodule.train_dataloader(), 2)
    again = next(iter(datamodule.train_dataloader()))
    assert all(torch.equal(first[key], again[key]) for key in first)
    order = first["index"].argsort(), second["index"].argsort()
    views = [first["image"][order[0]], first["pair"][order[0]], second["image"][order[1]], second["pair"][order[1]]]
    for i, a in enumerate(views):
        for b in views[i + 1 :]:
            assert not any(torch.equal(x, y) for x, y in zip(a, b))


def test_mirroring_in_memory_equals_mirroring_one_by_one():
    datamodule = data(transform=AsIs(flip=True), batch_size=100)
    batch = next(iter(datamodule.train_dataloader()))
    images = datamodule.images("train")
    straight = torch.from_numpy(images.array[batch["index"]])
    unchanged = (batch["image"] == straight).flatten(1).all(1)
    mirrored = (batch["image"] == straight.flip(-1)).flatten(1).all(1)
    assert (unchanged | mirrored).all()
    assert 30 < int(mirrored.sum()) < 70
    one_by_one = data(transform=CenterCrop(8, flip=True), batch_size=100)  # the same pixels one by one
    assert torch.equal(next(iter(one_by_one.train_dataloader()))["image"], batch["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_images_come_once_without_randomness(photos, workers):
    datamodule = data(
        ImageFolder(photos, eval_share=0.4), transform=RandomCrop(16, flip=True), batch_size=4, workers=workers
    )
    batches = list(datamodule.val_dataloader())
    evaluation = datamodule.images("eval")
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(evaluation)))
    expected = [CenterCrop(16)(evaluation.load(i)) for i in range(len(evaluation))]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), torch.stack(expected))


# several processes


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_ranges_of_processes_are_exact(world):
    for size in (0, 1, 5, 101):
        ranges = [rank_range(size, rank, world) for rank in range(world)]
        rows = [row for start, stop in ranges for row in range(start, stop)]
        assert rows == list(range(size))


def test_two_processes_train_on_the_images_of_one():
    datamodule = data()
    one = [keys.index.tolist() for keys in islice(StreamSampler(100, 8, 3), 40)]
    ranks = [[keys.index.tolist() for keys in islice(StreamSampler(100, 4, 3, rank, 2), 40)] for rank in range(2)]
    for whole, even, odd in zip(one, *ranks):
        assert whole[::2] == even
        assert whole[1::2] == odd
    flat = [index for batch in one for index in batch]
    for epoch in range(3):
        assert sorted(flat[100 * epoch : 100 * epoch + 100]) == list(range(100))
    assert flat[:100] != flat[100:200]
    later = StreamSampler(100, 8, 3, start=lambda: 16)
    assert [keys.index.tolist() for keys in islice(later, 38)] == one[2:]
    datamodule.trainer = SimpleNamespace(
        global_rank=1,
        world_size=2,
        lightning_module=None,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    rows = torch.cat([batch["index"] for batch in datamodule.val_dataloader()])
    assert rows.tolist() == list(range(225, 451))


def test_batches_of_extraction_stay_within_their_range():
    batches = [list(zip(keys.index, keys.view)) for keys in FixedBatches([(0, 5), (10, 13)], 2, 4)]
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 2]
    assert sum(batches, []) == [(i, v) for i in [*range(5), *range(10, 13)] for v in range(2)]  # noqa: RUF017


# stores


@pytest.mark.parametrize(
    ("transform", "views"),
    [
        (CenterCrop(16), None),
        (CenterCrop(16), Views(flips=True)),
        (RandomCrop(16, 20), Views(crops=3, flips=True)),
        (RandomResizedCrop(16, flip=True), Views(crops=2, seed=5)),
    ],
)
def test_a_stored_row_belongs_to_the_pixels_of_its_batch(photos, tmp_path, transform, views):
    source = ImageFolder(photos, eval_share=0.2)
    settings = {"source": source, "transform": transform, "views": views}
    folder = extract(data(**settings), tmp_path / "store")
    datamodule = data(**settings, stores=[folder], needs={"image", "pixels", "label"}, batch_size=7, workers=1)
    datamodule.setup()
    assert datamodule.spec.columns["pixels"]["shape"] == [3, 16, 16]
    assert datamodule.spec.identities["pixels"] == "identity"
    seen = set()
    for batch in islice(datamodule.train_dataloader(), 20):
        assert torch.equal(as_floats(batch)["image"], batch["pixels"])
        seen.update(batch["view"].tolist())
    assert seen == set(range(views.count if views else 1))


def test_the_views_of_an_image_differ(photos, tmp_path):
    datamodule = data(ImageFolder(photos, eval_share=0), transform=RandomCrop(16, 24), views=Views(crops=2, flips=True))
    pixels = Store.open(extract(datamodule, tmp_path / "store")).whole("pixels")
    assert pixels.shape[:2] == (30, 4)
    assert np.array_equal(pixels[:, 0], pixels[:, 1][..., ::-1])
    assert not np.array_equal(pixels[:, 0], pixels[:, 2])


def test_stored_columns_alone_need_no_matching_transform(tmp_path):
    source = Digits(limit=100)
    folder = extract(data(source, views=Views(flips=True)), tmp_path / "store", floats="float16")
    datamodule = data(source, needs={"pixels"}, stores=[folder], transform=AsIs(flip=True))
    datamodule.setup()
    batch = next(iter(datamodule.train_dataloader()))
    assert set(batch) == {"index", "view", "pixels"}
    assert batch["pixels"].dtype == torch.float32
    assert set(batch["view"].tolist()) == {0, 1}


def test_evaluation_stores_are_joined(tmp_path):
    source = Digits(limit=100)
    datamodule = data(source, views=Views(flips=True))
    folders = [extract(datamodule, tmp_path / split, split) for split in ("train", "eval")]
    datamodule = data(
        source,
        {"image", "pixels"},
        views=Views(flips=True),
        stores=folders[:1],
        eval_stores=folders[1:],
        batch_size=64,
    )
    datamodule.setup()
    for batch in datamodule.val_dataloader():
        assert torch.equal(as_floats(batch)["image"], batch["pixels"])


def test_wrong_stores_are_rejected(tmp_path):
    source = Digits(limit=100)
    folder = extract(data(source), tmp_path / "store")
    cases = [
        (data(Digits(limit=90), {"pixels"}, stores=[folder]), "dataset is"),
        (data(source, {"pixels"}, eval_stores=[folder]), "dataset is"),
        (
            data(source, {"image", "pixels"}, stores=[folder], transform=CenterCrop(16)),
            "transform is 'as is', not 'shorter",
        ),
        (
            data(source, {"image", "pixels"}, stores=[folder], views=Views(flips=True)),
            "transform is 'as is', not 'as is, and",
        ),
        (data(source, {"image", "pixels"}, stores=[folder], transform=AsIs(flip=True)), r"set data\.views"),
        (data(source, {"pixels"}, stores=[folder, folder]), "two stores"),
        (data(source, {"pixels"}, stores=[tmp_path / "nowhere"]), "no store at"),
    ]
    for datamodule, message in cases:
        with pytest.raises(UserError, match=message):
            datamodule.setup("validate" if datamodule.store_paths["eval"] else "fit")
    same_images = extract(data(source), tmp_path / "other", column="more", split="train", dataset="x")
    with pytest.raises(UserError, match="dataset is 'x'"):
        data(source, {"pixels"}, stores=[same_images]).setup("fit")


def test_a_key_that_nothing_provides_is_an_error_at_setup(photos):
    with pytest.raises(UserError, match="labels"):
        data(FlatFolder(photos), {"image", "label"}, transform=CenterCrop(16)).setup("fit")
    with pytest.raises(UserError, match=r"'representation'.*rcg extract.*data\.stores"):
        data(needs={"image", "representation"}).setup("fit")
    with pytest.raises(UserError, match="random crops"):
        data(views=Views(crops=2))


# with a Trainer


class Small(pl.LightningModule):
    """A network with randomness."""

    needs = frozenset({"image", "label"})

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.Linear(16, 10))

    def training_step(self, batch, _):
        noisy = batch["image"] + 0.1 * torch.randn_like(batch["image"])
        return nn.functional.cross_entropy(self.net(noisy), batch["label"])

    def validation_step(self, batch, _):
        self.log("random", torch.rand(()))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Order(Callback):
    """Record which images were trained on."""

    def __init__(self):
        self.index = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.index.append(batch["index"].tolist())


def train(folder, steps, workers=0, ckpt_path=None, batch_size=48, **settings):
    order = Order()
    saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        callbacks=[Reseed(3), order, saver],
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=4,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    module = Small()
    datamodule = ImageDataModule(Digits(limit=100), AsIs(flip=True), batch_size=batch_size, workers=workers, seed=1)
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    return SimpleNamespace(
        module=module, order=order.index, data=datamodule, optimizer=trainer.optimizers[0].state_dict()
    )


@pytest.mark.parametrize(("workers", "settings"), [(0, {}), (2, {}), (0, {"accumulate_grad_batches": 2})])
def test_a_run_continues_bit_for_bit(tmp_path, workers, settings):
    unbroken = train(tmp_path / "a", 14, workers, **settings)
    train(tmp_path / "b", 9, workers, **settings)  # saved at step 7, then lost
    resumed = train(tmp_path / "b", 14, workers, ckpt_path=tmp_path / "b" / "step=7.ckpt", **settings)
    batches = 7 * settings.get("accumulate_grad_batches", 1)
    assert resumed.order == unbroken.order[batches:]  # 100 images, batches of 48: in the middle of an epoch
    assert resumed.data.samples_seen == unbroken.data.samples_seen == 2 * batches * 48
    for name, value in unbroken.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
    for number, state in unbroken.optimizer["state"].items():
        assert all(torch.equal(value, resumed.optimizer["state"][number][key]) for key, value in state.items())


def test_a_run_continues_with_another_batch_size(tmp_path):
    first = train(tmp_path, 7)
    second = train(tmp_path, 10, ckpt_path=tmp_path / "step=7.ckpt", batch_size=20)
    assert second.data.samples_seen == 7 * 48 + 3 * 20
    stream = islice(StreamSampler(100, 1, 1), second.data.samples_seen)
    expected = [int(keys.index[0]) for keys in stream]
    assert [i for batch in first.order + second.order for i in batch] == expected


def test_a_training_is_validated_on_images_chosen_at_random():
    class Validates(Small):
        def validation_step(self, batch, batch_idx):
            seen.append(batch["index"].tolist())

    seen, datamodule = [], ImageDataModule(Digits(limit=100), batch_size=16, validation_limit=40)
    settings = {"accelerator": "cpu", "use_distributed_sampler": False, "enable_progress_bar": False, "logger": False}
    trainer = pl.Trainer(
        max_steps=1, val_check_interval=1, num_sanity_val_steps=0, enable_checkpointing=False, **settings
    )
    trainer.fit(Validates(), datamodule)
    assert [len(batch) for batch in seen] == [16, 16, 8]
    chosen = [index for batch in seen for index in batch]
    assert len(set(chosen)) == 40
    assert sorted(chosen) != chosen
    assert max(seen[0]) > 100  # a batch alone is a choice from all
    seen.clear()
    trainer.validate(Validates(), datamodule)
    assert sum(map(len, seen)) == len(datamodule.images("eval"))


def test_the_module_declares_its_needs_and_receives_floats(tmp_path):
    class ChecksBatches(Small):
        def training_step(self, batch, batch_idx):
            assert set(batch) == {"index", "view", "image", "label"}
            assert batch["image"].dtype == torch.float32
            assert 0 <= float(batch["image"].min()) <= float(batch["image"].max()) <= 1
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(fast_dev_run=2, accelerator="cpu", use_distributed_sampler=False, enable_progress_bar=False)
    trainer.fit(ChecksBatches(), ImageDataModule(Digits(limit=100), batch_size=16))


def test_validation_without_its_stores_is_skipped_in_fit_and_rejected_alone(tmp_path):
    source = Digits(limit=100)
    folder = extract(data(source), tmp_path / "store")

    class NeedsPixels(Small):
        needs = frozenset({"image", "label", "pixels"})

        def validation_step(self, batch, _):
            raise AssertionError("there is nothing to validate on")

    settings = {"accelerator": "cpu", "use_distributed_sampler": False, "logger": False, "enable_progress_bar": False}
    settings |= {
        "enable_checkpointing": False,
        "max_steps": 3,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
    }
    datamodule = ImageDataModule(source, batch_size=16, stores=[folder])
    trainer = pl.Trainer(**settings)
    trainer.fit(NeedsPixels(), datamodule)
    assert trainer.global_step == 3
    with pytest.raises(UserError, match="eval_stores"):
        pl.Trainer(**settings).validate(NeedsPixels(), ImageDataModule(source, batch_size=16, stores=[folder]))


# instances


def neighbours(datamodule, folder, found, representation="identity"):
    identity = {**datamodule.store_identity("train"), "neighbours": "test"}
    writer = StoreWriter(folder, len(found), 1, 7, identity)
    for shard in writer.shards:
        writer.write(shard, {"neighbours": found[shard.start : shard.stop, None]})
    writer.finish({"neighbours": {"representation": representation}})
    return folder


def test_an_instance_comes_with_the_image_and_label_of_one_of_its_neighbours(tmp_path):
    datamodule = data(views=Views(flips=True), batch_size=100)
    store = extract(datamodule, tmp_path / "store", column="representation")
    evaluation = extract(datamodule, tmp_path / "eval", "eval", column="representation")
    found = (np.arange(100)[:, None] + np.array([0, 3, 5])) % 100
    near = neighbours(datamodule, tmp_path / "near", found)
    joined = data(needs=("image", "label", "instance"), batch_size=100, stores=[store, near], eval_stores=[evaluation])
    assert joined.spec.columns["instance"] == joined.spec.columns["representation"]
    assert joined.spec.identities["instance"] == "identity"
    images, offsets, flipped = joined.images("train"), [], 0
    for batch in islice(joined.train_dataloader(), 4):
        index = batch["index"].numpy()
        assert (batch["image"].numpy() == images.array[index]).all()
        assert (batch["label"].numpy() == images.labels[index]).all()
        instances = np.round(batch["instance"].numpy() * 255).astype(np.uint8)  # the representations are the images
        for instance, number in zip(instances, index):
            candidates = {offset: images.array[(number - offset) % 100] for offset in (0, 3, 5)}
            hits = [o for o, image in candidates.items() if (instance == image).all()]
            mirrored = [o for o, image in candidates.items() if (instance == image[..., ::-1]).all()]
            assert hits or mirrored
            offsets += hits or mirrored
            flipped += not hits
    assert {o: offsets.count(o) for o in (0, 3, 5)} == pytest.approx({0: 133, 3: 133, 5: 133}, abs=35)
    assert 140 < flipped < 260  # the view of the instance is random
    batch = next(iter(joined.val_dataloader()))
    assert (np.round(batch["instance"].numpy() * 255) == batch["image"].numpy()).all()  # each image is its own instance


def test_instances_need_neighbours_of_the_same_representations(tmp_path):
    datamodule = data()
    store = extract(datamodule, tmp_path / "store", column="representation")
    with pytest.raises(UserError, match="rcg neighbours"):
        data(needs=("image", "instance"), stores=[store]).setup("fit")
    near = neighbours(datamodule, tmp_path / "near", np.arange(100)[:, None], representation="another")
    with pytest.raises(UserError, match="by representations another"):
        data(needs=("image", "instance"), stores=[store, near]).setup("fit")
