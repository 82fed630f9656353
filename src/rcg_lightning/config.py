"""Objects that record their constructor's arguments as plain data.

A checkpoint holds such a description instead of pickled objects. So it can be read with ``weights_only=True``, and it
rebuilds the right classes, whether the object came from a config file or from Python code.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rcg_lightning.arguments import bound_arguments, check_arguments
from rcg_lightning.errors import UserError


class ConfigMixin:
    """Mixin that records the constructor's arguments; every injected class of the project inherits from it.

    Arguments are numbers, strings, lists, dictionaries, other ``ConfigMixin`` objects, or a ``pathlib.Path``. A path
    holds on this machine only: it is given at run time and never described.

    The arguments are checked against the constructor's annotations before it runs, wherever they come from.
    """

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        arguments = bound_arguments(cls.__init__, args, kwargs)
        check_arguments(cls.__init__, arguments, f"{cls.__name__}: ")
        object.__setattr__(self, "_arguments", arguments)
        return self


def describe(value: Any) -> Any:
    """Return ``value`` as plain data (numbers, strings, lists, dictionaries); paths become ``None``."""
    if isinstance(value, ConfigMixin):
        kind = type(value)
        arguments = {name: describe(argument) for name, argument in value._arguments.items()}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
    if isinstance(value, Path):
        return None
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} has no plain description: make it a ConfigMixin class")


def construct(description: Any) -> Any:
    """Rebuild an object from its description: the inverse of ``describe``.

    Only subclasses of ``ConfigMixin`` are ever called, so a checkpoint from a stranger cannot run other code.

    Raises:
        UserError: the class does not exist here, is not a ``ConfigMixin`` class or does not take these arguments.
    """
    if isinstance(description, list):
        return [construct(item) for item in description]
    if not isinstance(description, Mapping):
        return description
    if "class_path" not in description:
        return {key: construct(item) for key, item in description.items()}
    kind = find_class(description["class_path"])
    arguments = {name: construct(item) for name, item in description.get("init_args", {}).items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"{description['class_path']} cannot be rebuilt from its description: {error}") from error


def find_class(class_path: str) -> type[ConfigMixin]:
    """Return the ``ConfigMixin`` class that ``class_path`` names."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"no class {class_path} here: was the file made by another version or a plugin?") from error
    if not (isinstance(kind, type) and issubclass(kind, ConfigMixin)):
        raise UserError(f"{class_path} is not a class that a checkpoint may name")
    return kind
