"""Tables on the terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Rows of equal length as lines of aligned columns, all but the first flush right unless `right` is false."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [
            row[0].ljust(widths[0]),
            *(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width in zip(row[1:], widths[1:], strict=True)
            ),
        ]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines) + "\n"
