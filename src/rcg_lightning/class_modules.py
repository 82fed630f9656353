"""Imports every module that defines a class which a config may name, so that short names work."""

import importlib
import pkgutil

import rcg_lightning

_PACKAGES = ("core", "networks", "pretrained", "data", "stages", "conditions", "metrics", "callbacks")

for _package in _PACKAGES:
    _name = f"{rcg_lightning.__name__}.{_package}"
    for _module in pkgutil.iter_modules(importlib.import_module(_name).__path__):
        importlib.import_module(f"{_name}.{_module.name}")
