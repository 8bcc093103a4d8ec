"""Tables in Markdown, and for a terminal of 80 columns: text is wrapped if there is no room, numbers are never cut."""

from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.table import Table


def plain_table(columns: Iterable[str], *, text: Iterable[str] = (), title: str | None = None) -> Table:
    """Table without vertical lines.

    Args:
        columns: headers.
        text: columns that are aligned left and may be wrapped; the others hold numbers.
        title: above the table.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    wrapped = set(text)
    for column in columns:
        is_text = column in wrapped
        table.add_column(
            column, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold", min_width=4
        )
    return table


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[str]], *, numbers: Collection[str] = ()) -> str:
    """Return a Markdown table.

    Args:
        columns: headers.
        rows: cells of each row.
        numbers: columns that are aligned right.
    """
    # A name may contain the mark between columns.
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (columns, *rows)]
    marks = ["---:" if column in numbers else "---" for column in columns]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (escaped[0], marks, *escaped[1:]))
