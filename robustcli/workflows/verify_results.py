"""Checks of results.json against spec, checkpoints, provenance, images and its digest chain, without attacking."""

from collections.abc import Iterator, Mapping
from typing import Any

from robustcli.data.splits import Data
from robustcli.evaluation.fingerprint import evaluator_text, in_present_names
from robustcli.evaluation.stored import plain_parameters
from robustcli.evaluators import Evaluator
from robustcli.models.model import LoadedModel, Model, TrainedModel
from robustcli.registry.catalog import describe
from robustcli.registry.registry import instantiate
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.chain import broken_links, chain_of
from robustcli.store.checkpoint import ResumableCheckpoint
from robustcli.store.provenance import read_provenance
from robustcli.store.results import EvalResults, Results, RunResults
from robustcli.store.runs import RunFolder
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.outcome import run_outcome


def of_chain(folder: RunFolder, results: Results, raw: Mapping[str, Any], weights: str) -> tuple[list[str], list[str]]:
    """Compare the stored digest chain with that of the files as they are now.

    Args:
        raw: content of results.json.
        weights: digest of the weights.

    Returns:
        Problems, one line each, and a list of what was not checked.
    """
    if results.chain is not None:
        return broken_links(results.chain, chain_of(folder.path, raw, weights))
    if raw.get("schema") != 1:
        # Results of schema 2 always have a chain, so it was removed.
        return ["digest chain: results.json has none; expected one in schema 2"], []
    return [], ["changes after the results were written: results of schema 1 have no digest chain"]


def of_run(folder: RunFolder, results: RunResults, model: Model) -> Iterator[str]:
    """Check results.json of a run against its spec, its checkpoints and its provenance."""
    spec = ExperimentSpec.read_stored(folder.spec)
    if isinstance(model, TrainedModel):
        inside = ExperimentSpec.parse(model.checkpoint.spec, f"the spec inside {model.path}")
        for name in ("digest", "seed"):
            if getattr(spec, name) != getattr(inside, name):
                yield (
                    f"spec.yaml: {name} {getattr(spec, name)}; the spec inside {model.path.name} has "
                    f"{getattr(inside, name)}"
                )
        training = ResumableCheckpoint.read(folder.last).training if folder.last.is_file() else None
        for name, value in run_outcome(spec, model.checkpoint.check, training, results.data.sizes).items():
            if getattr(results, name) != value:
                yield f"{name}: results.json says {getattr(results, name)}; spec and checkpoints give {value}"
        begun = folder.begun_precision()
        # Results of earlier versions do not state it.
        if begun is not None and results.precision not in (None, begun):
            yield f"precision: results.json says {results.precision}; spec and provenance.json give {begun}"
    yield from of_provenance(folder, results)
    yield from _of_evaluations(results, spec)


def of_provenance(folder: RunFolder, results: RunResults) -> Iterator[str]:
    """Check that results.json and provenance.json record the same data."""
    if folder.provenance.is_file() and read_provenance(folder.provenance).data != results.data:
        yield "data: results.json and provenance.json differ"


def _of_evaluations(results: RunResults, spec: ExperimentSpec) -> Iterator[str]:
    """Check that the evaluations are those of the spec, with its settings."""
    if set(results.evaluations) != set(spec.evaluate):
        yield f"evaluations: found {', '.join(results.evaluations)}; the spec has {', '.join(spec.evaluate)}"
    for key in results.evaluations.keys() & spec.evaluate.keys():
        found, chosen = results.evaluations[key], spec.evaluate[key]
        evaluator: Evaluator = instantiate(chosen)
        threat = evaluator.threat or ThreatModel(spec.threat.norm, spec.threat.eps)
        images = chosen.options.examples
        for name, stated, expected in (
            ("threat", str(found.threat), str(threat)),
            ("seed", found.seed, spec.seed),
            ("images", found.total, results.data.sizes.test if images is None else images),
            (
                "settings",
                evaluator_text(found.evaluator, found.parameters),
                evaluator_text(chosen.name, plain_parameters(chosen)),
            ),
        ):
            if stated != expected:
                words = (in_present_names(str(text)) for text in (stated, expected))
                yield "evaluations.{}: {}: the result says {}, the spec {}".format(key, name, *words)


def of_eval(results: EvalResults, raw: Mapping[str, Any], model: Model, loaded: LoadedModel) -> Iterator[str]:
    """Check results.json of `robust eval` against the network that it names.

    Args:
        raw: content of results.json.
    """
    for name, value in {**model.origin, "network": loaded.to_json(), "notes": list(loaded.notes)}.items():
        if raw.get(name) != value:
            yield f"{name}: results.json says {raw.get(name)}; the network gives {value}"
    if results.data.extra_digest:
        yield "data: extra_digest: found one; expected none, because `robust eval` reads no additional images"
    for key, found in results.evaluations.items():
        has_own = {"norm", "eps"} <= describe("evaluators", found.evaluator).parameters.keys()
        if not has_own and found.threat != results.threat:
            yield f"evaluations.{key}: threat: the result says {found.threat}, results.json {results.threat}"


def of_data(results: Results, data: Data) -> Iterator[str]:
    """Check the record of the images against the images."""
    for name in ("digest", "sizes", "decode"):
        stated, found = getattr(results.data, name), getattr(data, name)
        if stated != found:
            yield f"data: results.json says {name} {stated}; the images give {found}"
