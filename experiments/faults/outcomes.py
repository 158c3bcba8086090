"""The outcomes of a fault, the counts of them, and the table that ends a campaign."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

SAME = "same"
"""The result is that of the undamaged input."""
REFUSED = "refused"
"""An error, or a report on stderr and an older state, that names the file."""
PLAUSIBLE = "plausible"
"""Another finite result, of a format without a checksum: nobody could tell."""
BAD_MESSAGE = "bad message"
"""An error of the right kind that does not name the file."""
CRASH = "crash"
"""An error of any other kind, or the end of the process."""
HANG = "hang"
"""No end within the time."""
WRONG = "silent wrong"
"""A wrong result, where a checksum or the numbers themselves could have told."""
LOST = "lost"
"""Work that was done and cannot be had back."""

OUTCOMES = (SAME, REFUSED, PLAUSIBLE, BAD_MESSAGE, CRASH, HANG, WRONG, LOST)
GOOD = (SAME, REFUSED, PLAUSIBLE)

Counts = dict[str, Counter[str]]
"""How often each kind of fault had each outcome."""


class Finding(NamedTuple):
    """A fault with a bad outcome, with what it takes to see it again."""

    kind: str
    outcome: str
    fault: str
    """What was done."""
    message: str
    """What came of it."""


class Campaign:
    """Counts and findings of one part of a campaign."""

    def __init__(self):
        self.counts: Counts = {}
        self.findings: list[Finding] = []

    def add(self, kind: str, outcome: str, *, fault: str, message: str = "") -> None:
        """Counts one fault."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome not in GOOD:
            self.findings.append(Finding(kind, outcome, fault, message))

    @property
    def ok(self) -> bool:
        """Whether something was tried and every outcome was good."""
        return bool(self.counts) and not self.findings


def judge_error(error: BaseException, *names: str | Path) -> tuple[str, str]:
    """The outcome that an error stands for, and the error in words.

    Args:
      error: What a call raised.
      names: What the message must name one of: the file, its folder, a place.
    """
    message = describe_error(error)
    if not isinstance(error, (ValueError, OSError)):
        return CRASH, message
    known = any(str(name) in message for name in names)
    return (REFUSED if known else BAD_MESSAGE), message


def describe_error(error: BaseException) -> str:
    """An error in one line, as the command line words it, after its type."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(f"{type(error).__name__}: {text}".split())


def format_table(parts: Mapping[str, Campaign]) -> str:
    """A row for each kind of fault, a column for each outcome that occurred."""
    rows = [
        (part, kind, counts)
        for part, campaign in parts.items()
        for kind, counts in campaign.counts.items()
    ]
    shown = [name for name in OUTCOMES if any(counts[name] for *_, counts in rows)]
    lines = [["part", "fault", *shown]]
    lines += [
        [part, kind, *(str(counts[name] or ".") for name in shown)]
        for part, kind, counts in rows
    ]
    widths = [
        max(len(line[column]) for line in lines) for column in range(len(shown) + 2)
    ]
    return "\n".join(
        "  ".join(
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_findings(parts: Mapping[str, Campaign], *, most: int = 5) -> str:
    """The first findings of each kind and outcome, in words."""
    lines, seen = [], Counter[tuple[str, str, str]]()
    for part, campaign in parts.items():
        for finding in campaign.findings:
            key = part, finding.kind, finding.outcome
            seen[key] += 1
            if seen[key] <= most:
                lines.append(
                    f"{part}, {finding.kind}: {finding.outcome} after {finding.fault}: "
                    f"{finding.message[:400]}"
                )
    return "\n".join(lines)


def to_json(parts: Mapping[str, Campaign], *, seconds: float) -> dict[str, Any]:
    """The counts of a campaign, whether all is well, and how long it took."""
    counted = {
        part: {kind: dict(counts) for kind, counts in campaign.counts.items()}
        for part, campaign in parts.items()
    }
    ok = all(campaign.ok for campaign in parts.values())
    return counted | {"ok": ok, "seconds": round(seconds, 1)}
