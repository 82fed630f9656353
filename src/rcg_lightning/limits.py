"""Limits on what a file may claim about itself, checked before anything of it is decoded or allocated.

Each is above what real data claim. The environment variable RCG_LIMIT_NAME raises one, such as RCG_LIMIT_PIXELS.
Nothing here imports torch or numpy.
"""

import os
from dataclasses import dataclass

from rcg_lightning.errors import UserError


@dataclass(frozen=True)
class Limit:
    """The largest number of ``unit`` that a file may claim: ``default``, or what the environment sets."""

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """The environment variable that changes the limit."""
        return f"RCG_LIMIT_{self.name}"

    @property
    def value(self) -> int:
        """The limit in force, or a UserError where the variable is not a positive whole number."""
        given = os.environ.get(self.variable)
        if not given:
            return self.default
        if not (given.isascii() and given.isdigit() and len(given) < 19 and int(given) > 0):
            raise UserError(f"{self.variable} is {given!r}: give a positive whole number, or remove the variable")
        return int(given)

    def excess(self, found: int | None = None) -> str:
        """Describe a claim above the limit; ``found`` is None where it is not known how much is claimed."""
        claim = f"{found:,} {self.unit}" if found is not None else f"too many {self.unit}"
        return f"claims {claim}, the limit is {self.value:,}: if that is right, set {self.variable} higher"

    def check(self, found: int, subject: str) -> None:
        """Raise a UserError where ``subject``, such as a file, claims more than the limit."""
        if found > self.value:
            raise UserError(f"{subject} {self.excess(found)}")


PIXELS = Limit("PIXELS", 178_956_970, "pixels")  # of an image; Pillow's own limit
CLASSES = Limit("CLASSES", 100_000, "classes")  # of a data set: the rows of an embedding table
ENTRIES = Limit("ENTRIES", 1_000_000_000, "entries")  # of a store: images times views
EXPANSION = Limit("EXPANSION", 100, "times the bytes of its file")  # of the arrays in a compressed file
CONFIG_VALUES = Limit("CONFIG_VALUES", 100_000, "values")  # of a config, with its aliases and fragments written out
