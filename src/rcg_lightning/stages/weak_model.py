"""Whether a weaker model can guide a generator: both have to estimate the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from rcg_lightning.types import Part, require


@dataclass(frozen=True)
class Estimates:
    """What a generator estimates.

    Attributes:
        makes: key of the batch that it generates.
        shape: of one encoded example.
        condition: parts of its condition.
        identities: fingerprints of the data of its training, by name.
    """

    makes: str
    shape: tuple[int, ...]
    condition: tuple[Part, ...]
    identities: Mapping[str, str]


def require_comparable(mine: Estimates, weak: Estimates) -> None:
    """Raise a UserError where the estimates of a weaker model cannot be compared with a generator's."""
    require(
        (weak.shape, weak.makes) == (mine.shape, mine.makes),
        f"the weaker model makes {weak.makes}s of shape {weak.shape}, this one {mine.makes}s of shape {mine.shape}: "
        "give one of the same space",
    )
    differ = f"the weaker model is conditioned on {weak.condition}, this one on {mine.condition}"
    require(weak.condition in ((), mine.condition), f"{differ}: give one with the same condition")
    for name in ("representation", "tokens", "latent"):
        one, two = mine.identities.get(name), weak.identities.get(name)
        agree = None in (one, two) or one == two
        require(agree, f"the weaker model was trained on {name} {two}, this one on {one}: give one of the same")
