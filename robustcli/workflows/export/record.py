"""The facts of an evaluation as text: an export's log.txt."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from robustcli.evaluation.wording import describe, verdict
from robustcli.workflows.export.card import eps_text


def log_text(
    key: str,
    result: Mapping[str, Any],
    results: Mapping[str, Any],
    sessions: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, Sequence[str]],
    *,
    images: str,
) -> str:
    """What a reader of the card may ask of its numbers.

    Args:
        key: of the evaluation.
        result: of it, as stored.
        results: of the run, or of `robust eval`.
        sessions: provenance of each process that made them.
        left_out: keys that the card may not have, and why.
        images: what they are and what read them, in words.
    """
    return "\n".join(
        [*_network(results), *_evaluation(key, result, results, images), *_sessions(sessions), *_left_out(left_out)]
    )


def _network(results: Mapping[str, Any]) -> Iterator[str]:
    yield f"network: {results['name']}"
    seed = results["seed"] if "seed" in results else results["training_seed"]
    if results["spec_digest"] is not None:
        yield f"trained by spec {results['spec_digest']}, seed {seed}"
    if "selection" in results:
        images = results["selection"]["images"]
        yield f"training {results['status']}, selected by {results['selection']['by']}{f' on {images}' * bool(images)}"
    for note in results.get("notes", ()):
        yield f"note: {note}"


def _evaluation(key: str, result: Mapping[str, Any], results: Mapping[str, Any], images: str) -> Iterator[str]:
    low, high = result["interval"]
    yield f"\nevaluation: {key}: {describe(result)}"
    yield "settings: " + ", ".join(f"{name}={value}" for name, value in result["parameters"].items())
    yield f"threat: {result['norm']} {eps_text(result['norm'], result['eps'])}"
    decode = results["data"]["decode"]
    yield f"images: {images}: the first {result['total']:,} of the test set, data {results['data']['digest']}" + (
        f", decoded by {decode}" if decode else ""
    )
    yield f"seed of the noise: {result['seed']}"
    first = result["stages"][0]["entered"] if result["stages"] else result["correct"]
    yield f"right when clean: {first:,} of {result['total']:,}"
    for stage in result["stages"]:
        sampled = "" if stage.get("sampled") is None else f", {stage['sampled']:,} of them attacked"
        yield (
            f"  {stage['name']}: {stage['entered']:,} entered{sampled}, {stage['broken']:,} broken; "
            f"{stage['forwards']:,} forwards, {stage['gradients']:,} gradients, {stage['seconds']:.1f} s"
        )
    yield (
        f"right on every image tried: {result['correct']:,} of {result['total']:,}, {100 * result['accuracy']:.2f} % "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f} %)"
    )
    yield f"verdict: {verdict(result)}"
    yield from (f"  suspicion: {text}" for text in result["suspicions"])
    yield from (f"  warning: {text}" for text in result["warnings"])
    yield from (f"fingerprint, {name}: {text}" for name, text in result["fingerprint"].items())


def _sessions(sessions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for session in sessions:
        versions = ", ".join(f"{name} {found}" for name, found in session["versions"].items() if found)
        yield f"\nsession of {session['started']}: {' '.join(session['command'])}"
        yield f"  on {session['device']}, {session['platform']}, Python {session['python']}, {versions}"
        if session["commit"]:
            yield f"  commit {session['commit']}{' with changes' if session['dirty'] else ''}"


def _left_out(left_out: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield ""
    for key, reasons in left_out.items():
        yield f"left out of the card: {key}: {'; '.join(reasons)}"
