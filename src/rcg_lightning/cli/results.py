"""Print and write the results of a command: metrics and their protocol."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcg_lightning.artifacts import write_json
from rcg_lightning.cli.messages import echo
from rcg_lightning.evaluation.results import add_differences, results_text


def report(
    content: dict[str, Any], out: Path | None = None, as_json: bool = False, earlier: Mapping[str, Any] | None = None
) -> None:
    """Print results and write them to a file.

    Args:
        content: from ``content_of``, with further keys.
        out: JSON file to write.
        as_json: print the same JSON and nothing else.
        earlier: results of other samples; differences are added, with a warning if protocols differ.
    """
    if earlier is not None:
        add_differences(content, earlier)
    if out is not None:
        write_json(out, content)
    echo(json.dumps(content, indent=1) if as_json else results_text(content))
