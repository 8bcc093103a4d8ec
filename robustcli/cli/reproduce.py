"""`robust reproduce` of one or several seeds, next to the claim. torch is imported inside."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustcli.cli.options import console
from robustcli.errors import RobustCliError

if TYPE_CHECKING:
    from robustcli.specs.spec import ExperimentSpec
    from robustcli.store.results import RunResults


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
    for warning in read[0].warnings():
        typer.echo(f"warning: {warning}", err=True)
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
