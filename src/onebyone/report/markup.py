"""HTML written so that text cannot become markup: all of it is escaped unless it came from `tag`."""

from __future__ import annotations

from html import escape

VOID = ("input", "wbr")  # elements without an end


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Content = str | int | None


def text(content: Content) -> Markup:
    """HTML for a text; None is nothing.

    >>> text("64 < 128")
    '64 &lt; 128'
    """
    if isinstance(content, Markup):
        return content
    return Markup("" if content is None else escape(str(content)))


def join(*contents: Content) -> Markup:
    """Contents one after the other."""
    return Markup("".join(map(text, contents)))


def tag(name: str, /, *contents: Content, **attributes: Content) -> Markup:
    """An element with its contents, escaped; `class_` is class, `aria_label` aria-label.

    An attribute that is None is left out.

    >>> tag("td", "a<b", class_="name", data_v=3)
    '<td class="name" data-v="3">a&lt;b</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in VOID else f"</{name}>"
    return Markup(f"<{name}{written}>{join(*contents)}{end}")
