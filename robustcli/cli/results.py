"""Commands that show stored results: `robust results`, `runs`, `report` and `pareto`; they import the rest inside."""

from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Json, Wide, a_file, console, print_json, print_results
from robustcli.errors import RobustCliError

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
    html: Annotated[
        Path | None, typer.Option(callback=a_file, help="Write a self-contained HTML page to this file.")
    ] = None,
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
    out: Annotated[Path | None, typer.Option(callback=a_file, help="Also draw the points into this .svg file.")] = None,
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
