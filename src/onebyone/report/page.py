"""One self-contained HTML page: no network, no font, and no script but its own."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template

from onebyone.report.markup import Content, Markup, text


def page(
    template: str,
    title: str,
    styles: tuple[str, ...],
    scripts: tuple[str, ...] = (),
    **parts: Content,
) -> str:
    """The template with its parts, which are escaped, in a page with these styles and scripts.

    The page's own policy forbids any request, and any script but those.
    """
    body = Template(asset(template)).substitute({name: text(part) for name, part in parts.items()})
    script = "".join(map(asset, scripts))
    return shell(title, "".join(map(asset, styles)), script, Markup(body))


def shell(title: str, style: str, script: str, body: Markup) -> str:
    """A whole page of this style, body and script.

    Its policy allows nothing but what is in it: no request, and no script but this one.
    """
    allowed = ""
    if script:
        digest = b64encode(sha256(script.encode()).digest()).decode()
        allowed = f"script-src 'sha256-{digest}'; "
        body = Markup(f"{body}<script>{script}</script>\n")
    return Template(asset("page.html")).substitute(
        title=text(title), style=style, scripts=allowed, body=body
    )


def asset(name: str) -> str:
    """A text file that belongs to the pages."""
    return files("onebyone.report").joinpath(name).read_text(encoding="utf-8")


def bound(sentence: str) -> str:
    """With numbers and their percent signs on one line."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%")
