"""Pages of the site: formulas as MathML, which needs no script; links out of the docs as text."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)")
FORMULA = re.compile(r"<(span|div) class=\"arithmatex\">\\([(\[])(.*?)\\[)\]]</\1>", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Markdown of a page without links that lead out of the docs."""
    return OUTSIDE.sub(r"\1", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """HTML of a page with its formulas."""
    return FORMULA.sub(
        lambda found: convert(html.unescape(found[3]), display="inline" if found[2] == "(" else "block"), content
    )
