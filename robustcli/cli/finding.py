"""`robust reproduce` of a finding. torch is imported inside."""

from collections.abc import Sequence
from pathlib import Path

import typer

from robustcli.cli.options import console
from robustcli.errors import RobustCliError


def reproduce_finding(path: Path, overrides: Sequence[str], runs: Path, out: Path | None, *, quiet: bool) -> None:
    """Run every arm of a finding, print numbers, comparisons and the verdict, and store them if asked.

    Raises:
        RobustCliError: the file is a sweep without a finding.
    """
    from robustcli.workflows.sweep_spec import Sweep

    sweep = Sweep.read(path, overrides)
    if sweep.finding is None:
        raise RobustCliError(f"{path}: a sweep without `finding`; run it with `robust sweep {path}`")
    from robustcli.cli.progress import Screen
    from robustcli.reports.finding import values_table, verdict_lines
    from robustcli.store.files import write_json
    from robustcli.workflows import finding

    with Screen(is_quiet=quiet) as screen:
        found = finding.reproduce_finding(
            sweep, sweep.finding, runs, screen, lambda text: None if quiet else typer.echo(f"measure: {text}", err=True)
        )
    console().print(values_table(found))
    for line in verdict_lines(found):
        typer.echo(line)
    if out is not None:
        write_json(out, found.to_json())
