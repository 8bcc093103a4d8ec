"""The commands below `robust bench` that look at single parts: parse, call, print. torch is imported inside them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from robustcli.cli.bench_options import Checkpoints, Rounds, show, subjects_of
from robustcli.cli.options import Device, Eps, Images, NormOption, Out

app = typer.Typer()


@app.command("eval")
def evaluation(
    checkpoints: Checkpoints,
    examples: Annotated[int, typer.Option(min=1, help="The first so many test images.")] = 200,
    rounds: Rounds = 5,
    eps: Eps = None,
    norm: NormOption = None,
    data: Images = None,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Speed of PGD-20: images leave when they break; beside its passes alone, torchattacks and foolbox.

    A ratio is our speed as a multiple of the other's, taken round by round; a difference is called one only if it
    exceeds what the same evaluation differs from itself. Peers are left out where they are not installed.
    """
    from robustcli.bench.cost_tables import evaluation_rows
    from robustcli.bench.evaluate import bench_evaluation

    results = [
        bench_evaluation(subject, rounds) for subject in subjects_of(checkpoints, norm, eps, examples, data, device)
    ]
    show(results, evaluation_rows(results), out)


@app.command()
def data(
    batch_size: Annotated[int, typer.Option(min=1, max=2048, help="Images of a batch.")] = 128,
    rounds: Rounds = 5,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """What a training image costs before the network sees it, as a share of a PGD-10 step, beside torchvision's PIL."""
    from robustcli.bench.cost_tables import data_rows
    from robustcli.bench.data import bench_data

    with _measuring("the input pipeline"):
        result = bench_data(batch_size, rounds, device)
    _show(result, data_rows([result]), out)


@app.command()
def architectures(
    architecture: Annotated[
        list[str] | None, typer.Option(help="May be repeated; all that need no settings if left out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a pass.")] = 4,
    rounds: Rounds = 3,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """Passes of every architecture against their multiply-accumulates, beside those of resnet18.

    After the families: resnet18 with every other layer it can have, and inside cifs and multibn.

    Networks of more than 0.6 G multiply-accumulates are made narrower first. One that makes less than a third of
    resnet18's multiply-accumulates in a second, in every round, is named.
    """
    from robustcli.bench.architectures import bench_architectures
    from robustcli.bench.cost_tables import architecture_rows, architecture_words

    with _measuring("architectures"):
        result = bench_architectures(tuple(architecture or ()), batch_size, rounds, device)
    _show(result, architecture_rows([result]), out)
    typer.echo(architecture_words([result]))


@app.command()
def scaling(
    architecture: Annotated[str, typer.Option(help="One that has a width.")] = "preact_resnet18",
    rounds: Rounds = 3,
    workers: Annotated[int, typer.Option(min=1, help="Processes at most.")] = 2,
    device: Device = "auto",
    out: Out = None,
) -> None:
    """How the cost of an update grows with batch, attack steps, width and processes, and where it leaves the line."""
    from robustcli.bench.cost_tables import scaling_rows, scaling_words
    from robustcli.bench.scaling import bench_scaling

    with _measuring("updates over batch, steps, width and processes"):
        result = bench_scaling(architecture, rounds, workers, device)
    _show(result, scaling_rows([result]), out)
    typer.echo(scaling_words([result]))


@contextmanager
def _measuring(what: str) -> Iterator[None]:
    with Console(stderr=True).status(f"measuring {what}"):
        yield


def _show(result: dict[str, Any], rows: list[tuple[str, ...]], out: Any) -> None:
    show([result], rows, out)
