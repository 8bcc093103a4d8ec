"""The command `robust doctor`. torch is imported inside it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Device, Json, print_json

app = typer.Typer()


@app.command("doctor", rich_help_panel=panels.HELP)
def check_installation(
    folder: Annotated[Path, typer.Option("--runs", help="Folder for runs, whose disk is checked.")] = Path("runs"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check the installation: versions, device, memory, disk and a short self-test."""
    from robustcli.workflows.doctor import examine

    findings = examine(device, folder)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.is_ok else 'FAIL'}  {finding.subject}: {finding.text}")
    if not all(finding.is_ok for finding in findings):
        raise typer.Exit(1)
