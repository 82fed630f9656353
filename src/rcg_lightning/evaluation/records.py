"""The record stored with every metric, and whether two metrics may be compared. Nothing here imports torch."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

LOSSLESS = frozenset({"memory", "store", "npz", "png"})  # these hold the same pixels
_SETTINGS = ("name", "version", "number", "labels", "quantisation", "resize", "samples_resize", "neighbours")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Describe how two records (``Protocol.record``) differ; a setting that either lacks is no difference."""
    found = []
    for name in _SETTINGS:
        pair = one.get(name), other.get(name)
        if None not in pair and pair[0] != pair[1] and not (name == "name" and "own" in pair):
            found.append(f"{name} {pair[0]} and {pair[1]}")
    weights = one.get("weights"), other.get("weights")
    if None not in weights and weights[0] != weights[1]:
        found.append(f"features of {weights[0]} and {weights[1]}")
    elif None not in (one.get("extractor"), other.get("extractor")) and one["extractor"] != other["extractor"]:
        found.append("settings of the extractor")
    real = [record.get("reference") or {} for record in (one, other)]
    pairs = [(real[0].get(key), real[1].get(key)) for key in ("set", "identity")]
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        names = [_reference(found) for found in real]
        found.append(f"reference {names[0]} and {names[1]}")
    formats = [_losses(record.get("format")) for record in (one, other)]
    if None not in formats and formats[0] != formats[1]:
        found.append(f"format {formats[0]} and {formats[1]}")
    return found


def comparable(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether metrics with these records may be compared; if not, one warning names all differences."""
    found = ["the protocol of one is not recorded"] if not one or not other else differences(one, other)
    if found:
        log.warning("these metrics have different protocols and are not comparable: %s", "; ".join(found))
    return not found


def one_format(formats: Mapping[str, str | None]) -> bool:
    """Whether all images are lossless, or lost detail in the same format; if not, one warning names the formats.

    Args:
        formats: description of each source of images -> its format; None where it holds no images.
    """
    kinds = {_losses(format) for format in formats.values() if format is not None}
    if len(kinds) > 1:
        found = ", ".join(f"{source} {format}" for source, format in formats.items() if format is not None)
        log.warning("formats are mixed (%s): JPEG's losses alone change a Fréchet distance", found)
    return len(kinds) <= 1


def _reference(found: Mapping[str, Any]) -> str:
    words = [found.get("file") or found.get("set"), str(found.get("identity") or "")[:8]]
    return " ".join(word for word in words if word)


def _losses(format: str | None) -> str | None:
    return "lossless" if format in LOSSLESS else format
