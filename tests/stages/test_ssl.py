"""MoCo v3 on the digits: training, momentum encoder, views, keys of all processes, export and resume."""

import copy
import math
import multiprocessing

import pytest
import torch
from lightning.pytorch import Trainer

from rcg_lightning.callbacks.reseed import Reseed
from rcg_lightning.data.augmentations import MoCoV3Colour, SmallGreyAugmentation
from rcg_lightning.data.data_module import ImageDataModule
from rcg_lightning.data.datasets import Digits
from rcg_lightning.errors import UserError
from rcg_lightning.networks.convnet import SmallConvNet
from rcg_lightning.networks.heads import Predictor, Projected, ProjectionHead
from rcg_lightning.pretrained.normalisation import Identity
from rcg_lightning.pretrained.preprocess import Preprocess
from rcg_lightning.pretrained.trained_encoder import TrainedEncoder
from rcg_lightning.stages.base import Stage
from rcg_lightning.stages.optimization import AdamW, CosineLR
from rcg_lightning.stages.ssl import MoCoV3Stage, cosine_momentum, gather
from rcg_lightning.types import DataSpec

DIGITS = DataSpec(image=(1, 8, 8), classes=10)


def digits_stage(**settings) -> MoCoV3Stage:
    given = {
        "encoder": Projected(SmallConvNet(1, 8, widths=(16, 32, 32)), ProjectionHead(32, 64, 16, layers=2)),
        "predictor": Predictor(16, 64, 16),
        "view1": SmallGreyAugmentation(),
        "view2": SmallGreyAugmentation(),
        "optimizer": AdamW(lr=4e-3, weight_decay=1e-4, lr_schedule=CosineLR(warmup=6)),
        "momentum": 0.98,
        "preprocess": Preprocess([0.5], [0.5]),
    }
    return MoCoV3Stage(**given | settings)


def trainer(folder, steps, **settings):
    return Trainer(
        max_steps=steps,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **settings,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stage after 60 steps on the digits, its trainer, and the validation metrics before and after training."""
    folder = tmp_path_factory.mktemp("moco")
    stage, data = digits_stage(), ImageDataModule(Digits(), batch_size=96)
    fit = trainer(folder, 60, val_check_interval=60)
    torch.manual_seed(0)
    fit.fit(stage, datamodule=data)
    after = {name: float(value) for name, value in fit.callback_metrics.items()}
    untrained = trainer(folder, 1)
    before = untrained.validate(digits_stage(), datamodule=ImageDataModule(Digits(), batch_size=96), verbose=False)[0]
    return stage, fit, before, after


def batch(n=8):
    return {"image": torch.rand(n, 1, 8, 8), "index": torch.arange(n)}


def test_after_training_neighbours_have_the_same_class(trained):
    _, _, before, after = trained
    assert after["val/knn_head"] > 0.85
    assert after["val/knn_head"] > before["val/knn_head"] + 0.1
    assert after["val/rank_head"] > 4
    assert after["val/uniformity_head"] < -1.5


def test_the_exported_encoder_has_the_features_of_the_stage(trained):
    stage, fit, _, _ = trained
    image = torch.rand(5, 1, 8, 8)
    expected = stage.eval().features(image)
    for head in (True, False):
        encoder = TrainedEncoder(f"{fit.default_root_dir}/encoder", head=head, normalise=Identity())
        torch.testing.assert_close(encoder(image), expected["head" if head else "backbone"])


def test_a_checkpoint_rebuilds_the_stage_exactly(trained, tmp_path):
    stage, fit, _, _ = trained
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = Stage.load(tmp_path / "last.ckpt")
    assert isinstance(again, MoCoV3Stage)
    assert again.steps == 60
    assert again.needs == {"image", "label"}
    state = again.state_dict()
    assert any(name.startswith("momentum_encoder.") for name in state)
    for name, value in stage.state_dict().items():
        assert torch.equal(state[name], value), name


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path):
    def run(steps, resume=None):
        # schedules that do not depend on the number of steps, since the first run stops early
        stage = digits_stage(final_momentum=0.98, optimizer=AdamW(lr=1e-3))
        fit = trainer(tmp_path, steps, callbacks=[Reseed()])
        fit.fit(stage, datamodule=ImageDataModule(Digits(), batch_size=32), ckpt_path=resume)
        fit.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return stage.state_dict()

    whole = run(5)
    run(3)
    resumed = run(5, tmp_path / "3.ckpt")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_the_momentum_encoder_is_a_moving_average(tmp_path):
    stage = digits_stage(momentum=0.9).build(DIGITS)
    stage._trainer = trainer(tmp_path, 10)
    start = copy.deepcopy(stage.momentum_encoder)
    with torch.no_grad():
        for parameter in stage.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    stage.after_step()
    m = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi / 10))
    old, online, new = start.parameters(), stage.encoder.parameters(), stage.momentum_encoder.parameters()
    for before, target, now in zip(old, online, new):
        torch.testing.assert_close(now, m * before + (1 - m) * target)


def test_momentum_rises_as_a_half_cosine():
    assert cosine_momentum(0, 100, 0.99, 1.0) == pytest.approx(0.99)
    assert cosine_momentum(50, 100, 0.99, 1.0) == pytest.approx(0.995)
    assert cosine_momentum(100, 100, 0.99, 1.0) == 1.0
    assert cosine_momentum(7, -1, 0.9, 0.9) == 0.9


def test_only_encoder_and_predictor_are_trained():
    stage = digits_stage().build(DIGITS)
    optimizer, _ = stage.optimizer.make(stage.trained_modules(), 10)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for module in (stage.encoder, stage.predictor) for p in module.parameters()}
    stage.train().losses(batch())["loss"].backward()
    assert all(p.grad is not None for module in stage.trained_modules() for p in module.parameters())
    assert all(p.grad is None for p in stage.momentum_encoder.parameters())


def test_keys_use_the_batch_statistics_of_their_own_batch():
    stage = digits_stage().build(DIGITS).train()
    given = batch()
    torch.manual_seed(0)
    loss = stage.losses(given)["loss"]
    for module in stage.momentum_encoder.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.num_batches_tracked == 2  # once for each view
            module.running_mean.fill_(7.0)
    torch.manual_seed(0)
    torch.testing.assert_close(stage.losses(given)["loss"], loss)


def test_views_swapped_give_the_same_loss():
    colours = MoCoV3Colour(jitter_probability=0, grey_probability=0, blur_probability=0)
    stage = digits_stage(view1=colours, view2=colours).build(DIGITS).train()
    one, two = torch.rand(2, 8, 1, 8, 8)
    torch.testing.assert_close(
        stage.losses({"image": one, "pair": two})["loss"], stage.losses({"image": two, "pair": one})["loss"]
    )


def keys_of_a_process(rank, path, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    keys = torch.arange(12.0).view(2, 6, 1)[:, 3 * rank : 3 * rank + 3]  # two views of three images
    gathered, offset = gather(keys)
    results.put((rank, offset, gathered.flatten(1).tolist()))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="slow without fork")
def test_keys_of_two_processes_are_gathered_in_the_order_of_ranks(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=keys_of_a_process, args=(r, tmp_path / "meet", results)) for r in range(2)]
    for worker in workers:
        worker.start()
    gathered = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    all_keys = torch.arange(12.0).view(2, 6).tolist()
    assert gathered == [(0, 0, all_keys), (1, 3, all_keys)]


def test_keys_of_one_process_are_its_own():
    keys = torch.rand(2, 4, 3)
    gathered, offset = gather(keys)
    assert torch.equal(gathered, keys)
    assert offset == 0


def test_initial_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    first = digits_stage().build(DIGITS).state_dict()
    torch.manual_seed(2)
    second = digits_stage().build(DIGITS).state_dict()
    third = digits_stage(seed=1).build(DIGITS).state_dict()
    name = "encoder.head.0.weight"
    assert torch.equal(first[name], second[name])
    assert torch.equal(first[name], first[f"momentum_{name}"])
    assert not torch.equal(first[name], third[name])


def test_views_that_crop_need_one_image_others_two():
    assert digits_stage().needs == {"image"}
    assert digits_stage().build(DIGITS).needs == {"image", "label"}
    assert digits_stage(view2=MoCoV3Colour()).build(DataSpec((1, 8, 8))).needs == {"image", "pair"}


def test_uncropped_views_are_rejected(tmp_path):
    stage = digits_stage(view1=MoCoV3Colour(), view2=MoCoV3Colour())
    with pytest.raises(UserError, match="RandomResizedCrop"):
        trainer(tmp_path, 2).fit(stage, datamodule=ImageDataModule(Digits(), batch_size=8))


def test_networks_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="does not fit"):
        digits_stage(predictor=Predictor(15, 64, 16)).build(DIGITS)
    with pytest.raises(UserError, match="predictor's dim"):
        digits_stage(predictor=Predictor(16, 64, 8)).build(DIGITS)


def test_neighbours_are_not_voted_on_without_labels(monkeypatch):
    stage = digits_stage().build(DIGITS).eval()
    monkeypatch.setattr(stage, "log", lambda *_, **__: pytest.fail("nothing can be measured without labels"))
    image = torch.rand(4, 1, 8, 8)
    features = stage.features(image)
    for bank, batch in (
        (features, {"image": image, "label": torch.zeros(4, dtype=torch.int64)}),
        (features | {"label": torch.zeros(4, dtype=torch.int64)}, {"image": image}),
    ):
        stage.bank = bank
        stage.validation_step(batch, 0)
