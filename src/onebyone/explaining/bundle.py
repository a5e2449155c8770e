"""The page's ES modules, written apart, joined into one script that a single file can hold."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

IMPORT = re.compile(r'^import (?:\* as (\w+)|\{([^}]*)\}) from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE)
START = "main"


@cache
def script() -> str:
    """Every module that `main.js` needs as a function scope of its own, in the order they need."""
    joined: dict[str, str] = {}
    _join(START, joined, ())
    return '"use strict";\n' + "\n".join(joined.values())


def asset(name: str) -> str:
    """A text file of the interactive page."""
    return files("onebyone.explaining").joinpath("assets", name).read_text(encoding="utf-8")


def _join(name: str, joined: dict[str, str], around: tuple[str, ...]) -> None:
    """Add a module behind those that it imports; ValueError where they import one another."""
    if name in around:
        raise ValueError(f"modules import one another: {' → '.join((*around, name))}")
    if name in joined:
        return
    source = asset(f"{name}.js")
    for found in IMPORT.finditer(source):
        _join(found[3], joined, (*around, name))
    exported = [found[1] for found in EXPORT.finditer(source)]
    body = EXPORT.sub("", IMPORT.sub(_bound, source)).strip()
    left = re.search(r"^(?:import|export)\b.*", body, re.MULTILINE)
    if left:
        raise ValueError(f"{name}.js, {left[0]!r}: only named imports and exports are joined")
    joined[name] = (
        f"const module_{name} = (() => {{\n{body}\nreturn {{ {', '.join(exported)} }};\n}})();\n"
    )


def _bound(found: re.Match[str]) -> str:
    whole, names, module = found.groups()
    return f"const {whole or f'{{{names}}}'} = module_{module};"
