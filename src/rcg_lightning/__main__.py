"""`python -m rcg_lightning`: the `rcg` command, also from a checkout that isn't installed."""

from rcg_lightning.cli import __main__  # noqa: F401
