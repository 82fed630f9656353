"""Chooses the library of matrix products for as long as a run goes on."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch.callbacks import Callback

from rcg_lightning.core.products import onednn_products


class Products(Callback):
    """Large matrix products on CPUs are oneDNN's while the trainer runs.

    Args:
        on: None for where that is the faster library.
    """

    def __init__(self, on: bool | None = None) -> None:
        self.on = on
        self._stack = ExitStack()

    def setup(self, *_: Any, **__: Any) -> None:
        self._stack.close()  # of a run that has failed
        self._stack.enter_context(onednn_products(self.on))

    def teardown(self, *_: Any, **__: Any) -> None:
        self._stack.close()

    def on_exception(self, *_: Any, **__: Any) -> None:
        self._stack.close()
