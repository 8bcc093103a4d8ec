"""The command `robust verify`. torch is imported inside it."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustcli.cli import panels
from robustcli.cli.options import Changes, Checkpoint, Device
from robustcli.errors import CheckFailedError, RobustCliError

if TYPE_CHECKING:
    from robustcli.workflows.resample import Resampled
    from robustcli.workflows.verify_evaluation import Finding

app = typer.Typer()


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
            again = _attacked_again(folder, overrides or (), checkpoint, device, count, attack or "apgd-t", key)
            problems += [again.text] if again.broken else []
    if problems:
        lines = "\n  ".join(problems)
        raise CheckFailedError(f"{claim}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n  {lines}")
    _print_findings(findings)
    if again is not None:
        typer.echo(again.text)
    if public_key is not None:
        typer.echo("signature: valid")
    if sign_with is not None:
        typer.echo(f"signed: {sign(folder, chain_in(folder), sign_with)}")
    if not all(finding.is_recomputed for finding in findings):
        typer.echo("in short: the stored numbers agree with each other; without the weights nothing was computed again")
    else:
        attacked = "attacks were not repeated (--resample N)" if again is None else "some survivors were attacked again"
        typer.echo(f"in short: weights and images give the stored numbers; {attacked}")


def _attacked_again(
    folder: Path,
    overrides: Sequence[str],
    checkpoint: str | None,
    device: str,
    count: int,
    attack: str,
    key: str | None,
) -> "Resampled":
    """Attack some stored survivors again, and show the progress."""
    from robustcli.cli.progress import Screen
    from robustcli.workflows.resample import resample

    typer.echo(f"attacking survivors with {attack}", err=True)
    with Screen() as screen:
        report = partial(screen.attack, attack)
        return resample(folder, overrides, checkpoint, device, count=count, attack=attack, key=key, report=report)


def _print_findings(findings: "Iterable[Finding]") -> None:
    for finding in findings:
        if finding.checked:
            typer.echo(f"{finding.key}: verified: {finding.checked}")
        for text in finding.unchecked:
            typer.echo(f"{finding.key}: not checked: {text}")
