"""Commands that read stored results: parse, call, print. Nothing heavy is imported outside them."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Changes, Checkpoint, Device, Json, Wide, console, print_json, print_results
from robustcli.errors import CheckFailedError, RobustCliError

app = typer.Typer()


@app.command("results", rich_help_panel=panels.RESULTS)
def show_results(
    path: Annotated[
        Path | None, typer.Argument(help="Folder of a run or of an evaluation, or its results.json.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of results.json.")] = False,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """Print stored results as a table or as JSON."""
    from robustcli.store.results import json_schema

    if schema:
        print_json(json_schema())
        return
    if path is None:
        raise RobustCliError("found no path; expected the folder of a run, or --schema")
    from robustcli.workflows.compare import read_side

    found = read_side(path)
    if as_json:
        print_json(found.to_json())
        return
    print_results(found.name, found, is_wide=wide)


@app.command("runs", rich_help_panel=panels.RESULTS)
def list_runs(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs or of evaluations. Default: runs and evals.")
    ] = None,
    runs: Annotated[Path | None, typer.Option("--runs", help="Folder of all runs.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Condition such as defense=trades or name=cifar*; may be repeated.")
    ] = None,
    sort: Annotated[str, typer.Option(help="run, date, seconds, clean, robust or epoch.")] = "run",
    limit: Annotated[int | None, typer.Option(min=1, help="Show only the first N rows.")] = None,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """List runs and stored evaluations with date, duration, defense and accuracies.

    `robust %` is the lowest robust accuracy of a row, and `by` the evaluation that found it. A run whose
    files are damaged is listed as damaged.
    """
    from robustcli.reports.runs import run_lines, select, wide_table, with_variants
    from robustcli.store.listing import list_folder

    named = [*(folders or ()), *([runs] if runs is not None else [])]
    chosen = named or [folder for folder in (Path("runs"), Path("evals")) if folder.is_dir()] or [Path("runs")]
    if missing := [str(folder) for folder in named if folder.exists() and not folder.is_dir()]:
        raise RobustCliError(f"{', '.join(missing)}: found a file; expected a folder")
    if missing := [str(folder) for folder in folders or () if not folder.exists()]:
        raise RobustCliError(f"{', '.join(missing)}: no such folder")
    rows = select(with_variants(row for folder in chosen for row in list_folder(folder)), where or (), sort, limit)
    if len(chosen) == 1:
        rows = [row.model_copy(update={"run": row.run.removeprefix(f"{chosen[0]}/")}) for row in rows]
    if as_json:
        print_json([row.to_json() for row in rows])
        return
    if not rows:
        typer.echo(f"no runs in {', '.join(map(str, chosen))}")
        return
    if wide:
        console().print(wide_table(rows))
    else:
        typer.echo("\n".join(run_lines(rows)))
    for row in rows:
        if row.status == "damaged":
            typer.echo(f"damaged: {row.text}")


@app.command(rich_help_panel=panels.RESULTS)
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs or evaluations, folders of those, or files of `robust eval --out`."),
    ],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table (the default).")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
    into: Annotated[Path | None, typer.Option(help="Replace the block <!-- results --> of this Markdown file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page to this file.")] = None,
) -> None:
    """Report finished runs and stored evaluations as Markdown, CSV, JSON or HTML."""
    from robustcli.reports.blocks import replace_block
    from robustcli.reports.summary import csv_text, lines_of, markdown, plain, read_sources

    if as_markdown + as_csv + as_json + (html is not None) > 1 or (into is not None and (as_csv or as_json or html)):
        raise RobustCliError("--markdown, --csv, --json and --html exclude each other, and --into needs Markdown")
    sources, damaged = read_sources(folders)
    for text in damaged:
        typer.echo(f"damaged: {text}", err=True)
    if not sources:
        raise RobustCliError(f"{', '.join(map(str, folders))}: found no readable results.json; expected a finished run")
    if html is not None:
        from robustcli.reports.html import write_page

        write_page(html, sources, damaged)
        typer.echo(f"wrote {html}")
        return
    lines = lines_of(sources)
    if into is not None:
        replace_block(into, "results", markdown(lines))
    elif as_csv:
        typer.echo(csv_text(lines), nl=False)
    elif as_json:
        print_json(plain(lines))
    else:
        typer.echo(markdown(lines), nl=False)


@app.command("pareto", rich_help_panel=panels.RESULTS)
def pareto(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or folders of those. Default: runs.")
    ] = None,
    x: Annotated[str, typer.Option("--x", help="Cost: gflops (forward pass of one image) or parameters.")] = "gflops",
    y: Annotated[
        str, typer.Option("--y", help="Accuracy: robust (the lowest), clean, or the name of an evaluation.")
    ] = "robust",
    out: Annotated[Path | None, typer.Option(help="Also draw the points into this .svg file.")] = None,
) -> None:
    """Show accuracy against the cost of the network, and the runs that no other one beats in both."""
    from robustcli.reports.pareto import pareto_table, points_of, suspects, write_picture
    from robustcli.reports.summary import read_sources

    sources, damaged = read_sources(folders or [Path("runs")])
    for text in damaged:
        typer.echo(f"damaged: {text}", err=True)
    points = points_of(sources, x, y)
    console().print(pareto_table(points, x, y))
    if found := [name for name in suspects(sources, y) if name in points]:
        typer.echo(f"note: SUSPECT, as `robust report` details: {', '.join(found)}")
    if out is not None:
        write_picture(out, points, x, y)
        typer.echo(f"wrote {out}")


@app.command("verify", rich_help_panel=panels.RESULTS)
def verify_results(
    claim: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of a run, or one that `robust eval` stored; a .zip file of one; or hf:ORG/REPO.",
        ),
    ],
    overrides: Changes = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    sign_with: Annotated[
        Path | None, typer.Option("--sign", help="Private Ed25519 key (PEM); signs the results if nothing is wrong.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Public Ed25519 key (PEM) to check the signature with.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--resample", min=1, help="Attack N stored survivors again, drawn at random.")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Attack of --resample: an evaluator or attack. Default: apgd-t.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Evaluation of --resample. Default: the one with the lowest robust accuracy.")
    ] = None,
) -> None:
    """Recompute stored accuracies from weights, images and kept adversarial images, without attacking.

    The digests in results.json cover spec, weights, data, settings, all files and all numbers, so that a changed file
    is noticed. A signature (--sign, --public-key) also reveals that a file was changed and the digests computed again.
    What cannot be checked without attacking is listed as "not checked". --resample attacks some surviving images with
    another attack and another seed; the exit code is 1 if one of them breaks.
    """
    if sign_with is not None and not Path(claim).is_dir():
        raise RobustCliError(f"--sign: {claim} is not a folder; the signature is written next to results.json")
    if count is None and (attack is not None or key is not None):
        raise RobustCliError(f"{'--attack' if key is None else '--key'}: only with --resample N")
    # Before the import of torch, which takes seconds.
    typer.echo(f"verifying {claim}", err=True)
    from robustcli.store.signature import sign, signature_problem
    from robustcli.workflows.evidence_folder import evidence_folder
    from robustcli.workflows.verify import chain_in, verify_folder

    again = None
    with evidence_folder(claim) as folder:
        findings = verify_folder(
            folder, overrides or (), checkpoint, device, lambda part: typer.echo(f"verifying {part}", err=True)
        )
        problems = [f"{finding.key}: {problem}" for finding in findings for problem in finding.problems]
        if public_key is not None and (problem := signature_problem(folder, chain_in(folder), public_key)):
            problems.append(problem)
        if count is not None and not problems:
            from robustcli.cli.progress import Screen
            from robustcli.workflows.resample import resample

            attack = attack or "apgd-t"
            typer.echo(f"attacking survivors with {attack}", err=True)
            with Screen() as screen:
                again = resample(
                    folder,
                    overrides or (),
                    checkpoint,
                    device,
                    count=count,
                    attack=attack,
                    key=key,
                    report=partial(screen.attack, attack),
                )
            problems += [again.text] if again.broken else []
    if problems:
        lines = "\n  ".join(problems)
        raise CheckFailedError(f"{claim}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n  {lines}")
    for finding in findings:
        if finding.checked:
            typer.echo(f"{finding.key}: verified: {finding.checked}")
        for text in finding.unchecked:
            typer.echo(f"{finding.key}: not checked: {text}")
    if again is not None:
        typer.echo(again.text)
    if public_key is not None:
        typer.echo("signature: valid")
    if sign_with is not None:
        typer.echo(f"signed: {sign(Path(claim), chain_in(Path(claim)), sign_with)}")
    if not all(finding.is_recomputed for finding in findings):
        typer.echo("in short: the stored numbers agree with each other; without the weights nothing was computed again")
    else:
        attacked = "attacks were not repeated (--resample N)" if again is None else "some survivors were attacked again"
        typer.echo(f"in short: weights and images give the stored numbers; {attacked}")


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

    `robust` is the lowest robust accuracy of all evaluations. A drop fails if it is larger than --max-drop and
    significant (exact McNemar test on the same images, p < 0.05).
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
