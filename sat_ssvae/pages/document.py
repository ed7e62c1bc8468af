"""A whole page: one HTML file that includes its style, its script and all contents.

legend = Legend(["stock", "ssvae"])
page = document("Does it help?", [badge("faster", "good"), legend.toggles(), chart(...)], subtitle="two arms")

Blocks (`blocks.py`, `clips.py`, `charts.py`) are functions that return `Markup`; text is escaped unless it is `Markup`
itself. Pages follow the system's light or dark mode, have a button to switch it, and print well.
"""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

_FOLDER = Path(__file__).parent
_SHELL = Markup(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header class="top"><div><h1>{title}</h1>{subtitle}</div>
<button class="theme" title="light or dark">◐ theme</button></header>
{body}
<footer class="note">{footer}</footer>
<script>
{script}</script>
</body>
</html>
"""
)


def document(
    title: str, blocks: Sequence[Markup | str], *, subtitle: Markup | str = "", footer: Markup | str = ""
) -> str:
    """The page as HTML."""
    return _SHELL.format(
        title=title,
        style=Markup((_FOLDER / "style.css").read_text(encoding="utf-8")),
        script=Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),
        subtitle=Markup('<p class="note">{}</p>').format(subtitle) if subtitle else "",
        body=joined(blocks, "\n"),
        footer=footer,
    )


def joined(parts: Sequence[Markup | str], between: str = "") -> Markup:
    """Parts one after the other, each escaped unless it is `Markup`."""
    return Markup(between).join(parts)
