"""`robust reproduce` of findings, and what it and `robust demo` print next to claimed numbers. Imports torch inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustcli.cli.options import console, print_warnings
from robustcli.errors import RobustCliError

if TYPE_CHECKING:
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.store.results import RunResults
    from robustcli.workflows.demo import Agreement


def specs_of_seeds(path: Path, overrides: Sequence[str]) -> "list[ExperimentSpec]":
    """Read the spec with every seed that the overrides name; its warnings are printed.

    Raises:
        RobustCliError: another value than the seed has several values.
    """
    from robustcli.specs.grid import read_grid
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.workflows.sweep_spec import Sweep

    grid = read_grid(overrides)
    if grid.axes:
        raise RobustCliError(
            f"{', '.join(grid.axes)}: found several values; expected several seeds only, such as seed=0,1,2 "
            "(`robust train` takes grids)"
        )
    rows = Sweep.read(path, overrides).rows if grid.is_grid else ()
    read = [spec for row in rows for spec in row.specs] or [ExperimentSpec.read(path, overrides)]
    print_warnings(read[0])
    return read


def print_claim(spec: "ExperimentSpec", found: "Sequence[RunResults]") -> None:
    """Print the claim of a spec next to the results of one or several seeds."""
    from robustcli.reports.claims import claim_lines, claim_table
    from robustcli.specs.check import to_plain
    from robustcli.store.results import Claim
    from robustcli.workflows.reproduce import compare_with_claim

    if spec.claim is None:
        typer.echo("This spec has no claim to compare with.")
        return
    claim = Claim.model_validate(to_plain(spec.claim))
    compared = compare_with_claim(found, claim)
    console().print(claim_table(compared, claim))
    for line in claim_lines(compared, claim, found):
        typer.echo(line)


def print_agreement(found: "Sequence[Agreement]") -> None:
    """Print if the numbers of the demo agree with those of the README."""
    from robustcli.evaluation.wording import percent
    from robustcli.store.provenance import version_of
    from robustcli.workflows.demo import MEASURED_WITH, TOLERANCE

    points = f"{100 * TOLERANCE:g} points"
    differing = [one for one in found if not one.agrees]
    if not differing:
        typer.echo(f"All {len(found)} numbers agree with those of the README ({MEASURED_WITH}) within {points}.")
        return
    typer.echo(f"{len(differing)} of {len(found)} numbers differ from those of the README by more than {points}:")
    for one in differing:
        typer.echo(
            f"  {one.network}, {one.evaluation}: found {percent(one.found)} %; expected {percent(one.expected)} %"
        )
    typer.echo(
        f"The README was measured with {MEASURED_WITH}; here is torch {version_of('torch')}. A few more points "
        "may be rounding; many are not."
    )


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
