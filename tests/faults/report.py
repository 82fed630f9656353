"""The table of all cases: grouped and counted, deviations in full."""

from collections.abc import Sequence

from .cases import Outcome


def table(outcomes: Sequence[Outcome], again: str) -> str:
    """Return a Markdown table with a row for each kind of fault, and below it each deviation.

    Args:
        again: the command that repeats a case, without the case's name.
    """
    lines = ["| fault | expected | cases | as expected | seconds |", "|---|---|---:|---:|---:|"]
    for kind, expected in dict.fromkeys((outcome.kind, outcome.expected) for outcome in outcomes):
        own = [outcome for outcome in outcomes if (outcome.kind, outcome.expected) == (kind, expected)]
        good, seconds = sum(not outcome.seen for outcome in own), sum(outcome.seconds for outcome in own)
        lines.append(f"| {kind} | {expected} | {len(own)} | {good} | {seconds:.0f} |")
    wrong = [outcome for outcome in outcomes if outcome.seen]
    lines += ["", f"{len(outcomes) - len(wrong)} passed, {len(wrong)} failed"]
    if wrong:
        lines += ["", "| deviation | expected | seen |", "|---|---|---|"]
        for outcome in sorted(wrong, key=lambda outcome: (outcome.kind, outcome.name)):
            seen = outcome.seen.replace("|", "\\|")
            lines.append(f"| {outcome.kind}/{outcome.name} | {outcome.expected} | {seen} |")
        lines += ["", f"Repeat one: {again} --only 'FAULT/NAME'"]
    return "\n".join(lines)
