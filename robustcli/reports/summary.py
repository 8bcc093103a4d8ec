"""`robust report`: finished runs and stored evaluations -> one table as Markdown, CSV or JSON."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any

from robustcli.errors import RobustCliError
from robustcli.evaluation.wording import accuracies, describe, percent
from robustcli.reports.tables import markdown_table
from robustcli.store.evaluations import Evaluation
from robustcli.store.results import Results, RunResults, read_results
from robustcli.store.runs import RunFolder
from robustcli.store.search import run_folders
from robustcli.workflows.variants import variants_of


@dataclass(frozen=True)
class Source:
    """Results and their device.

    Args:
        variant: values of the spec in which it differs from other results of the same name, such as "beta=3".
    """

    path: Path
    results: Results
    device: str
    variant: str = ""

    @property
    def group(self) -> tuple[object, ...]:
        """Runs of one group differ only in their seed and share a row per evaluation."""
        results = self.results
        if isinstance(results, RunResults):
            return (results.name, results.spec_digest, results.status)
        return (self.path,)

    @property
    def seed(self) -> int | None:
        """Seed of training; None if it is not known."""
        return self.results.training_seed

    @property
    def title(self) -> str:
        """Name, with facts about images and training that a reader must know."""
        results, status = self.results, self.results.status
        # JPEG changes accuracies on CIFAR-10 by a point or two.
        is_selected_on_test = isinstance(results, RunResults) and results.selection.images == "test"
        selected = "weights selected on test images" if is_selected_on_test else ""
        parts = (self.variant, results.data.decode, "" if status == "finished" else status, selected)
        asides = [aside for aside in parts if aside]
        return f"{results.name} ({', '.join(asides)})" if asides else results.name

    @property
    def claimed(self) -> dict[str, float]:
        """Claimed accuracies by evaluation."""
        return {} if self.results.claim is None else self.results.claim.metrics


@dataclass(frozen=True)
class Line:
    """One evaluation of one network, or of several that differ only in their seed.

    Args:
        accuracy, low, high: mean over the seeds, and the 95 % interval if there is one seed, as fractions.
        text: accuracy as the Markdown table shows it, in percent.
        claimed: claimed accuracy, as a fraction.
    """

    experiment: str
    threat: str
    seeds: list[int]
    key: str
    evaluation: str
    images: int
    clean_accuracy: float | None
    accuracy: float
    low: float | None
    high: float | None
    verdict: str | None
    text: str
    claimed: float | None
    device: str


def read_sources(folders: Iterable[Path]) -> tuple[list[Source], list[str]]:
    """Read all results below some folders, or in some files, each once, also if there are copies of them.

    Returns:
        The results, and one line for every damaged file.

    Raises:
        RobustCliError: a file or folder is missing.
    """
    named = list(folders)
    if missing := [str(path) for path in named if not path.exists()]:
        raise RobustCliError(f"{', '.join(missing)}: no such file or folder; expected runs or evaluations")
    paths = (path for one in named for path in ([one] if one.is_file() else _results_below(one)))
    sources, damaged = [], []
    seen = set()
    for path in {path.resolve(): path for path in paths}.values():
        try:
            results = read_results(path)
            content = json.dumps(results.to_json(), sort_keys=True)
            # A copy is not another seed. Results without a digest chain do not say if they are of another session.
            if results.chain is not None and content in seen:
                continue
            seen.add(content)
            sessions = results.sessions(path.parent)
            sources.append(Source(path, results, sessions[-1].device if sessions else ""))
        except RobustCliError as error:
            damaged.append(str(error))
    return _with_variants(sources), damaged


def _results_below(folder: Path) -> list[Path]:
    return [path for found in run_folders(folder) if (path := found / "results.json").is_file()]


def _with_variants(sources: Sequence[Source]) -> list[Source]:
    runs = [(source.results.name, RunFolder(source.path.parent).spec) for source in sources]
    found = variants_of(runs)
    # An evaluation of `robust eval` has no spec; that of a run has the same digest.
    known = {source.results.spec_digest: text for source, text in zip(sources, found, strict=True) if text}
    return [replace(source, variant=known.get(source.results.spec_digest, "")) for source in sources]


def lines_of(sources: Iterable[Source]) -> list[Line]:
    """One line per evaluation and group of sources."""
    groups: dict[tuple[object, ...], list[Source]] = {}
    for source in sources:
        groups.setdefault(source.group, []).append(source)
    return [line for group in groups.values() for line in _lines(group)]


def _lines(group: Sequence[Source]) -> Iterator[Line]:
    first = group[0]
    for key in first.results.evaluations:
        evaluations = [found for source in group if (found := source.results.evaluations.get(key)) is not None]
        known = [source.results.clean_accuracy(key) for source in group if key in source.results.evaluations]
        cleans = [clean for clean in known if clean is not None]
        low, high = evaluations[0].interval if len(evaluations) == 1 else (None, None)
        yield Line(
            experiment=first.title,
            threat=str(first.results.threat),
            seeds=[source.seed for source in group if source.seed is not None],
            key=key,
            evaluation=describe(evaluations[0]),
            images=evaluations[0].total,
            clean_accuracy=sum(cleans) / len(cleans) if cleans else None,
            accuracy=sum(found.accuracy for found in evaluations) / len(evaluations),
            low=low,
            high=high,
            verdict=_verdict(evaluations),
            text=f"{accuracies(evaluations)}{_suspicion(group, key)}",
            claimed=first.claimed.get(key),
            device="; ".join(dict.fromkeys(source.device for source in group)),
        )


def _verdict(evaluations: Sequence[Evaluation]) -> str | None:
    """SUSPECT if one is suspect; None if one has no verdict."""
    found = {evaluation.verdict for evaluation in evaluations}
    return "SUSPECT" if "SUSPECT" in found else None if None in found else "TRUSTED"


def _suspicion(group: Sequence[Source], key: str) -> str:
    """Mark of a suspect accuracy, with the seeds if only some of several are suspect."""
    found = [source for source in group if key in source.results.evaluations]
    suspect = [source for source in found if source.results.evaluations[key].verdict == "SUSPECT"]
    if not suspect:
        return ""
    seeds = "" if len(suspect) == len(found) else f" (seed {', '.join(str(source.seed) for source in suspect)})"
    return f" SUSPECT{seeds}"


def markdown(lines: Iterable[Line]) -> str:
    """Markdown table.

    One run shows its accuracy with the 95 % interval over the sampling of the images; several show mean and standard
    deviation over the seeds, and the range. A suspect accuracy is marked.
    """
    columns = ("experiment", "threat", "seeds", "evaluation", "images", "accuracy %", "claimed %", "device")
    rows = (
        (
            line.experiment,
            line.threat,
            ", ".join(map(str, line.seeds)),
            line.evaluation,
            str(line.images),
            line.text,
            "" if line.claimed is None else percent(line.claimed),
            line.device,
        )
        for line in lines
    )
    return markdown_table(columns, rows)


def csv_text(lines: Sequence[Line]) -> str:
    """CSV with a header; accuracies are fractions."""
    text = StringIO()
    names = [item.name for item in fields(Line) if item.name != "text"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(line), "seeds": " ".join(map(str, line.seeds))} for line in lines)
    return text.getvalue()


def plain(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Plain data for JSON; accuracies are fractions."""
    return [{name: value for name, value in asdict(line).items() if name != "text"} for line in lines]
