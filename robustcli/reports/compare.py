"""`robust compare` as a table with notes."""

from collections.abc import Iterator, Mapping

from rich.table import Table

from robustcli.evaluation.wording import interval, percent
from robustcli.reports.tables import plain_table
from robustcli.workflows.compare import LEVEL, Pair

_COLUMNS = ("evaluation", "network", "clean %", "robust % [95 %]", "p")
_WIDE = ("threat", "images", "only this one", "claimable from")


def comparison_table(pairs: Mapping[str, Pair], *, is_wide: bool = False) -> Table:
    """Three rows per evaluation: A, B and their difference in points.

    Args:
        is_wide: also show threat, number of images, images that only one network classifies correctly, and the
            smallest difference that could be claimed.
    """
    columns = (*_COLUMNS, *(_WIDE if is_wide else ()))
    table = plain_table(columns, text=("evaluation", "network", "threat"))
    for key, pair in pairs.items():
        low, high = pair.difference_interval
        difference = f"{100 * pair.difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
        names, alone = ("A", "B"), (pair.only_a, pair.only_b)
        for number, (name, measured, clean) in enumerate(zip(names, pair.sides, pair.clean, strict=True)):
            known = "" if clean is None else percent(clean)
            cells = ("", "") if pair.is_clean else (known, interval(measured))
            shown = (interval(measured), "") if pair.is_clean else cells
            threat = "" if pair.is_clean else str(pair.evaluations[number].threat)
            wide = (threat, str(pair.total), str(alone[number]), "") if is_wide else ()
            table.add_row("" if number else key, name, *shown, "", *wide)
        shown = (difference, "") if pair.is_clean else ("", difference)
        least = "none" if pair.smallest_claimable is None else f"{100 * pair.smallest_claimable:.2f}"
        wide = ("", "", "", least) if is_wide else ()
        table.add_row("", "A - B", *shown, f"{pair.p:.2g}", *wide, end_section=True)
    return table


def conditions(pairs: Mapping[str, Pair], *, is_wide: bool = False) -> Iterator[str]:
    """Yield a legend of the table, and notes on its rows."""
    yield "A - B: in points. p: exact McNemar test on the images that only one of the two classifies correctly"
    if is_wide:
        yield (
            "only this one: images that only this network classifies correctly. claimable from: the smallest "
            f"difference, in points, with p < {LEVEL:g} if the two differ on as many images as here"
        )
    if all(pair.is_same_network for pair in pairs.values()):
        yield "A and B are one network: claims are about the attacks on it, with the seeds they had"
    else:
        yield "claims are about these two networks: training with another seed gives another network"
    if len(pairs) > 1:
        yield "each p-value is about one row; of many rows without any difference, 1 in 20 may fall below 0.05"
    for key, pair in pairs.items():
        for warning in pair.warnings:
            yield f"{key}: {warning}"
