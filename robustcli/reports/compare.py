"""`robust compare` as a table with notes."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from robustcli.evaluation.wording import interval
from robustcli.workflows.compare import LEVEL, Pair, is_clean, threat_words


def comparison_table(pairs: Mapping[str, Pair]) -> Table:
    """One row per evaluation."""
    table = Table()
    columns = ("evaluation", "threat", "images", "A % [95 %]", "B % [95 %]", "only A", "only B", "A - B points [95 %]")
    for column in (*columns, "p", "claimable from"):
        table.add_column(column, justify="left" if column in ("evaluation", "threat") else "right")
    for key, pair in pairs.items():
        plain = pair.to_json()
        low, high = pair.difference_interval
        table.add_row(
            key,
            "" if is_clean(*pair.evaluations) else threat_words(pair.evaluations[0]),
            str(pair.total),
            interval(plain["a"]),
            interval(plain["b"]),
            str(pair.only_a),
            str(pair.only_b),
            f"{100 * pair.difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]",
            f"{pair.p:.2g}",
            "none" if pair.smallest_claimable is None else f"{100 * pair.smallest_claimable:.2f}",
        )
    return table


def conditions(pairs: Mapping[str, Pair]) -> Iterator[str]:
    """How the table is to be read, and what a reader of each row must know."""
    yield (
        "only A, only B: images that this one alone has right. p: exact McNemar test on them. claimable from: the "
        f"smallest difference, in points, with p < {LEVEL:g} when the two differ on as many images as here"
    )
    yield "what is claimed is about these two networks: another training seed makes another network"
    if len(pairs) > 1:
        yield "each p-value speaks of its row alone; of many rows without any difference, 1 in 20 may fall below 0.05"
    for key, pair in pairs.items():
        for warning in pair.warnings:
            yield f"{key}: {warning}"
