"""Rows of a sweep as a Markdown table with notes below it."""

import re
from collections.abc import Iterable, Sequence
from itertools import compress, zip_longest

from robustcli.evaluation.wording import accuracies, describe
from robustcli.reports.tables import markdown_table
from robustcli.store.passes import Passes
from robustcli.store.sweep_rows import SweepRow


def markdown(rows: Sequence[SweepRow]) -> str:
    """One line per row; evaluations that every row has are columns, the others are listed in the notes.

    One run shows its accuracy with the 95 % interval over the drawing of the images; several show mean and standard
    deviation over the seeds, and the range.

    Args:
        rows: at least one.
    """
    shared = [key for key in rows[0].evaluations if all(key in row.evaluations for row in rows)]
    sized = ["parameters", "GFLOPs", "training TFLOPs"] if any(row.macs is not None for row in rows) else []
    titles = ["row", "threat", "epochs", *(f"{key} %" for key in shared), *sized, "passes", "images/s", "best - last"]
    table = markdown_table(titles, (_cells(row, shared, with_size=bool(sized)) for row in rows))
    return table + "\n" + "".join(f"- {note}\n" for note in _notes(rows, shared))


def _cells(row: SweepRow, shared: Sequence[str], *, with_size: bool) -> list[str]:
    speed, gap = row.images_per_second, row.best_minus_last
    found = [accuracies(row.evaluations[key]) if row.evaluations[key] else "failed" for key in shared]
    return [
        f"{row.row}{_mark(row)}",
        str(row.threat),
        str(row.epochs),
        *found,
        *(_size(row) if with_size else ()),
        _cost(row.passes),
        "" if speed is None else f"{speed:,.0f}",
        "" if gap is None else f"{100 * gap:.1f}",
    ]


def _mark(row: SweepRow) -> str:
    return " (collapsed)" if any(epoch is not None for epoch in row.collapsed_at) else ""


def _size(row: SweepRow) -> tuple[str, str, str]:
    return (
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.macs is None else f"{2 * row.macs / 1e9:.4g}",
        "" if row.training_flops is None else f"{row.training_flops / 1e12:.4g}",
    )


def _cost(passes: Passes | None) -> str:
    if passes is None:
        return ""
    return f"{passes.total:g} ({passes.forwards:g}, {passes.input_gradients:g}, {passes.weight_gradients:g})"


def _notes(rows: Sequence[SweepRow], shared: Sequence[str]) -> list[str]:
    """Legend of the columns, and notes on single rows."""
    notes = []
    for key in shared:
        # Rows may use different evaluators under one name.
        ways = dict.fromkeys(
            f"{describe(found)}, {found.total} images" for row in rows for found in row.evaluations[key]
        )
        notes.append(f"{key}: {'; '.join(ways)}.")
    seeds = sorted({seed for row in rows for seed in row.seeds})
    kind = "95 % intervals over the drawing of the images" if len(seeds) < 2 else "mean ± deviation (range) over seeds"
    notes.append(f"Accuracies: {kind}; seed {', '.join(map(str, seeds))}." if seeds else "No row has a result.")
    notes.append(
        "passes: cost of one update in the last epoch, in forward passes (forwards, gradients to the images, gradients "
        "to the weights, which count twice). images/s: of training."
    )
    if any(row.macs is not None for row in rows):
        notes.append(
            "GFLOPs: forward pass of one image, two operations for each multiply-accumulate. training TFLOPs: passes "
            "of one training, without checks."
        )
    notes.append("best - last: robust accuracy of the best minus the last epoch, in points, on the check's images.")
    for row in rows:
        for seed, text in row.failures.items():
            notes.append(f"{row.row}, seed {seed}: failed: {text}.")
        for number, epoch in zip(row.seeds, row.collapsed_at, strict=True):
            if epoch is not None:
                notes.append(f"{row.row}, seed {number}: robustness collapsed in epoch {epoch + 1}.")
        for key, found in row.evaluations.items():
            if key not in shared and found:
                notes.append(f"{row.row}, {key}: {accuracies(found)} ({describe(found[0])}).")
    return [*notes, *_suspicions(rows)]


def _suspicions(rows: Sequence[SweepRow]) -> list[str]:
    """All suspicions, each once: reasons that differ only in their numbers share a note."""
    reasons: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        for key, found in row.evaluations.items():
            for seed, result in zip(row.seeds, found, strict=True):
                for reason in result.suspicions:
                    parts = re.split(r"(\d[\d.]*)", reason)
                    place = row.row if len(row.seeds) == 1 else f"{row.row}, seed {seed}"
                    reasons.setdefault((key, *parts[::2]), {})[place] = parts[1::2]
    notes = []
    for (key, *words), places in reasons.items():
        columns = list(zip(*places.values(), strict=True))
        varies = [len(set(column)) > 1 for column in columns]
        letters = iter("nmkpqrstuvw")
        # A reason may list more numbers than there are letters, such as those of images.
        names = [
            next(letters, f"n{place}") if differs else column[0]
            for place, (column, differs) in enumerate(zip(columns, varies, strict=True), 1)
        ]
        reason = "".join(part for pair in zip_longest(words, names, fillvalue="") for part in pair)
        who = [_with_numbers(place, compress(numbers, varies)) for place, numbers in places.items()]
        legend = f" ({', '.join(compress(names, varies))})" if any(varies) else ""
        notes.append(f"SUSPECT, {key}: {reason}{legend}: {'; '.join(who)}.")
    return notes


def _with_numbers(place: str, numbers: Iterable[str]) -> str:
    shown = ", ".join(numbers)
    return f"{place} ({shown})" if shown else place
