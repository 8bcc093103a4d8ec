"""`robust reproduce` of a finding: rows of a sweep -> metrics -> comparisons -> verdict."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from robustcli.data.loading import load_data
from robustcli.errors import RobustCliError
from robustcli.evaluation.watcher import Watcher
from robustcli.models.build import network_of
from robustcli.registry.registry import instantiate
from robustcli.runtime.device import choose_device
from robustcli.statistics import mean_interval
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.store.files import own_mark, read_json, write_json
from robustcli.store.finding_results import Comparison, FindingResult, Verdict
from robustcli.store.passes import Passes
from robustcli.store.provenance import read_provenance
from robustcli.store.results import read_run_results
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.diagnose import look, settings_of
from robustcli.workflows.finding_spec import Expectation, Finding, Measure, terms
from robustcli.workflows.sweep import Outcome, run_rows, update_passes
from robustcli.workflows.sweep_spec import Sweep

# Numbers of all seeds by metric, then by arm.
Values = dict[str, dict[str, list[float]]]


def reproduce_finding(
    sweep: Sweep, finding: Finding, root: Path, watcher: Watcher, begins: Callable[[str], None]
) -> FindingResult:
    """Train and evaluate every arm with every seed, or read stored results, and judge the claim.

    Args:
        begins: called before every diagnostic.

    Raises:
        RobustCliError: an arm has no result, so the claim cannot be judged.
    """
    outcomes = run_rows(sweep.rows, root, watcher)
    failures = [
        f"{row.name}, seed {outcome.spec.seed}: {outcome.failure}"
        for row in sweep.rows
        for outcome in outcomes[row.name]
        if outcome.failure is not None
    ]
    if failures:
        raise RobustCliError("\n".join([f"{sweep.name}: no verdict, because arms failed", *failures]))
    values: Values = {expected.metric: {} for expected in finding.expect}
    for row in sweep.rows:
        # Counted once, because passes do not depend on the seed.
        passes = cache(partial(update_passes, outcomes[row.name][0]))
        runs = [
            _Measured(done, f"{row.name}, seed {done.spec.seed}", finding.measure, passes, begins)
            for done in outcomes[row.name]
        ]
        for metric in values:
            try:
                values[metric][row.name] = [run.number(metric) for run in runs]
            except RobustCliError:
                # Arms without comparisons may lack a number, such as robust checks of natural training.
                compared = [(one.of, one.other) for one in finding.expect if one.metric == metric]
                if any(row.name in arms for arms in compared):
                    raise
    comparisons = [compare(expected, values) for expected in finding.expect]
    first = outcomes[sweep.rows[0].name][0]
    session = read_provenance(first.folder.provenance).sessions[-1]
    return FindingResult(
        name=sweep.name,
        claim=finding.claim,
        reference=finding.reference,
        reduced=finding.reduced,
        doubt=finding.doubt,
        seeds=[outcome.spec.seed for outcome in outcomes[sweep.rows[0].name]],
        values=values,
        comparisons=comparisons,
        verdict=joint_verdict([found.verdict for found in comparisons]),
        training_seconds=sum(
            record.seconds for found in outcomes.values() for outcome in found for record in outcome.folder.epochs()
        ),
        hardware=f"{session.device}, {session.platform}",
        torch=session.versions.get("torch") or "unknown",
    )


def compare(expected: Expectation, values: Values) -> Comparison:
    """Judge one comparison from the numbers of all arms and seeds.

    The effect of a seed is the difference between arms trained with this seed. The claim is shown if the whole 95 %
    interval agrees with it, refuted if the whole interval contradicts it, and otherwise not shown: then there are too
    few seeds or images.
    """
    effects = _effects(expected, values)
    low, high = mean_interval(effects)
    if expected.relation == "near":
        is_shown, is_refuted = -expected.by <= low and high <= expected.by, high < -expected.by or low > expected.by
    else:
        is_shown, is_refuted = low > expected.by, high < expected.by
    verdict: Verdict = "SHOWN" if is_shown else "REFUTED" if is_refuted else "NOT SHOWN"
    return Comparison(
        text=describe(expected),
        effects=effects,
        mean=fmean(effects),
        interval=(low, high),
        needed=expected.by,
        verdict=verdict,
    )


def joint_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Verdict on a claim of several parts: refuted if a part is, shown if every part is."""
    if "REFUTED" in verdicts:
        return "REFUTED"
    return "SHOWN" if all(verdict == "SHOWN" for verdict in verdicts) else "NOT SHOWN"


def describe(expected: Expectation) -> str:
    """The expectation in words."""
    other = f"{expected.times:g} x {expected.other}" if expected.times != 1 else str(expected.other)
    if expected.relation == "near":
        return f"{expected.metric}: {expected.of} is within {expected.by:g} of {other}"
    margin = f" by more than {expected.by:g}" if expected.by else ""
    return f"{expected.metric}: {expected.of} is {expected.relation} {other}{margin}"


def _effects(expected: Expectation, values: Values) -> list[float]:
    """Return one number per seed, positive in the direction of the claim."""
    by_arm = values[expected.metric]
    own = by_arm[expected.of]
    other = by_arm[expected.other] if isinstance(expected.other, str) else [expected.other] * len(own)
    sign = -1 if expected.relation == "below" else 1
    return [sign * (mine - expected.times * theirs) for mine, theirs in zip(own, other, strict=True)]


@dataclass(frozen=True)
class _Measured:
    """Numbers of one arm with one seed, read or measured on first use.

    Args:
        where: arm and seed, for messages.
        passes: returns the passes of an update.
        begins: called before every diagnostic.
    """

    outcome: Outcome
    where: str
    measures: Mapping[str, Measure]
    passes: Callable[[], Passes]
    begins: Callable[[str], None]

    def number(self, metric: str) -> float:
        """Return the value of a metric; accuracies in percent.

        Raises:
            RobustCliError: the run does not have it.
        """
        parts = [self._single(term) for term in terms(metric)]
        return parts[0] - sum(parts[1:])

    def _single(self, metric: str) -> float:
        spec, folder = self.outcome.spec, self.outcome.folder
        if metric in spec.evaluate:
            return 100 * read_run_results(folder.results).evaluations[metric].accuracy
        prefix, _, rest = metric.partition(".")
        if prefix == "cost":
            passes = self.passes()
            gradients = passes.input_gradients + passes.weight_gradients
            return {"forwards": passes.forwards, "gradients": gradients, "total": passes.total}[rest]
        if prefix == "epochs":
            records = [{**r.measures, "robust": r.robust, "seconds": r.seconds} for r in folder.epochs()]
            return _follow(records, rest, f"{self.where}: {metric}")
        name, _, path = rest.partition(".")
        return _follow(self._measure(name), path, f"{self.where}: {metric}")

    def _measure(self, name: str) -> Any:
        """Return the result of a diagnostic, stored next to the run under its settings."""
        measure, spec, folder = self.measures[name], self.outcome.spec, self.outcome.folder
        diagnostic = instantiate(measure.diagnostic)
        settings = {
            "diagnostic": {"name": measure.diagnostic.name, **settings_of(diagnostic)},
            "images": measure.images,
            "examples": measure.examples,
        }
        # Converted like values that are read from the file.
        settings = json.loads(json.dumps(settings))
        file = folder.path / "diagnostics" / f"{name}.json"
        if file.is_file():
            stored = read_json(file)
            if isinstance(stored, Mapping) and stored.get("settings") == settings and "found" in stored:
                return stored["found"]
        self.begins(f"{self.where}: {name}")
        device = choose_device(spec.train.device, "train.device")
        _, network = network_of(NetworkCheckpoint.read(folder.best), device, folder.best)
        data = load_data(spec.data, device, to_train=measure.images == "train")
        x, y = data.evaluation(measure.images, min(measure.examples, data.size(measure.images)))
        threat = ThreatModel(spec.threat.norm, spec.threat.eps)
        found = look(diagnostic, network, x, y, threat, spec.seed).found
        file.parent.mkdir(exist_ok=True)
        # Several processes may share a finding.
        write_json(file, {"settings": settings, "found": found}, mark=own_mark())
        return found


def _follow(value: Any, path: str, where: str) -> float:
    """Return the number at a dotted path; for a list of mappings the last step is mean, max, first or last of a column.

    Raises:
        RobustCliError: there is no such number; the message lists existing ones.
    """
    steps = path.split(".") if path else []
    for number, step in enumerate(steps):
        if isinstance(value, list):
            if step in _OVER and all(isinstance(item, int | float) for item in value):
                value = _OVER[step](value)
            elif value and all(isinstance(item, Mapping) and step in item for item in value):
                value = [item[step] for item in value]
            else:
                raise RobustCliError(f"{where}: there is no '{step}' at step {number + 1} of {path}")
        elif isinstance(value, Mapping) and step in value:
            value = value[step]
        else:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise RobustCliError(f"{where}: there is no '{step}'; found {known}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RobustCliError(f"{where}: not a number but {value!r:.60}")
    last = [step for step in steps if step not in _OVER][-1:] or [""]
    return 100 * value if last[0].endswith("accuracy") else float(value)


_OVER: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean,
    "max": max,
    "min": min,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}
