"""Pieces of HTML. Every function takes plain text and escapes it."""

from collections.abc import Callable, Sequence
from html import escape

from matplotlib.figure import Figure

from hydraprune.reports.links import artefact_href
from hydraprune.reports.style import Palette, render
from hydraprune.reports.tables import Cell, Column, Table

__all__ = ["description_list", "escape", "figure", "grid", "html_table", "paragraph", "prose", "section"]

NARROW, WIDE = 3.9, 6.4
_DESK = "(min-width: 48rem)"


def section(title: str, body: str) -> str:
    """Return a titled section around `body`, which is HTML already."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return f"<p{attribute}>{prose(text)}</p>"


def prose(text: str) -> str:
    """Escape running text and tie `%` and `±` to their numbers, so that no line begins with them."""
    return escape(text).replace(" %", "&nbsp;%").replace(" ± ", "&nbsp;±&nbsp;")


def description_list(pairs: Sequence[tuple[str, str]]) -> str:
    """Return terms and what is said of them."""
    entries = "\n".join(f"<div><dt>{escape(term)}</dt><dd>{prose(text)}</dd></div>" for term, text in pairs)
    return f"<dl>\n{entries}\n</dl>"


def html_table(table: Table, label: str) -> str:
    """Return a table in a box of its own that scrolls sideways, also by keyboard, where the page is too narrow."""
    head = "".join(f'<th scope="col"{_numeric(column)}>{escape(column.title)}</th>' for column in table.columns)
    lines = []
    for i, row in enumerate(table.rows):
        start = ' class="start"' if i in table.starts else ""
        cells = [
            _cell(cell, column, first=j == 0) for j, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        lines.append(f"<tr{start}>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cell(cell: Cell, column: Column, *, first: bool) -> str:
    text = escape(cell.text)
    href = artefact_href(cell.file)
    if href is not None:
        text = f'<a href="{escape(href)}">{text}</a>'
    if cell.marked:
        text = f'<strong>{text}<span class="best" title="best robust accuracy at this sparsity"> ★</span></strong>'
    return f'<th scope="row">{text}</th>' if first else f"<td{_numeric(column)}>{text}</td>"


def _numeric(column: Column) -> str:
    return ' class="number"' if column.numeric else ""


def figure(draw: Callable[[Palette, float], Figure], alt: str, caption: str, *, wide: bool = False) -> str:
    """Return a drawing for light and dark pages; with `wide` also one for wide pages beside the one for phones."""
    narrow = render(draw, NARROW)
    sources = [("(prefers-color-scheme: dark)", narrow.dark)]
    if wide:
        large = render(draw, WIDE)
        sources[:0] = [(f"{_DESK} and (prefers-color-scheme: dark)", large.dark), (_DESK, large.light)]
    tags = "".join(f'<source media="{media}" srcset="{uri}">' for media, uri in sources)
    image = f'<img src="{narrow.light}" alt="{escape(alt)}">'
    kind = ' class="wide"' if wide else ""
    text = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure{kind}>\n<picture>{tags}{image}</picture>{text}\n</figure>"


def grid(items: Sequence[str]) -> str:
    """Return pieces of HTML side by side where there is room."""
    return '<div class="grid">\n' + "\n".join(items) + "\n</div>"
