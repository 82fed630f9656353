"""Objects that record their constructor's arguments as plain data.

A checkpoint holds such a description instead of pickled objects. So it can be read with ``weights_only=True``, and it
rebuilds the right classes, whether the object came from a config file or from Python code.
"""

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Self, get_args

from rcg_lightning.arguments import annotations, bound_arguments, check_arguments
from rcg_lightning.errors import UserError

_PACKAGE = __name__.partition(".")[0]
_LOCATION = object()
HubName = Annotated[str, _LOCATION]  # names a repository of the Hugging Face hub; never described, like a path


class ConfigMixin:
    """Mixin that records the constructor's arguments; every injected class of the project inherits from it.

    Arguments are numbers, strings, lists, dictionaries, other ``ConfigMixin`` objects, or a location: a
    ``pathlib.Path`` or a ``HubName``. A location is given at run time by the user. It is never described, and a
    description that names one is rejected.

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
    """Return ``value`` as plain data (numbers, strings, lists, dictionaries); locations become ``None``."""
    if isinstance(value, ConfigMixin):
        kind = type(value)
        places = locations(kind)
        arguments = {
            name: None if name in places else describe(argument) for name, argument in value._arguments.items()
        }
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

    Only subclasses of ``ConfigMixin`` are ever called, so a checkpoint from a stranger cannot run other code, and it
    cannot make this machine read a path or fetch a file.

    Raises:
        UserError: the class does not exist here, is not a ``ConfigMixin`` class, does not take these arguments, or one
            of them is a location.
    """
    if isinstance(description, list):
        return [construct(item) for item in description]
    if not isinstance(description, Mapping):
        return description
    if "class_path" not in description:
        return {key: construct(item) for key, item in description.items()}
    kind, given = find_class(description["class_path"]), description.get("init_args", {})
    if not isinstance(given, Mapping):
        raise UserError(f"{kind.__name__} cannot be rebuilt from its description: its init_args are no dictionary")
    for name in locations(kind):
        if given.get(name) is not None:
            raise UserError(
                f"the file names a location, {kind.__name__}.{name} = {str(given[name])[:80]!r}: this version "
                "stores none; do not use it unless you know who made it"
            )
    arguments = {name: construct(item) for name, item in given.items()}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise UserError(f"{description['class_path']} cannot be rebuilt from its description: {error}") from error


def find_class(class_path: str) -> type[ConfigMixin]:
    """Return the ``ConfigMixin`` class that ``class_path`` names.

    Only modules of this package are imported. A class of any other module is found if that module is loaded: importing
    whatever a file names would run code that the user never chose.
    """
    module_name, _, name = class_path.rpartition(".") if isinstance(class_path, str) else ("", "", "")
    module = _module(module_name)
    if module is None:
        raise UserError(
            f"no class {class_path} here: was the file made by another version? If it is your own class, name its "
            "module with --plugin (in Python, import it first)"
        )
    kind = getattr(module, name, None)
    if kind is None:
        raise UserError(f"no class {class_path} here: was the file made by another version?")
    if not (isinstance(kind, type) and issubclass(kind, ConfigMixin)):
        raise UserError(f"{class_path} is not a class that a checkpoint may name")
    return kind


def _module(name: str) -> ModuleType | None:
    """Return a loaded module, or one of this package, which is imported from the package's own folder."""
    package, *rest = name.split(".")
    if package == _PACKAGE and all(part.isidentifier() and not part.startswith("_") for part in rest):
        try:
            return importlib.import_module(name)
        except ImportError:
            return None
    return sys.modules.get(name)


@cache
def locations(kind: type[ConfigMixin]) -> frozenset[str]:
    """Return the names of a class's arguments that are locations: a path, or a name on a hub."""
    return frozenset(name for name, hint in annotations(kind.__init__).items() if _names_location(hint))


def _names_location(hint: Any) -> bool:
    if hint is Path or _LOCATION in getattr(hint, "__metadata__", ()):
        return True
    return any(_names_location(part) for part in get_args(hint))
