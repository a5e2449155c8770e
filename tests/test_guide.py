"""The guide: its code runs, its tables are what is counted, and it builds to a site."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onebyone.comparing import compare
from onebyone.explaining.figures import figure

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide.md"


def test_the_guides_code_gives_what_it_says() -> None:
    done = doctest.testfile(
        str(GUIDE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert done.attempted > 20
    assert done.failed == 0


def test_the_familys_costs_are_counted() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d×]+) → ([\d×]+), (\d)×\d(?:, w = (\d+))? \|[^|]*\| ([\d,]+) \| "
                      r"([\d,]+) \| ×([\d.]+) \|$", text, re.MULTILINE)  # fmt: skip
    assert len(rows) == text.count("| `") >= 6
    for name, start, end, kernel, width, params, macs, ratio in rows:
        sizes = (start.replace("×", "x"), end.replace("×", "x"))
        found = compare(*sizes, int(kernel), width=int(width) if width else None, latency=False)[
            name
        ]
        assert f"{found.params:,}" == params
        assert f"{found.macs:,}" == macs
        assert f"{found.macs_ratio:.2f}" == ratio


def test_the_guides_pictures_are_the_figures() -> None:
    shown = re.findall(r"!\[[^]]+\]\(([\w-]+)\.svg\)", GUIDE.read_text(encoding="utf-8"))
    assert shown == ["one-pixel", "bottleneck"]
    for name in shown:
        assert (GUIDE.parent / f"{name}.svg").read_text(encoding="utf-8") == figure(name).svg()


def test_the_guide_builds_and_asks_nothing_of_other_servers(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    for name in (*pages, "index"):  # files, not folders: they are opened without a server
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert 'explain.html" class="nav-link">' in text
        inside = [
            u for u in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', text) if u != "explain.html"
        ]
        assert inside
        assert [u for u in inside if not (tmp_path / u).is_file()] == []
    html = (tmp_path / "guide.html").read_text(encoding="utf-8")
    assert "100,000 parameters" in html
    assert not re.search(r'(?:src|<link[^>]* href)="(?:https?:)?//', html)
