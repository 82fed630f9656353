"""Configs are data of others: their aliases and fragments cannot grow without limit."""

import time

import pytest

from rcg_lightning.config_files import check_aliases, read_config
from rcg_lightning.errors import UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize("text", [LAUGHS, MERGED, "a: &a [*a]\n", "a: &a {b: *a}\n"])
def test_aliases_without_end_are_rejected_at_once(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"a\.yaml: YAML that, with its aliases, claims .*RCG_LIMIT_CONFIG_VALUES"):
        read_config(tmp_path / "a.yaml")
    with pytest.raises(UserError):
        check_aliases(text, "it")
    assert time.monotonic() - started < 1


def test_aliases_of_usual_configs_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("one: &one {x: [1, '*']}\ntwo: *one\nthree: {<<: *one, y: 2}\n")
    assert read_config(tmp_path / "a.yaml")["three"] == {"x": [1, "*"], "y": 2}


def test_fragments_that_include_many_others_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("RCG_LIMIT_CONFIG_VALUES", "1000")
    for i in range(8):
        (tmp_path / f"{i}.yaml").write_text(f"[{', '.join([f'{i + 1}.yaml'] * 10)}]")
    with pytest.raises(UserError, match=r"with all that it includes claims 1,001 values.*RCG_LIMIT_CONFIG_VALUES"):
        read_config(tmp_path / "0.yaml")


def test_a_value_that_python_cannot_hold_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("when: 2024-99-99\n")
    with pytest.raises(UserError, match=r"a\.yaml: no valid YAML"):
        read_config(tmp_path / "a.yaml")


def test_a_config_that_the_parser_reads_itself_is_checked_too(tmp_path):
    from rcg_lightning.cli.parsing import call

    def command(values: dict[str, list]) -> None:
        """Do nothing."""

    with pytest.raises(UserError, match="RCG_LIMIT_CONFIG_VALUES"):
        call(command, "command", ["--values", "{" + LAUGHS.strip().replace("\n", ", ") + "}"], names=False)
