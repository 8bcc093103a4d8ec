"""The command line: parse, call, print. torch is imported inside commands, because it takes seconds."""

import json
import os
import re
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from robustcli import __version__, experiments
from robustcli.bench import commands as bench
from robustcli.catalog import FAMILIES, Member, catalog
from robustcli.errors import CollapseError, Interrupted, NotFiniteError, RobustCliError, suggest
from robustcli.export import commands as export
from robustcli.signatures import REQUIRED
from robustcli.spec import ExperimentSpec

if TYPE_CHECKING:
    from robustcli.naming import Wanted

PURPOSE = "Adversarial training and evaluation: one YAML spec in; a model, its robust accuracy and the evidence out."
EXIT_CODES = (
    "Exit codes: 0 done, 1 a bug of ours, 2 something to mend, 3 stopped by a signal (resume it), 4 training failed."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help=f"{PURPOSE}\n\n{EXIT_CODES}",
)
app.add_typer(bench.app, name="bench")
app.add_typer(export.app, name="export")

Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, such as train.epochs=30 seed=1.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class NormName(StrEnum):
    """Norms by name."""

    linf = "linf"
    l2 = "l2"
    l1 = "l1"


# What `eval` and `diagnose` both ask: which network, which images, which threat.
Subject = Annotated[
    str | None,
    typer.Argument(
        help="best.pt or last.pt of a run, weights with --architecture, a TorchScript file, torchvision:NAME or "
        "timm:NAME."
    ),
]
Architecture = Annotated[
    str | None, typer.Option(help="Of weights that another program saved; see `robust list architectures`.")
]
Model = Annotated[
    str | None, typer.Option(help="path/file.py:function or package.module:function, which returns an nn.Module.")
]
WeightsFile = Annotated[
    str | None,
    typer.Option(help="A file of weights for --model or a zoo's network, or torchvision's name of some."),
]
WeightsKey = Annotated[str | None, typer.Option(help="Which weights of a file that holds several.")]
Mean = Annotated[
    str | None, typer.Option(help="Of the normalisation before a network from elsewhere, such as 0.49,0.48,0.45.")
]
Std = Annotated[str | None, typer.Option(help="Likewise; 1 with --mean 0 is none.")]
Eps = Annotated[
    str | None, typer.Option(help="Radius, such as 8/255; the spec's if left out, needed where there is none.")
]
NormOption = Annotated[NormName | None, typer.Option(help="Norm; the spec's if left out.")]
Examples = Annotated[int | None, typer.Option(min=1, help="The first so many test images.")]
Images = Annotated[str | None, typer.Option(help="A data set's name, an .npz file or a folder of images.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the attack's noise; the spec's if left out.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")]


def main() -> None:
    """Run a command; an error that a user can mend is one message and an exit code."""
    # Threads that spin while they wait take the cores of a shared machine from each other. Set here, because
    # torch reads it once, when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except Interrupted as stopped:
        typer.echo(f"{stopped}; continue with --resume", err=True)
        sys.exit(3)
    except (CollapseError, NotFiniteError) as failure:
        typer.echo(f"training failed: {failure}", err=True)
        sys.exit(4)
    except RobustCliError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"robust {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    spec: Annotated[str, typer.Argument(help="A spec's file, or the name of a shipped one.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run.")] = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Train what a spec describes, evaluate it and store the results."""
    _run(_read(spec, overrides), runs, quiet, resume=resume)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A shipped experiment; see `robust list experiments`.")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Train and evaluate a shipped experiment (or go on with it) and compare with what its source claims."""
    from robustcli.check import to_plain
    from robustcli.report import claim_table

    spec = _read(name, overrides)
    results = _run(spec, runs, quiet, resume=True)
    results["claim"] = to_plain(spec.claim) if spec.claim else None
    if results["claim"] is None:
        typer.echo("This spec carries no claim to compare with.")
        return
    _console().print(claim_table(results))
    claim = results["claim"]
    images = results["selection"]["images"]
    ours = f"{results['selection']['by']}{f' on {images} images' if images else ' epoch'}"
    typer.echo(f"selection: source {claim['selection'] or 'not stated'}; here {ours}")
    if claim["hardware"]:
        typer.echo(f"hardware: source {claim['hardware']}")
    if claim["note"]:
        typer.echo(f"note: {claim['note']}")


@app.command()
def demo(runs: Runs = Path("runs"), quiet: Quiet = False) -> None:
    """Train a natural and a robust model on the embedded digits and show what an attack leaves of each."""
    for name in ("demo/digits_natural", "demo/digits_pgd_at"):
        _run(_read(name, []), runs, quiet, resume=True)


@app.command("eval")
def evaluate_network(
    subject: Subject = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as data.root=PATH or architecture.width=32.")
    ] = None,
    architecture: Architecture = None,
    model: Model = None,
    weights: WeightsFile = None,
    weights_key: WeightsKey = None,
    mean: Mean = None,
    std: Std = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="An evaluator, an attack, or a name under `evaluate` of the spec. If left out: all of those, or "
            "clean and autoattack where there is no spec."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps of the attack.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Independent tries of the attack.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Length of one step, such as 2/255.")] = None,
    loss: Annotated[str | None, typer.Option(help="What the attack maximises.")] = None,
    version: Annotated[str | None, typer.Option(help="Of autoattack: standard, plus or rand.")] = None,
    engine: Annotated[str | None, typer.Option(help="Of autoattack: native, or reference (the package).")] = None,
    precision: Annotated[str | None, typer.Option(help="Of autoattack's search: fp32, or fast (bf16).")] = None,
    screen: Annotated[
        int | None, typer.Option(min=1, help="Survivors that autoattack's FAB and Square try first.")
    ] = None,
    eps: Eps = None,
    norm: NormOption = None,
    examples: Examples = None,
    data: Images = None,
    seed: Seed = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images attacked at once.")] = None,
    device: Device = "auto",
    store: Annotated[Path, typer.Option(help="Folder of evaluations; begun ones are gone on with.")] = Path("evals"),
    workers: Annotated[int, typer.Option(min=1, help="Processes at once, on the GPUs in turn.")] = 1,
    witnesses: Annotated[bool, typer.Option("--witnesses", help="Keep the adversarial images.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint, which needs nothing else but the images, or any other network under --norm and --eps."""
    from robustcli import assess
    from robustcli.progress import Screen
    from robustcli.report import result_table, warning_lines
    from robustcli.runs import write_json
    from robustcli.signals import stop_requests

    options = {
        "steps": steps,
        "restarts": restarts,
        "step_size": step_size,
        "loss": loss,
        "version": version,
        "engine": engine,
        "precision": precision,
        "screen": screen,
    }
    wanted = _wanted(
        subject,
        overrides,
        architecture=architecture,
        model=model,
        weights=weights,
        weights_key=weights_key,
        mean=mean,
        std=std,
        data=data,
    )
    request = assess.Request(
        subject=wanted,
        attack=attack,
        options={key: value for key, value in options.items() if value is not None},
        eps=eps,
        norm=norm.value if norm else None,
        examples=examples,
        seed=seed,
        batch_size=batch_size,
        device=device,
        store=store,
        witnesses=witnesses,
        workers=workers,
    )
    try:
        with Screen(is_quiet=quiet) as watcher, stop_requests():
            found = assess.assess(request, watcher)
    except Interrupted as stopped:
        typer.echo(f"{stopped}; the same command goes on from there", err=True)
        raise typer.Exit(3) from None
    if found is None:
        return
    results, folder = found
    if out is not None:
        if out.is_dir():
            raise RobustCliError(f"--out: {out}: is a folder")
        write_json(out, results)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    _console().print(result_table(wanted.text or str(model), results["evaluations"]))
    for line in (*results["notes"], *warning_lines(results["evaluations"])):
        typer.echo(f"note: {line}")
    typer.echo(f"stored in {folder}")


@app.command("diagnose")
def diagnose_network(
    subject: Subject = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, such as data.root=PATH or eps_curve.batch_size=50.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--with", help="A diagnostic; may be repeated. See `robust list diagnostics`.")
    ] = None,
    architecture: Architecture = None,
    model: Model = None,
    weights: WeightsFile = None,
    weights_key: WeightsKey = None,
    mean: Mean = None,
    std: Std = None,
    eps: Eps = None,
    norm: NormOption = None,
    examples: Examples = None,
    data: Images = None,
    seed: Seed = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw curves and surfaces into this .png, .pdf or .svg.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a network what its accuracy does not tell: curves, surfaces, calibration, convergence of attacks."""
    from robustcli.diagnose import Request, diagnose
    from robustcli.picture import draw, require_picture
    from robustcli.runs import write_json

    for option, path in (("--out", out), ("--picture", picture)):
        if path is not None and path.is_dir():
            raise RobustCliError(f"{option}: {path}: is a folder")
    if picture is not None:
        require_picture(picture)
    wanted = _wanted(
        subject,
        overrides,
        architecture=architecture,
        model=model,
        weights=weights,
        weights_key=weights_key,
        mean=mean,
        std=std,
        data=data,
    )
    results = diagnose(
        Request(
            subject=wanted,
            diagnostics=tuple(dict.fromkeys(names or ())),
            eps=eps,
            norm=norm.value if norm else None,
            examples=examples,
            seed=seed,
            device=device,
        ),
        lambda name: None if quiet else typer.echo(f"looking: {name}", err=True),
    )
    title = f"{wanted.text or model}, {results['threat']['norm']} {results['threat']['eps']}"
    if out is not None:
        write_json(out, results)
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        _print_findings(title, results)
    # Last: a result that has nothing to draw is not lost.
    if picture is not None:
        draw(picture, title, {name: result["found"] for name, result in results["diagnostics"].items()})


@app.command("verify")
def verify_results(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or one that `robust eval` stored.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Such as data.root=PATH.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="The weights, if they are not where they were.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:i.")] = "auto",
) -> None:
    """Recompute stored accuracies from weights, images and kept adversarial images, without attacking."""
    from robustcli.verify import verify_folder

    findings = verify_folder(folder, overrides or (), checkpoint, device)
    problems = [f"{finding.key}: {problem}" for finding in findings for problem in finding.problems]
    if problems:
        lines = "\n  ".join(problems)
        raise RobustCliError(f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n  {lines}")
    for finding in findings:
        typer.echo(f"{finding.key}: verified: {finding.checked}")


@app.command("compare")
def compare_results(
    a: Annotated[Path, typer.Argument(help="A run's folder or results.json, or a file of `robust eval --out`.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    key: Annotated[
        list[str] | None, typer.Option(help="An evaluation's name; may be repeated. All that both have if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two networks image by image, and say whether a difference between them can be claimed."""
    from robustcli.compare import compare, comparison_table, conditions

    pairs = compare(a, b, key or ())
    if as_json:
        comparisons = {name: pair.to_json() for name, pair in pairs.items()}
        typer.echo(json.dumps({"a": str(a), "b": str(b), "comparisons": comparisons}, indent=2))
        return
    typer.echo(f"A: {a}\nB: {b}")
    _console().print(comparison_table(pairs))
    for line in conditions(pairs):
        typer.echo(f"note: {line}")
    for name, pair in pairs.items():
        typer.echo(f"{name}: {pair.claim}")


@app.command("list")
def list_members(
    family: Annotated[str | None, typer.Argument(help=f"experiments, {', '.join(FAMILIES)}.")] = None,
) -> None:
    """List what specs may name, with the first line of each description."""
    if family is not None and family not in (*FAMILIES, "experiments"):
        raise RobustCliError(f"there is no list of '{family}'{suggest(family, (*FAMILIES, 'experiments'))}")
    console = _console()
    for name in (*FAMILIES, "experiments") if family is None else (family,):
        if name == "experiments":
            rows = [(known, experiments.summary(known)) for known in experiments.names()]
        else:
            rows = [(member.name, member.summary) for member in catalog(name).values()]
        table = Table(title=name, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for row in rows:
            table.add_row(*row)
        console.print(table)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A member of any registry, or a shipped experiment.")]) -> None:
    """Describe a member: its documentation, every parameter with its default, and where its code is."""
    members = [catalog(family)[name] for family in FAMILIES if name in catalog(family)]
    for member in members:
        _show_member(member)
    if members:
        return
    if name in experiments.names() or "/" in name:
        typer.echo(experiments.find(name).read_text(encoding="utf-8"), nl=False)
        return
    known = [*(known for family in FAMILIES for known in catalog(family)), *experiments.names()]
    raise RobustCliError(f"nothing is called '{name}'{suggest(name, known).partition(' (known')[0]}; see `robust list`")


@app.command()
def validate(
    specs: Annotated[list[str] | None, typer.Argument(help="Files, or names of shipped specs.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of specs, for editors.")] = False,
) -> None:
    """Check specs without running anything; every problem is shown with its line."""
    if schema:
        from robustcli.schema import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if not specs:
        raise RobustCliError("nothing to check; name a spec, or ask for --schema")
    failures = []
    for name in specs:
        try:
            spec = ExperimentSpec.read(experiments.find(name))
        except RobustCliError as error:
            failures.append(str(error))
            continue
        typer.echo(f"{name}: valid, digest {spec.digest}")
        for warning in spec.warnings():
            typer.echo(f"  warning: {warning}")
    if failures:
        raise RobustCliError("\n".join(failures))


@app.command("cp")
def copy_experiment(
    name: Annotated[str, typer.Argument(help="A shipped experiment.")],
    target: Annotated[Path, typer.Argument(help="The new file.")],
) -> None:
    """Copy a shipped spec, to change it."""
    source = experiments.find(name)
    if target.exists():
        raise RobustCliError(f"{target}: exists already; nothing is overwritten")
    if not target.parent.is_dir():
        raise RobustCliError(f"{target}: there is no folder {target.parent}")
    shutil.copyfile(source, target)
    typer.echo(f"{target}: copied from {name}")


@app.command("runs")
def list_runs(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List all runs with their status and results."""
    from robustcli.report import run_rows, run_table

    rows = run_rows(runs)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        _console().print(run_table(rows))
    else:
        typer.echo(f"no runs in {runs}")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    into: Annotated[Path | None, typer.Option(help="Replace the block <!-- results --> of this file.")] = None,
) -> None:
    """Print a Markdown table of finished runs, or put it into a file."""
    from robustcli.report import markdown, replace_block
    from robustcli.runs import RunFolder

    found = [RunFolder(path.parent) for folder in folders for path in sorted(folder.rglob("results.json"))]
    if not found:
        raise RobustCliError(f"no results.json below {', '.join(map(str, folders))}")
    table = markdown(found)
    if into is None:
        typer.echo(table, nl=False)
        return
    if not into.is_file():
        raise RobustCliError(f"{into}: no such file")
    text = into.read_text(encoding="utf-8")
    changed = replace_block(text, "results", table)
    if not re.search("<!-- results -->.*<!-- /results -->", text, re.DOTALL):
        raise RobustCliError(f"{into}: has no block between <!-- results --> and <!-- /results -->")
    into.write_text(changed, encoding="utf-8")


def _wanted(subject: str | None, overrides: list[str] | None, **named: str | None) -> "Wanted":
    from robustcli.naming import Wanted

    words = [word for word in (subject, *(overrides or ())) if word is not None]
    # With --model there is no other subject, and the first word is an override already.
    text = words.pop(0) if words and (named["model"] is None or "=" not in words[0]) else None
    return Wanted(text=text, overrides=tuple(words), **named)


def _read(name: str, overrides: list[str] | None) -> ExperimentSpec:
    spec = ExperimentSpec.read(experiments.find(name), overrides or ())
    for warning in spec.warnings():
        typer.echo(f"warning: {warning}", err=True)
    return spec


def _run(spec: ExperimentSpec, runs: Path, quiet: bool, *, resume: bool) -> dict[str, Any]:
    from robustcli.progress import Screen
    from robustcli.report import result_table, warning_lines
    from robustcli.runner import run_experiment
    from robustcli.runs import read_json

    with Screen(is_quiet=quiet) as screen:
        folder = run_experiment(spec, runs, screen, resume=resume)
    results: dict[str, Any] = read_json(folder.results)
    title = f"{spec.name}, seed {spec.seed}: {results['status']}"
    _console().print(result_table(title, results["evaluations"]))
    for line in warning_lines(results["evaluations"]):
        typer.echo(f"note: {line}")
    typer.echo(f"stored in {folder.path}")
    return results


def _print_findings(title: str, results: dict[str, Any]) -> None:
    from robustcli.findings import finding_parts

    console = _console()
    typer.echo(f"{title}, {results['examples']} images")
    for name, result in results["diagnostics"].items():
        for part, shown in finding_parts(result["found"]):
            console.print(f"[bold]{name}[/]{f': {part}' if part else ''}", highlight=False)
            console.print(shown, highlight=False)
    for line in results["notes"]:
        typer.echo(f"note: {line}")
    for name, result in results["diagnostics"].items():
        for warning in result["warnings"]:
            typer.echo(f"note: {name}: {warning}")


def _show_member(member: Member) -> None:
    console = _console()
    console.print(f"[bold]{member.name}[/] ({member.family})", highlight=False)
    console.print(member.doc.partition("\nArgs:")[0].rstrip(), highlight=False, markup=False)
    if "Reference:" in member.doc:
        console.print("\nReference:" + member.doc.rpartition("Reference:")[2], highlight=False, markup=False)
    table = Table("parameter", "default", "meaning", title="", box=None, padding=(0, 2))
    for parameter in member.parameters.values():
        default = "(required)" if parameter.default is REQUIRED else _plain(parameter.default)
        table.add_row(parameter.name, default, parameter.doc)
    for parameter in member.replaceable.values():
        table.add_row(parameter.name, "(as published)", parameter.doc)
    console.print(table)
    console.print(f"code: {member.path}:{member.line}\n", highlight=False, soft_wrap=True)


def _plain(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _console() -> Console:
    # Wide when not a terminal, so that tables in logs and pipes are not cut.
    console = Console()
    return console if console.is_terminal else Console(width=160)
