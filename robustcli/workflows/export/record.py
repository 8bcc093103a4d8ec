"""Facts of an evaluation as text: log.txt of an export."""

from collections.abc import Iterator, Mapping, Sequence

from robustcli.evaluation.wording import describe, verdict
from robustcli.store.evaluations import Evaluation
from robustcli.store.provenance import Session
from robustcli.store.results import Results, RunResults
from robustcli.workflows.export.card import eps_text


def log_text(
    key: str,
    results: Results,
    sessions: Sequence[Session],
    left_out: Mapping[str, Sequence[str]],
    *,
    images: str,
) -> str:
    """Facts about the numbers of a card, as text.

    Args:
        key: name of the evaluation.
        results: results of the run, or of `robust eval`.
        sessions: provenance of each process that made them.
        left_out: keys that are omitted from the card, with reasons.
        images: data set and reader, as text.
    """
    return "\n".join(
        [*_network(results), *_evaluation(key, results, images), *_sessions(sessions), *_left_out(left_out)]
    )


def _network(results: Results) -> Iterator[str]:
    yield f"network: {results.name}"
    if results.spec_digest is not None:
        yield f"trained by spec {results.spec_digest}, seed {results.training_seed}"
    if isinstance(results, RunResults):
        images = f" on {results.selection.images}" if results.selection.images else ""
        yield f"training {results.status}, selected by {results.selection.by}{images}"
    yield from (f"note: {note}" for note in results.notes)


def _evaluation(key: str, results: Results, images: str) -> Iterator[str]:
    result = results.evaluations[key]
    low, high = result.interval
    yield f"\nevaluation: {key}: {describe(result)}"
    yield "settings: " + ", ".join(f"{name}={value}" for name, value in result.parameters.items())
    yield f"threat: {result.norm} {eps_text(result.norm, result.eps)}"
    decode = f", decoded by {results.data.decode}" if results.data.decode else ""
    yield f"images: {images}: the first {result.total:,} of the test set, data {results.data.digest}{decode}"
    yield f"seed of the noise: {result.seed}"
    yield from _counts(result)
    yield (
        f"correct on every image tried: {result.correct:,} of {result.total:,}, {100 * result.accuracy:.2f} % "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
    )
    yield f"verdict: {verdict(result)}"
    yield from (f"  suspicion: {text}" for text in result.suspicions or ())
    yield from (f"  warning: {text}" for text in result.warnings)
    yield from (f"fingerprint, {name}: {text}" for name, text in (result.fingerprint or {}).items())


def _counts(result: Evaluation) -> Iterator[str]:
    """Images that are correct when clean, and what every stage did."""
    clean = result.correct if result.clean_correct is None else result.clean_correct
    yield f"correct when clean: {clean:,} of {result.total:,}"
    for stage in result.stages:
        sampled = "" if stage.sampled is None else f", {stage.sampled:,} of them attacked"
        yield (
            f"  {stage.name}: {stage.entered:,} entered{sampled}, {stage.broken:,} broken; "
            f"{stage.forwards:,} forwards, {stage.gradients:,} gradients, {stage.seconds:.1f} s"
        )


def _sessions(sessions: Sequence[Session]) -> Iterator[str]:
    for session in sessions:
        versions = ", ".join(f"{name} {found}" for name, found in session.versions.items() if found)
        yield f"\nsession of {session.started}: {' '.join(session.command)}"
        yield f"  on {session.device}, {session.platform}, Python {session.python}, {versions}"
        if session.commit:
            yield f"  commit {session.commit}{' with changes' if session.dirty else ''}"


def _left_out(left_out: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield ""
    for key, reasons in left_out.items():
        yield f"left out of the card: {key}: {'; '.join(reasons)}"
