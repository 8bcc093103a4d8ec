"""The rows of a sweep as a Markdown table, and what has to be said below it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, zip_longest
from typing import Any

from robustcli.evaluation.wording import accuracies, describe

Summary = Mapping[str, Any]


def markdown(rows: Sequence[Summary]) -> str:
    """One line per row; evaluations that every row has are columns, those of single rows are told below.

    One run shows its accuracy with the 95 % interval over the drawing of the images; several show mean and standard
    deviation over the seeds, and the range.

    Args:
        rows: at least one, as `rows.summary` makes them.
    """
    shared = [key for key in rows[0]["evaluations"] if all(key in row["evaluations"] for row in rows)]
    titles = ["row", "threat", "epochs", *(f"{key} %" for key in shared), "passes", "images/s", "best - last"]
    lines = [titles, ["---"] * len(titles), *(_cells(row, shared) for row in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table + "\n" + "".join(f"- {note}\n" for note in _notes(rows, shared))


def _cells(row: Summary, shared: Sequence[str]) -> list[str]:
    speed, gap = row["images_per_second"], row["best_minus_last"]
    found = [accuracies(row["evaluations"][key]) if row["evaluations"][key] else "failed" for key in shared]
    return [
        f"{row['row']}{_mark(row)}",
        f"{row['threat']['norm']} {row['threat']['eps']}",
        str(row["epochs"]),
        *found,
        _cost(row["passes"]),
        "" if speed is None else f"{speed:,.0f}",
        "" if gap is None else f"{100 * gap:.1f}",
    ]


def _mark(row: Summary) -> str:
    return " (collapsed)" if any(epoch is not None for epoch in row["collapsed_at"]) else ""


def _cost(passes: Mapping[str, float] | None) -> str:
    if passes is None:
        return ""
    forwards, images, weights = (passes[key] for key in ("forwards", "input_gradients", "weight_gradients"))
    return f"{forwards + images + 2 * weights:g} ({forwards:g}, {images:g}, {weights:g})"


def _notes(rows: Sequence[Summary], shared: Sequence[str]) -> list[str]:
    """What the columns mean, and what is to be said of single rows."""
    notes = []
    for key in shared:
        # Rows may evaluate in ways of their own under one name.
        ways = dict.fromkeys(
            f"{describe(found)}, {found['total']} images" for row in rows for found in row["evaluations"][key]
        )
        notes.append(f"{key}: {'; '.join(ways)}.")
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    kind = "95 % intervals over the drawing of the images" if len(seeds) < 2 else "mean ± deviation (range) over seeds"
    notes.append(f"Accuracies: {kind}; seed {', '.join(map(str, seeds))}." if seeds else "No row has a result.")
    notes.append(
        "passes: of an update, as much as so many forwards (forwards, backwards to the images, backwards to the "
        "weights, which count twice); counted in one update of the last epoch. images/s: of training."
    )
    notes.append("best - last: points between the best and the last epoch's robust accuracy on the check's images.")
    for row in rows:
        for seed, text in row["failures"].items():
            notes.append(f"{row['row']}, seed {seed}: failed: {text}.")
        for seed, epoch in zip(row["seeds"], row["collapsed_at"], strict=True):
            if epoch is not None:
                notes.append(f"{row['row']}, seed {seed}: robustness collapsed in epoch {epoch + 1}.")
        for key, found in row["evaluations"].items():
            if key not in shared and found:
                notes.append(f"{row['row']}, {key}: {accuracies(found)} ({describe(found[0])}).")
    return [*notes, *_suspicions(rows)]


def _suspicions(rows: Sequence[Summary]) -> list[str]:
    """What is suspect, each thing once: reasons that differ in their numbers alone are told together."""
    told: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for row in rows:
        for key, found in row["evaluations"].items():
            for seed, result in zip(row["seeds"], found, strict=True):
                for reason in result["suspicions"]:
                    parts = re.split(r"(\d[\d.]*)", reason)
                    place = row["row"] if len(row["seeds"]) == 1 else f"{row['row']}, seed {seed}"
                    told.setdefault((key, *parts[::2]), {})[place] = parts[1::2]
    notes = []
    for (key, *words), places in told.items():
        columns = list(zip(*places.values(), strict=True))
        varies = [len(set(column)) > 1 for column in columns]
        letters = iter("nmkpqrstuvw")
        names = [next(letters) if differs else column[0] for column, differs in zip(columns, varies, strict=True)]
        reason = "".join(part for pair in zip_longest(words, names, fillvalue="") for part in pair)
        who = [_with_numbers(place, compress(numbers, varies)) for place, numbers in places.items()]
        legend = f" ({', '.join(compress(names, varies))})" if any(varies) else ""
        notes.append(f"SUSPECT, {key}: {reason}{legend}: {'; '.join(who)}.")
    return notes


def _with_numbers(place: str, numbers: Iterable[str]) -> str:
    told = ", ".join(numbers)
    return f"{place} ({told})" if told else place
