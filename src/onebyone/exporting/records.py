"""exports.json: what lies in a folder of exports, and what was found when it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onebyone.errors import OutputError
from onebyone.exporting.targets import TARGETS
from onebyone.files import EXPORTS, SLIMMED, json_text, write_text
from onebyone.loading.slimmed import is_slimmed

SCHEMA = "onebyone.exports/1"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The exports of a folder by their file names; none where there is no such record, or no sound one."""
    try:
        values = json.loads((folder / EXPORTS).read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            return {}
        return {str(entry["file"]): dict(entry) for entry in values["exports"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def write_record(folder: Path, entry: dict[str, Any]) -> None:
    """Put one export's entry in the record of its folder, in place of an earlier one of that file."""
    found = read_records(folder) | {entry["file"]: entry}
    kept = [e for name, e in sorted(found.items()) if (folder / name).is_file()]
    write_text(folder / EXPORTS, json_text({"schema": SCHEMA, "exports": kept}))


def check_replaceable(path: Path, target: str) -> None:
    """Raise OutputError where a file of this export stands already and onebyone did not write it."""
    folder = path.parent
    if path.name in read_records(folder) or (is_slimmed(folder) and path.name in SLIMMED):
        return
    for file in TARGETS[target].files(path):
        if file.exists():
            raise OutputError(
                f"{file} exists and onebyone did not write it: give another folder with -o, or "
                "replace it with --force"
            )


def exports_in(folder: Path) -> list[Path]:
    """The main files of the exports in a folder: those in its record, and those a slimmed one has."""
    names = {*read_records(folder), *(SLIMMED if is_slimmed(folder) else ())}
    suffixes = tuple(target.suffix for target in TARGETS.values())
    return sorted(folder / n for n in names if n.endswith(suffixes) and (folder / n).is_file())
