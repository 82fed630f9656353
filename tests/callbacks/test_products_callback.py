"""The library of matrix products is the trainer's choice for as long as it runs."""

import pytest

from rcg_lightning.callbacks.products import Products
from rcg_lightning.core import products
from rcg_lightning.trainer import Trainer

pytestmark = pytest.mark.skipif(not products.possible(), reason="this torch has no oneDNN")


def test_from_setup_to_teardown_or_failure():
    callback = Products(True)
    for end in (callback.teardown, callback.on_exception):
        callback.setup()
        callback.setup()  # after a run that ended without a word
        assert products._depth == 1
        end()
        assert products._depth == 0


def test_the_trainer_switches_it_off(tmp_path):
    trainer = Trainer(tmp_path, onednn=False, logger=False, enable_progress_bar=False)
    callback = next(callback for callback in trainer.callbacks if isinstance(callback, Products))
    callback.setup(trainer, None, "fit")
    assert products._depth == 0
