"""The result of `coverage.py` as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from typing import Any

MET, LOWEST, FAILED = "met", "lowest", "failed"


@dataclass(frozen=True)
class Row:
    """What became of one network; `asked` and the fractions kept are of the original's cost.

    `reasons` counts the layers that stay as they are by why; `held` has the share of the MACs that
    stays whatever the budget, by why. `why` is the message of what failed.
    """

    name: str
    outcome: str
    settings: dict[str, Any]
    size: int = 0
    images: int = 0
    macs: int = 0
    asked: float = 0.0
    macs_kept: float = 0.0
    params_kept: float = 0.0
    changed: int = 0
    kept: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    why: str = ""
    seconds: float = 0.0


PAGE = """# Coverage: torchvision's classification networks

{summary}

Every network of `torchvision.models` for classification (quantized ones apart) goes through `slim`
with a budget of {macs} of its MACs, with random weights and random images: this shows that nothing
fails and that costs are as promised, not how much accuracy is kept. Each result is checked: the
budget holds, MACs and parameters are those that PyTorch counts, outputs are finite, all layers are
plain PyTorch layers, refused ones have the weights they had, every layer that stays has a reason in
the plan, and the original is unchanged to the last bit{saved}.

Where the budget cannot be met, `slim` refuses it and names the lowest one, and that is what the row
shows, with what holds the rest. Sizes are the smallest that the network takes of 64, 96, 128 pixels
and its own. MACs are for one image, attention products among them. Layers: changed, kept in shape
(perhaps refitted), refused.

Made by `{command}` on {day}, with torch {torch} and torchvision {torchvision}, {threads}.

{table}

## Layers that stay as they are, by reason

{reasons}
"""


def page(rows: list[Row], macs: float, save: bool, threads: int) -> str:
    """The page whole: a summary, a row a network, the reasons of all of them together."""
    whole = f"python benchmarks/coverage.py --macs {macs}{' --save' if save else ''} -o docs/coverage.md"
    total = Counter[str]()
    for row in rows:
        total.update(row.reasons)
    return PAGE.format(
        summary=summary(rows, macs), macs=macs, command=whole, day=date.today().isoformat(),
        saved=", and saved and loaded again it gives bit-equal outputs" if save else "",
        torch=version("torch"), torchvision=version("torchvision"),
        threads="1 thread" if threads == 1 else f"{threads} threads",
        table="\n".join([*HEAD, *map(line, rows)]),
        reasons="\n".join(
            ["| layers | reason |", "|---:|---|", *(f"| {n:,} | {r} |" for r, n in total.most_common())]
        ),
    )  # fmt: skip


def summary(rows: list[Row], macs: float) -> str:
    """How many of each outcome."""
    count = Counter(row.outcome for row in rows)
    return (
        f"**Of {len(rows)} networks {count[MET]} keep at most {macs} of their MACs, {count[LOWEST]} "
        f"cannot be brought so low and say why, {count[FAILED]} fail.**"
    )


HEAD = (
    "| network | input | MACs | outcome | MACs kept | parameters kept | changed / kept / refused "
    "| most common reason to stay | seconds |",
    "|---|---|---:|---|---:|---:|---|---|---:|",
)


def line(row: Row) -> str:
    """One row of the table."""
    if row.outcome == FAILED:
        return f"| {row.name} | | | failed: {row.why.replace('|', '/')} | | | | | |"
    common = next(iter(row.reasons.items()), None)
    cells = (
        row.name, f"3×{row.size}×{row.size}", millions(row.macs), outcome(row),
        f"{row.macs_kept:.3f}", f"{row.params_kept:.3f}",
        f"{row.changed} / {row.kept} / {row.refused}",
        "" if common is None else f"{common[0]} ({common[1]})", f"{row.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def outcome(row: Row) -> str:
    """Met, or the lowest budget with what holds the most MACs."""
    if row.outcome == MET:
        return "met"
    reasons = [
        f"{share:.0%} of the MACs: {reason}{_layers(row.reasons.get(reason, 0))}"
        for reason, share in row.held.items() if share >= 0.01
    ]  # fmt: skip
    return f"lowest {row.asked:.3f}: " + "; ".join(reasons)


def _layers(count: int) -> str:
    return f" ({count} layer{'s' * (count != 1)})" if count else ""


def millions(macs: int) -> str:
    """1,234.5 M."""
    return f"{macs / 1e6:,.1f} M"
