"""`robust eval`. torch is imported inside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustcli.cli import options, panels
from robustcli.cli.cluster import Cpus, EngineName, Gpus, Partition, TimeLimit, engine_of
from robustcli.cli.options import print_json
from robustcli.cli.table_of_models import print_table
from robustcli.cli.verdicts import require
from robustcli.errors import RobustCliError

if TYPE_CHECKING:
    from robustcli.store.results import EvalResults, ModelRequest
    from robustcli.workflows.engines import Engine, Needs
    from robustcli.workflows.evaluate import Request

app = typer.Typer()

# Examples in the picture of --plot.
_DRAWN = 8


@app.command("eval", rich_help_panel=panels.EVALUATION)
def evaluate_network(
    context: typer.Context,
    subject: options.Subject = None,
    overrides: options.Models = None,
    architecture: options.Architecture = None,
    model: options.Model = None,
    weights: options.WeightsFile = None,
    weights_key: options.WeightsKey = None,
    mean: options.Mean = None,
    std: options.Std = None,
    preprocess: options.Preprocess = None,
    attack: options.Attack = None,
    steps: options.Steps = None,
    restarts: options.Restarts = None,
    step_size: options.StepSize = None,
    loss: options.Loss = None,
    source: options.Source = None,
    attack_from: options.AttackFrom = None,
    transfer: options.Transfer = False,
    budget: options.Passes = None,
    version: options.Version = None,
    attacks: options.Attacks = None,
    implementation: options.Implementation = None,
    precision: options.SearchPrecision = None,
    is_compiled: options.Compile = False,
    sample_first: options.SampleFirst = None,
    eps: options.Eps = None,
    norm: options.NormOption = None,
    examples: options.Examples = None,
    data: options.Images = None,
    preset: options.Preset = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    store: options.Store = Path("evals"),
    workers: options.Workers = 1,
    engine: EngineName = "local",
    partition: Partition = None,
    time: TimeLimit = None,
    gpus: Gpus = None,
    cpus: Cpus = None,
    fresh: options.Fresh = False,
    save_examples: options.SaveExamples = False,
    plot: options.Plot = False,
    fail_on: options.FailOn = None,
    wide: options.Wide = False,
    out: options.Out = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate a network: clean accuracy and accuracy under attack.

    A checkpoint of `robust train` needs only its images. For any other network, give --data, --norm and --eps.

    With --engine ray or slurm, --workers tasks or jobs take images from a queue in the folder of results, which must be
    on storage that all machines share.
    """
    from robustcli.store.results import write_results

    # Most options are read from the context by their names.
    asked = _asked(context.params)
    if asked.others or len(asked.attacks) > 1 or transfer:
        _require_one_model({"--out": out is not None, "--plot": plot, f"--engine {asked.engine_name}": asked.engine})
        models = [asked.request.subject, *asked.others]
        cells = print_table(asked.request, models, asked.attacks, transfer=transfer, as_json=as_json, is_wide=wide)
        found = [(f"{cell.model}, {key}", one) for cell in cells for key, one in cell.results.evaluations.items()]
        require(fail_on, found)
        return
    evaluated = _evaluated(asked)
    if evaluated is None:
        return
    results, folder = evaluated
    if out is not None:
        write_results(out, results)
    if as_json:
        print_json(results.to_json())
    else:
        options.print_results(asked.request.subject.text or str(model), results, is_wide=wide)
        typer.echo(f"stored in {folder}")
    if plot:
        _plot(folder)
    require(fail_on, results.evaluations.items())


@dataclass(frozen=True)
class _Asked:
    """The options of `robust eval`, checked.

    Args:
        request: request for the first model.
        others: the other models.
        attacks: names of --attack; none means the evaluations of the spec.
        engine_name: name of --engine.
        engine: what starts the tasks, with their needs; None is this process.
    """

    request: "Request"
    others: "list[ModelRequest]"
    attacks: list[str]
    engine_name: str
    engine: "tuple[Engine, Needs] | None"


def _asked(options: Mapping[str, Any]) -> _Asked:
    """Return the request of `robust eval` from its options."""
    from robustcli.workflows.budget import Budget
    from robustcli.workflows.evaluate import Request

    given = _without_shorthand(options)
    wanted, *others = models_of(given)
    attack, plain = given["attack"], ("seed", "batch_size", "device", "store", "workers", "fresh", "quiet")
    request = Request(
        subject=wanted,
        attack=attack,
        options={key: value for key, value in _settings_of(given).items() if value is not None},
        eps=given["eps"],
        norm=given["norm"],
        examples=given["examples"],
        save_examples=given["save_examples"] or given["plot"],
        budget=None if given["budget"] is None else Budget.parse(given["budget"]),
        **{name: given[name] for name in plain},
    )
    names = [] if attack is None else [name.strip() for name in attack.split(",")]
    engine = engine_of(*(given[name] for name in ("engine", "partition", "time", "gpus", "cpus")))
    return _Asked(request, others, names, given["engine"], engine)


def _without_shorthand(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options after replacing former words, --preset, --precision auto and --attack-from."""
    given = dict(options)
    if given["engine"] in ("native", "reference"):
        typer.echo(f"warning: --engine {given['engine']}: now --implementation {given['engine']}", err=True)
        given |= {"implementation": given["engine"], "engine": "local"}
    if given["precision"] == "auto":
        given["precision"] = _search_precision(given["device"], given["engine"], quiet=given["quiet"])
    if given["preset"] is not None:
        given |= _with_preset(given["preset"], given)
    if given["attack_from"] is not None:
        if given["attack"] is not None:
            raise RobustCliError("--attack-from and --attack cannot be combined; remove one")
        given["attack"] = "from_file"
    return given


def _settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the attack or evaluator; None means not given."""
    names = ("steps", "restarts", "step_size", "loss", "source", "version", "precision", "sample_first")
    return {
        **{name: given[name] for name in names},
        "attacks": None if given["attacks"] is None else [part.strip() for part in given["attacks"].split(",")],
        "engine": given["implementation"],
        "compile": given["is_compiled"] or None,
        "path": None if given["attack_from"] is None else str(given["attack_from"]),
    }


def _require_one_model(options: Mapping[str, Any]) -> None:
    """Raise for options that do not apply to a table of several models or attacks."""
    reasons = {
        "--out": "holds the results of one model and --attack; others are stored in --store",
        "--plot": "draws the examples of one model; `robust show-examples` draws stored ones",
    }
    for option, value in options.items():
        if value:
            reason = reasons.get(option, "only for one model and one --attack; run one command for each")
            raise RobustCliError(f"{option}: {reason}")


def _evaluated(asked: _Asked) -> "tuple[EvalResults, Path] | None":
    """Evaluate one model; None in every process of torchrun but the first."""
    from robustcli.cli.progress import Screen
    from robustcli.runtime.signals import stop_requests
    from robustcli.workflows.evaluate import assess
    from robustcli.workflows.evaluate_on import assess_on

    tell = partial(typer.echo, err=True)
    with Screen(is_quiet=asked.request.quiet) as watcher, stop_requests():
        if asked.engine is None:
            return assess(asked.request, watcher, tell)
        return assess_on(*asked.engine, asked.request, Screen, tell)


def _with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a preset sets; those that the user gives stay, with a note if they differ."""
    from robustcli.specs.presets import read_preset

    if given["attack_from"] is not None:
        raise RobustCliError("--attack-from and --preset cannot be combined; remove one")
    chosen = read_preset(name)
    kept = {key: given[key] for key in chosen if given[key] is not None}
    for key, value in kept.items():
        if str(value) != str(chosen[key]):
            typer.echo(f"note: --{key} {value} replaces {chosen[key]} of the preset {name}", err=True)
    return {**chosen, **kept}


def _plot(folder: Path) -> None:
    """Draw some of the stored adversarial examples of an evaluation."""
    from robustcli.reports.images import save_grid
    from robustcli.workflows.examples import stored_examples

    found = stored_examples(folder, limit=_DRAWN)
    if not len(found.indices):
        typer.echo(f"{found.key}: no image was broken, so there is nothing to draw")
        return
    save_grid(folder / "examples.png", found)
    typer.echo(f"wrote {folder / 'examples.png'}: image, difference and adversarial example of {len(found.x)} images")


def _search_precision(device: str, engine: str, *, quiet: bool) -> str:
    """Return the precision that --precision auto means on a device."""
    from robustcli.runtime.device import choose_device, describe_device
    from robustcli.runtime.precision import is_native

    if engine != "local":
        raise RobustCliError(f"--precision auto: --engine {engine} runs on other machines; write fp32 or fast")
    chosen = choose_device(device)
    found = "fast" if is_native("bf16", chosen) else "fp32"
    if not quiet:
        typer.echo(f"precision: {found} (auto, {describe_device(chosen)})", err=True)
    return found


def models_of(given: Mapping[str, Any]) -> "list[ModelRequest]":
    """Return the models named by arguments and options; all share the options."""
    from robustcli.models.schemes import matching
    from robustcli.store.results import ModelRequest

    words = [word for word in (given["subject"], *(given["overrides"] or ())) if word is not None]
    # With --model the first argument is an override.
    texts = [words.pop(0)] if words and (given["model"] is None or "=" not in words[0]) else []
    texts += [word for word in words if "=" not in word]
    texts = [name for text in texts for name in matching(text)]
    overrides = tuple(word for word in words if "=" in word)
    names = ("architecture", "model", "weights", "weights_key", "mean", "std", "data", "preprocess")
    return [
        ModelRequest(text=text, overrides=overrides, **{name: given[name] for name in names})
        for text in texts or [None]
    ]
