"""Specs and training from Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from robustcli.api.inputs import name_of, plain
from robustcli.api.models import load
from robustcli.cli.progress import Screen
from robustcli.evaluation.wording import interval as interval_text
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec, with_value
from robustcli.specs.yamlfile import Document, read_yaml
from robustcli.store.evaluations import Evaluation
from robustcli.store.records import Record
from robustcli.store.results import RunResults, read_run_results
from robustcli.store.runs import RunFolder
from robustcli.workflows.train import run_experiment

Spec: TypeAlias = ExperimentSpec | Mapping[str, Any] | str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Args:
        folder: folder of its files.
        spec: its spec, with every default.
    """

    folder: Path
    spec: ExperimentSpec

    @property
    def checkpoint(self) -> Path:
        """Checkpoint with the selected weights."""
        return RunFolder(self.folder).best

    @property
    def results(self) -> RunResults:
        """results.json: status, selection, evaluations."""
        return read_run_results(RunFolder(self.folder).results)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Results of the evaluations, by the names that the spec gives them."""
        return self.results.evaluations

    @property
    def history(self) -> list[Record]:
        """One record per epoch."""
        return RunFolder(self.folder).epochs()

    def load(self, device: str = "cpu") -> nn.Module:
        """Load the selected network; see `robustcli.load`."""
        return load(self.checkpoint, device=device)

    def __str__(self) -> str:
        lines = [f"{self.spec.name}, seed {self.spec.seed}: {self.results.status}; {self.folder}"]
        lines += [f"  {key}: {interval_text(found)} %" for key, found in self.evaluations.items()]
        return "\n".join(lines)


def spec(spec: Spec, **overrides: Any) -> ExperimentSpec:
    """Read and check a spec.

    Args:
        spec: a mapping with the keys of a spec, the path of a YAML file, or the name of a shipped spec such as
            "cifar10/trades". Quotients may be written as "8/255" or 8 / 255.
        overrides: values to change, with two underscores for a dot: seed=1, train__epochs=30.

    Raises:
        SpecError: with all problems at once.
    """
    return _spec_of(spec, overrides)


def train(
    spec: Spec, *, runs: str | PathLike[str] = "runs", resume: bool = True, quiet: bool = True, **overrides: Any
) -> Run:
    """Train and evaluate the model that a spec describes, or read the finished run.

    Args:
        spec: see `robustcli.spec`.
        runs: folder of all runs.
        resume: resume an interrupted run of this spec and seed; otherwise it is an error.
        quiet: show no progress on standard error.
        overrides: values to change, with two underscores for a dot: seed=1, train__epochs=30, or a whole part as a
            mapping.

    Raises:
        RobustCliError: the spec is wrong, data are missing, or training failed (`CollapseError`, `NotFiniteError`).
        Interrupted: SIGINT, SIGTERM or SIGHUP; everything done so far is kept.
    """
    chosen = _spec_of(spec, overrides)
    with Screen(is_quiet=quiet) as screen:
        folder = run_experiment(chosen, Path(name_of("runs", runs)), screen, resume=resume)
    return Run(folder.path, chosen)


def _spec_of(spec: Spec, overrides: Mapping[str, Any]) -> ExperimentSpec:
    if isinstance(spec, ExperimentSpec):
        if not overrides:
            return spec
        spec = spec.to_plain()
    if isinstance(spec, Mapping):
        document = Document("the spec", plain(spec), {})
    else:
        document = read_yaml(experiments.find(name_of("spec", spec)))
    # A whole part is replaced before its keys, as on the command line.
    paths = {key.replace("__", "."): value for key, value in overrides.items()}
    for path, value in sorted(paths.items(), key=lambda item: item[0].count(".")):
        document = with_value(document, path, plain(value), f"override {path}={value}")
    return ExperimentSpec.check(document)
