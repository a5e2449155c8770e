"""One self-contained HTML page: no network, no font, and no script but its own."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from string import Template

from onebyone.report.markup import Content, Markup, join, tag, text


@dataclass(frozen=True)
class Head:
    """What a page begins with: the command that made it, what it found, and that in a sentence."""

    command: Content
    headline: Content
    lede: Content


def page(
    title: str,
    head: Head,
    sections: Sequence[Markup],
    *,
    styles: tuple[str, ...] = ("report.css",),
    scripts: tuple[str, ...] = (),
    skip: tuple[str, str] | None = None,
) -> str:
    """A page of a head and sections, its texts escaped, with these styles and scripts.

    skip: where a link for keyboards leads past the head, by its id, and what that place is. The page's
    own policy forbids any request, and any script but those.
    """
    body = join(
        tag("a", f"Skip to {skip[1]}", class_="skip", href=f"#{skip[0]}") if skip else None,
        tag("header",
            tag("p", head.command, class_="eyebrow"), tag("h1", head.headline),
            tag("p", head.lede, class_="lede")),
        tag("main", *sections),
    )  # fmt: skip
    return shell(title, "".join(map(asset, styles)), "".join(map(asset, scripts)), body)


def section(id: str, title: str, *contents: Content) -> Markup:
    """A part of a page under its title."""
    return tag("section", tag("h2", title, id=id), *contents, aria_labelledby=id)


def unnamed(label: str, *contents: Content) -> Markup:
    """A part without a title; the label tells whoever does not see it."""
    return tag("section", *contents, aria_label=label)


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
