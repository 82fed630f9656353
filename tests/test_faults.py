"""The command that injects faults: it must see torn files and wrong results, and choose the same share each time."""

import errno

import numpy as np
import pytest

from tests.faults.cases import Case, Outcome, share_of
from tests.faults.files import _Failing, full_disk
from tests.faults.report import table
from tests.faults.results import differences, results, torn_files


def test_torn_and_changed_files_are_seen(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(50))
    (tmp_path / "b.json").write_text('{"fd": 1.5, "seconds": 3}')
    before = results(tmp_path)
    (tmp_path / "b.json").write_text('{"fd": 1.5, "seconds": 4}')
    assert not torn_files(tmp_path)
    assert not differences(results(tmp_path), before)
    (tmp_path / "b.json").write_text('{"fd": 1.6, "seconds": 4}')
    assert differences(results(tmp_path), before) == ["b.json differs"]
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-1])
    (tmp_path / ".c.json.draft").write_text("{")
    assert [line.partition(":")[0] for line in torn_files(tmp_path)] == ["a.npy"]


def test_a_full_disk_takes_the_first_bytes(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, open(tmp_path / "a", "wb", 0) as file:
        _Failing(file, 4, full_disk).write(b"abcdefgh")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "a").read_bytes() == b"abcd"


def test_a_share_has_cases_of_every_kind():
    cases = [Case(kind, str(n), "", print) for kind, count in {"many": 25, "few": 2}.items() for n in range(count)]
    chosen = share_of(cases, 0.1)
    assert [case.title for case in chosen] == ["many/9", "many/19", "few/0"]


def test_a_deviation_is_in_the_table():
    outcomes = [Outcome("kill", "a", "rc 0", "", 1.0), Outcome("kill", "b", "rc 0", "rc 1 | died", 2.0)]
    text = table(outcomes, "faults")
    assert "| kill | rc 0 | 2 | 1 | 3 |" in text
    assert "\n1 passed, 1 failed\n" in text
    assert "| kill/b | rc 0 | rc 1 \\| died |" in text
