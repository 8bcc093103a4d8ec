"""Run folders -> tables. Reads JSON only."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from robustcli.errors import RobustCliError
from robustcli.evaluation.wording import accuracies, describe, interval, percent, threats_of, verdict
from robustcli.store.files import read_json, write_text
from robustcli.store.runs import RunFolder, find_runs


def result_table(title: str, results: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per evaluation of one network."""
    table = Table(title=title, title_justify="left")
    words = ("evaluation", "evaluator", "threat", "verdict")
    for column in (*words[:3], "correct", "accuracy % [95 %]", "verdict", "forwards", "gradients", "s"):
        table.add_column(column, justify="left" if column in words else "right")
    for key, result in results.items():
        is_clean = result["evaluator"] == "clean"
        table.add_row(
            key,
            describe(result),
            "" if is_clean else threats_of(result),
            f"{result['correct']}/{result['total']}",
            interval(result),
            verdict(result),
            f"{result['forwards']:,}",
            f"{result['gradients']:,}",
            f"{result['seconds']:.1f}",
        )
    return table


def run_rows(root: Path) -> list[dict[str, Any]]:
    """One row per run below a folder, for `robust runs`."""
    rows = []
    for folder in find_runs(root):
        row: dict[str, Any] = {"run": folder.path.relative_to(root).as_posix(), "status": folder.status()}
        if folder.is_finished:
            results = read_json(folder.results)
            row["epoch"] = results["epoch"]
            row["results"] = {
                key: {name: result[name] for name in ("correct", "total", "accuracy", "interval")}
                for key, result in results["evaluations"].items()
            }
        elif records := [record for record in folder.records() if "event" not in record]:
            row["epoch"] = records[-1]["epoch"]
        rows.append(row)
    return rows


def run_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The rows of `run_rows` as a table."""
    table = Table()
    for column in ("run", "status", "epoch", "accuracy % [95 %]"):
        table.add_column(column)
    for row in rows:
        results = row.get("results", {})
        text = "\n".join(f"{key}: {interval(result)}" for key, result in results.items())
        # Stored from 0, shown from 1 as progress does.
        epoch = str(row["epoch"] + 1) if "epoch" in row else ""
        table.add_row(row["run"], row["status"], epoch, text)
    return table


@dataclass(frozen=True)
class Comparison:
    """A claimed metric beside the one we got.

    Args:
        claimed, got, low, high: fractions; low and high are the interval of got.
    """

    metric: str
    claimed: float
    got: float
    low: float
    high: float
    tolerance: float

    @property
    def gap(self) -> float:
        """How far we are above the claim; negative is below."""
        return self.got - self.claimed

    @property
    def verdict(self) -> str:
        """reproduced: the claim lies within tolerance of the interval; otherwise above or below."""
        if self.low - self.tolerance <= self.claimed <= self.high + self.tolerance:
            return "reproduced"
        return "above the claim" if self.gap > 0 else "below the claim"


def compare(results: Mapping[str, Any]) -> list[Comparison]:
    """The claim of a finished run, metric by metric."""
    claim = results["claim"]
    if claim is None:
        return []
    compared = []
    for metric, claimed in claim["metrics"].items():
        result = results["evaluations"][metric]
        low, high = result["interval"]
        compared.append(Comparison(metric, claimed, result["accuracy"], low, high, claim["tolerance"]))
    return compared


def claim_table(results: Mapping[str, Any]) -> Table:
    """Claimed, got with interval, gap and verdict."""
    claim = results["claim"]
    source = ", ".join(part for part in (claim["source"], claim["table"]) if part)
    table = Table(title=f"Claim of {source}", title_justify="left")
    for column in ("metric", "claimed %", "got % [95 %]", "gap", "verdict"):
        table.add_column(column)
    for row in compare(results):
        got = f"{percent(row.got)} [{percent(row.low)}, {percent(row.high)}]"
        table.add_row(row.metric, percent(row.claimed), got, f"{100 * row.gap:+.1f}", row.verdict)
    return table


def markdown(folders: Sequence[RunFolder]) -> str:
    """A table for a README: finished runs that differ in their seed alone share a row per evaluation.

    One run shows its accuracy with the 95 % interval over the drawing of the images; several show mean and
    standard deviation over the seeds, and the range.
    """
    groups: dict[tuple[str, ...], list[tuple[RunFolder, dict[str, Any]]]] = {}
    for folder in folders:
        if folder.is_finished:
            results = read_json(folder.results)
            key = (results["name"], results["spec_digest"], results["status"])
            groups.setdefault(key, []).append((folder, results))
    lines = [
        "| experiment | threat | seeds | evaluation | images | accuracy % | claimed % | device |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (name, _, status), runs in groups.items():
        results = [found for _, found in runs]
        # How the images were coded is part of what a number is about: JPEG changes CIFAR's by a point or two.
        asides = [aside for aside in (results[0]["data"]["decode"], "" if status == "finished" else status) if aside]
        title = f"{name} ({', '.join(asides)})" if asides else name
        threat = f"{results[0]['threat']['norm']} {results[0]['threat']['eps']}"
        seeds = ", ".join(str(found["seed"]) for found in results)
        devices = dict.fromkeys(read_json(folder.provenance)["sessions"][-1]["device"] for folder, _ in runs)
        claimed = {} if results[0]["claim"] is None else results[0]["claim"]["metrics"]
        for key in results[0]["evaluations"]:
            evaluations = [found["evaluations"][key] for found in results]
            claim = percent(claimed[key]) if key in claimed else ""
            cells = (title, threat, seeds, describe(evaluations[0]), str(evaluations[0]["total"]))
            lines.append(f"| {' | '.join((*cells, accuracies(evaluations), claim, '; '.join(devices)))} |")
    return "\n".join(lines) + "\n"


def replace_block(path: Path, name: str, block: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` of a file.

    Raises:
        RobustCliError: there is no such file, or no such block in it.
    """
    before, after = _around_block(path, name)
    write_text(path, before + block + after)


def require_block(path: Path, name: str) -> None:
    """Raise what `replace_block` would raise, before the work whose result goes there."""
    _around_block(path, name)


def _around_block(path: Path, name: str) -> tuple[str, str]:
    """What a file has before and after the contents of a block."""
    if not path.is_file():
        raise RobustCliError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- /{re.escape(name)} -->", text, re.DOTALL)
    if found is None:
        raise RobustCliError(f"{path}: has no block between <!-- {name} --> and <!-- /{name} -->")
    return text[: found.start(1)], text[found.end(1) :]
