"""Commands that compare stored results: `robust compare`, `diff` and `gate`. Nothing heavy is imported outside them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Json, Wide, console, print_json
from robustcli.errors import CheckFailedError, RobustCliError

app = typer.Typer()


@app.command("compare", rich_help_panel=panels.RESULTS)
def compare_results(
    a: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of a run, its results.json, or a file of `robust eval --out`."),
    ],
    b: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER", help="The other results. Default: the same, to compare two of its evaluations."
        ),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an evaluation, or KEY_OF_A:KEY_OF_B for two attacks; may be repeated. Default: all that both "
            "have."
        ),
    ] = None,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """Compare two networks, or two attacks on one network, image by image: is the difference significant?"""
    from robustcli.reports.compare import comparison_table, conditions
    from robustcli.workflows.compare import compare

    if b is None:
        if not key or not all(":" in name for name in key):
            raise RobustCliError(
                "found one result; expected another one, or --key KEY:OTHER for two of its evaluations"
            )
        b = a
    pairs = compare(a, b, key or ())
    if as_json:
        comparisons = {name: pair.to_json() for name, pair in pairs.items()}
        print_json({"a": str(a), "b": str(b), "comparisons": comparisons})
        return
    typer.echo(f"A: {a}\nB: {b}")
    console().print(comparison_table(pairs, is_wide=wide))
    for line in conditions(pairs, is_wide=wide):
        typer.echo(f"note: {line}")
    for name, pair in pairs.items():
        typer.echo(f"{name}: {pair.claim()}")


@app.command("diff", rich_help_panel=panels.RESULTS)
def diff_results(
    a: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder of a run or of an evaluation, its results.json, a .zip file, or hf:ORG/REPO."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="OTHER", help="The other one.")],
    as_json: Json = False,
) -> None:
    """Show in what two results differ: spec, weights, data, environment, code, and the outcome for every image."""
    from robustcli.workflows.diff import diff
    from robustcli.workflows.evidence_folder import evidence_folder

    with evidence_folder(a) as first, evidence_folder(b) as second:
        sections = diff(first, second)
    if as_json:
        found = {section.name: section.differences for section in sections}
        print_json({"a": a, "b": b, "differences": found})
        return
    typer.echo(f"A: {a}\nB: {b}")
    for section in sections:
        typer.echo(f"{section.name}: {section.same if not section.differences else 'different'}")
        for line in section.differences:
            typer.echo(f"  {line}")


@app.command("gate", rich_help_panel=panels.RESULTS)
def gate_results(
    result: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a run or of an evaluation, or its results.json.")
    ],
    minima: Annotated[
        list[str] | None,
        typer.Option("--min", help="Condition such as robust>=0.41, clean>=0.8 or NAME>=0.4; may be repeated."),
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Largest accepted drop of accuracy against --baseline, as a fraction.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="Earlier results on the same images.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Evaluation to compare with the baseline. Default: all that both have.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check conditions on results, for continuous integration; the exit code is 1 if one fails.

    `robust` is the lowest robust accuracy of all evaluations. With `quick` the estimate has to reach the minimum too. A
    drop fails if it is larger than --max-drop and significant (exact McNemar test on the same images, p < 0.05).
    """
    from robustcli.workflows.gate import gate

    outcomes = gate(result, minima or (), baseline=baseline, max_drop=max_drop, keys=key or ())
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            word = "passed" if outcome.passed else "FAILED"
            typer.echo(f"{word}: {outcome.evaluation}: {outcome.condition}: {outcome.text}")
        suspect = {outcome.evaluation: outcome.suspicions for outcome in outcomes if outcome.suspicions}
        for evaluation, suspicions in suspect.items():
            typer.echo(f"note: {evaluation}: SUSPECT: {'; '.join(suspicions)}")
    failed = sum(not outcome.passed for outcome in outcomes)
    if failed:
        raise CheckFailedError(f"{failed} of {len(outcomes)} conditions")
