"""The result of `coverage.py` as a page of Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

MET, LOWEST, REFUSED, FAILED = "met", "lowest", "refused", "failed"
OUTCOMES = (MET, LOWEST, REFUSED, FAILED)


class Listed(Protocol):
    """A network that could be run."""

    @property
    def name(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def family(self) -> str: ...


@dataclass(frozen=True)
class Row:
    """What became of one network; `asked` and the fractions kept are of the original's cost.

    `reasons` counts the layers that stay as they are by why; `held` has the share of the MACs that
    stays whatever the budget, by why. `params_outcome` and `params_asked` are of the budget of
    parameters; `onnx` is why there is no ONNX file; `gap` how far the network in forms of full rank
    is from the original; all None where that was not run, `gap` also where it cannot be told. `why` is
    the message of what was refused or failed.
    """

    name: str
    group: str
    family: str
    outcome: str
    settings: dict[str, Any]
    size: str = ""
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
    params_outcome: str | None = None
    params_asked: float | None = None
    onnx: str | None = None
    gap: float | None = None
    why: str = ""
    seconds: float = 0.0
    day: str = ""
    versions: dict[str, str] = field(default_factory=dict)


PAGE = """# Coverage: the networks of torchvision and timm

{summary}

{counts}

{others}

Each network goes through `slim` with a budget of {macs} of its MACs, and once more through its planning
and rewriting with one of {params} of its parameters, with random weights and random images: this shows that
nothing fails and that costs are as promised, not how much accuracy is kept. Each result is checked:
the budget holds, MACs and parameters are those that PyTorch counts, outputs are finite, all layers
are plain PyTorch layers, refused ones have the weights they had, every layer that stays has a reason
in the plan, and the original is unchanged to the last bit. Saved and loaded again it gives bit-equal
outputs; the ONNX file comes from the saved folder, where onnxruntime has been compared with PyTorch.
With every layer in a form of full rank, outputs are the original's within {limit:.0e} of the largest;
that is not told where rounding decides the original's own outputs (– in a detector's row).

Where a budget cannot be met, `slim` refuses it and names the lowest one, and that is what the row
shows, with what holds the rest. Inputs are the smallest square ones that the network takes of 32, 64,
96 and 128 pixels and its own (clips of 4 to 16 frames for video; detectors resize to 96 pixels, where
they take any size, and get the statistics of drawn images and scores of a spread of 1, so that they find
something); one where noise of 1e-6 moves the output by more than 1e-4 is not taken. The MACs
of a detector are those of its first image: it computes more where it finds more. MACs are for one
image, attention products among them. Layers: changed, kept in shape (perhaps refitted), refused. A
dash: not run; the rows with dashes are of an earlier version that had no forms for grouped layers,
checked for the budget of MACs alone, from 64 pixels on.

timm's convolutional networks are those without attention between positions whose convolutions hold
half of the weights or more, and the ConvNeXt, MambaOut and MetaFormer families, whose 1×1
convolutions are linear layers. The smallest of each family is run first, then the others from the
smallest.

Made by `python benchmarks/coverage.py -o docs/coverage.md` from rows of {days}, with {versions}.

{tables}

## Layers that stay as they are, by reason

{reasons}
"""


def page(rows: Sequence[Row], every: Sequence[Listed], macs: float, params: float) -> str:
    """The page whole: counts, a table a group, the reasons of all rows together."""
    place = {network.name: i for i, network in enumerate(every)}
    rows = sorted((r for r in rows if r.name in place), key=lambda r: place[r.name])
    groups = list(dict.fromkeys(n.group for n in every))
    total = Counter[str]()
    for row in rows:
        total.update(row.reasons)
    tables = [
        "\n".join([f"## {group}\n", *HEAD, *(line(r) for r in rows if r.group == group)])
        for group in groups
        if any(r.group == group for r in rows)
    ]
    return PAGE.format(
        summary=summary(rows, every), counts=counts(rows, every, groups), others=others(rows),
        macs=macs, params=params, limit=1e-3, days=_span(r.day for r in rows),
        versions=_versions(rows), tables="\n\n".join(tables),
        reasons="\n".join(
            ["| layers | reason |", "|---:|---|", *(f"| {n:,} | {r} |" for r, n in total.most_common())]
        ),
    )  # fmt: skip


def _span(days: Any) -> str:
    found = sorted({d for d in days if d})
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "no day"


def _versions(rows: Sequence[Row]) -> str:
    used = sorted({(name, number) for row in rows for name, number in row.versions.items()})
    return ", ".join(f"{name} {number}" for name, number in used) or "no versions noted"


def summary(rows: Sequence[Row], every: Sequence[Listed]) -> str:
    """How many were run, and how many of each outcome."""
    count = Counter(row.outcome for row in rows)
    return (
        f"**{len(rows)} of {len(every)} networks were run: {count[MET]} meet the budget of MACs, "
        f"{count[LOWEST]} cannot be brought so low and say why, {count[REFUSED]} are refused with a "
        f"reason, {count[FAILED]} fail.** {_earlier(rows)}"
    )


def _earlier(rows: Sequence[Row]) -> str:
    """How many rows lack the checks that were added since."""
    number = sum(r.onnx is None for r in rows if r.outcome in (MET, LOWEST))
    return f"Of these, {number} were run before parameters, ONNX and full rank were checked too."


def counts(rows: Sequence[Row], every: Sequence[Listed], groups: Sequence[str]) -> str:
    """A line a group: how many of how many networks and families, and the outcomes."""
    lines = [
        "| group | run | families | met | lowest | refused | failed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for group in groups:
        own = [r for r in rows if r.group == group]
        there = [n for n in every if n.group == group]
        families = f"{len({r.family for r in own})} of {len({n.family for n in there})}"
        if len({n.family for n in there}) == len(there):
            families = ""
        found = Counter(r.outcome for r in own)
        cells = (group, f"{len(own)} of {len(there)}", families, *(str(found[o]) for o in OUTCOMES))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def others(rows: Sequence[Row]) -> str:
    """The budget of parameters, ONNX and full rank: of how many, and what stood in the way."""
    params = Counter(r.params_outcome for r in rows if r.params_outcome is not None)
    tried = [r for r in rows if r.onnx is not None]
    gaps = [r.gap for r in rows if r.gap is not None]
    parts = [
        f"The budget of parameters: {params[MET]} of {params.total()} networks that were tried meet it, "
        f"{params[LOWEST]} reach the lowest that is named.",
        f"ONNX: {sum(not r.onnx for r in tried)} of {len(tried)} are exported.",
    ]
    if gaps:
        parts.append(f"At full rank: {len(gaps)} networks, the farthest {max(gaps):.0e} off.")
    without = Counter(r.onnx for r in tried if r.onnx)
    listed = [f"- {_cell(why)} ({n})" for why, n in without.most_common()]
    return "\n".join(
        [" ".join(parts), *(["", "No ONNX file, by reason:", "", *listed] if listed else [])]
    )


HEAD = (
    "| network | input | MACs | outcome | MACs kept | parameters kept | by parameters | ONNX | full rank "
    "| changed / kept / refused | most common reason to stay | seconds |",
    "|---|---|---:|---|---:|---:|---|---|---:|---|---|---:|",
)


def line(row: Row) -> str:
    """One row of the table."""
    name = row.name.partition(":")[2]
    if row.outcome in (FAILED, REFUSED):
        return f"| {name} | | | {row.outcome}: {_cell(row.why)} | | | | | | | | |"
    common = next(iter(row.reasons.items()), None)
    by_params = {None: "–", MET: MET}.get(row.params_outcome, f"lowest {row.params_asked}")
    cells = (
        name, row.size, millions(row.macs), outcome(row), f"{row.macs_kept:.3f}",
        f"{row.params_kept:.3f}", by_params, {None: "–", "": "yes"}.get(row.onnx, "no"),
        "–" if row.gap is None else f"{row.gap:.0e}", f"{row.changed} / {row.kept} / {row.refused}",
        "" if common is None else f"{common[0]} ({common[1]})", f"{row.seconds:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


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
