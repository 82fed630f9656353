"""Durations as people write and read them: 90s, 10m, 1h."""

import re

from rcg_lightning.errors import UserError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str, option: str = "--budget") -> float:
    """Return the seconds of a duration such as 90s, 10m, 1.5h or 1h30m; raise UserError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    whole = "".join(number + unit for number, unit in parts)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if whole != re.sub(r"\s", "", text.lower()) or not 0 < seconds < 1e8:
        raise UserError(f"{option} should be a duration such as 90s, 10m, 1h or 1h30m, not {text!r}")
    return seconds


def duration(seconds: float) -> str:
    """Return seconds as 8 s, 4 min 10 s, or 2 h 05 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
