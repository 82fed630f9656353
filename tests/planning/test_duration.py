import pytest

from rcg_lightning.errors import UserError
from rcg_lightning.planning.duration import duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1.5h", 5400), ("1h30m", 5400), ("2 H", 7200)]
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "ten minutes", "0m", "-5m", "10m x", "1e9h", "5 min", "m"])
def test_anything_else_is_rejected_in_one_line(text):
    with pytest.raises(UserError, match="--budget should be a duration such as 90s") as caught:
        parse_duration(text)
    assert "\n" not in str(caught.value)


def test_durations_are_written():
    shown = [duration(seconds) for seconds in (3.2, 60, 250, 3599.9, 7500)]
    assert shown == ["3 s", "1 min", "4 min 10 s", "1 h 00 min", "2 h 05 min"]
