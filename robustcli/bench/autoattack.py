"""The story of `robust bench autoattack`: our engine beside the package of AutoAttack's authors, in one process."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustcli.attacks.crafting import crafting
from robustcli.bench.machine import machine
from robustcli.bench.rounds import Spread, Stopwatch, speed
from robustcli.bench.subjects import BenchSubject
from robustcli.build import describe_device
from robustcli.evaluation import settled
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.autoattack_package import Package
from robustcli.evidence import Evidence, gather
from robustcli.isolation import passes_counted
from robustcli.runs import SCHEMA, provenance

PACKAGE, NATIVE = "package, as it comes", "native"
_PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
_MOVES, _QUERIES = 100, 5000


@dataclass
class Row:
    """What one way of evaluating came to.

    Args:
        name: of the way.
        seconds: of every round.
        survives: (n,) who is left.
        passes: forwards and gradients per image that survives and per image that an attack breaks; of the package
            all in one.
    """

    name: str
    seconds: list[float]
    survives: Tensor
    passes: dict[str, tuple[float, float]]


def bench_autoattack(subject: BenchSubject, rounds: int, screen: int | None) -> dict[str, Any]:
    """Standard AutoAttack by the package, by the native engine, and by it in haste, in turn in every round.

    Args:
        screen: also measure with this many survivors sampled.
    """
    ways: dict[str, Callable[[], Tensor]] = {PACKAGE: lambda: _package(subject)}
    evaluators = {NATIVE: AutoAttack(), f"{NATIVE}, fast": AutoAttack(precision="fast")}
    if screen is not None:
        evaluators[f"{NATIVE}, fast, screen {screen}"] = AutoAttack(precision="fast", screen=screen)
    for name, evaluator in evaluators.items():
        ways[name] = partial(_survivors, subject, evaluator)
    watch = Stopwatch(subject.x.device)
    with settled(subject.network, subject.x.device.type):
        passes = {name: _passes_of(subject, evaluator) for name, evaluator in evaluators.items()}
        passes[PACKAGE] = _passes_of_package(subject)
        rows = {name: Row(name, [], torch.empty(0), passes[name]) for name in ways}
        names = list(ways)
        for _ in range(rounds):
            for name in names:
                begun = watch.now()
                rows[name].survives = ways[name]()
                rows[name].seconds.append(watch.now() - begun)
            names.reverse()
    return {
        "schema": SCHEMA,
        "provenance": provenance(describe_device(subject.x.device)),
        "machine": machine(),
        "subject": subject.name,
        "threat": str(subject.threat),
        "images": len(subject.x),
        "clean": float((_native(subject, AutoAttack(), attacked=False).survives).double().mean()),
        "clock": watch.name,
        "rounds": rounds,
        "least_passes_per_survivor": list(least_passes(subject.threat.norm)),
        "rows": [_plain(row, rows[PACKAGE]) for row in rows.values()],
    }


def least_passes(norm: str) -> tuple[int, int]:
    """Forwards and gradients of standard AutoAttack on one survivor, if no pass were made that the outcome needs not.

    A run of APGD of so many moves takes as many gradients and one forward more; one of FAB that never comes to the
    wrong side as many forwards as gradients; Square its start and its queries. The clean image takes a forward.
    """
    runs = 5 + 5 if norm == "l1" else 1 + 9
    fab = 9 * _MOVES
    return 1 + runs * (_MOVES + 1) + fab + _QUERIES + 1, runs * _MOVES + fab


def _plain(row: Row, package: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "seconds": asdict(Spread.of(row.seconds)),
        "speed": None if row is package else asdict(speed(row.seconds, package.seconds)),
        "robust": int(row.survives.sum()),
        "broken_alone": (package.survives & ~row.survives).nonzero().flatten().tolist(),
        "broken_by_the_package_alone": (row.survives & ~package.survives).nonzero().flatten().tolist(),
        "passes": row.passes,
    }


def _native(subject: BenchSubject, evaluator: AutoAttack, *, attacked: bool = True) -> Evidence:
    threat = subject.threat if attacked else subject.threat.scaled(0)
    return gather(evaluator, subject.network, subject.x, subject.y, threat, subject.noise())


def _survivors(subject: BenchSubject, evaluator: AutoAttack) -> Tensor:
    return _native(subject, evaluator).survives


def _package(subject: BenchSubject) -> Tensor:
    """As its users call it: on all images, with a network whose weights want gradients, in the plain format."""
    network = subject.network.requires_grad_(True)
    package = Package(version="standard", attacks=_PARTS, batch_size=250)
    points = package(network, subject.x, subject.y, subject.threat, subject.noise())
    network.requires_grad_(False)
    with torch.no_grad():
        logits: Tensor = network(points)
    return (logits.argmax(1) == subject.y).cpu()


def _passes_of(subject: BenchSubject, evaluator: AutoAttack) -> dict[str, tuple[float, float]]:
    """By attacking all, and then those alone that broke: what is left over was spent on survivors."""
    whole = _native(subject, evaluator)
    broken = (whole.broken_by >= 0).nonzero().flatten().to(subject.x.device)
    alive = int(whole.survives.sum())
    spent = (0, 0)
    if len(broken):
        rng = subject.noise().rows(broken)
        alone = gather(evaluator, subject.network, subject.x[broken], subject.y[broken], subject.threat, rng)
        spent = (alone.forwards, alone.gradients)
    wrong = len(subject.x) - alive - len(broken)
    return {
        "survivor": (
            (whole.forwards - wrong - spent[0]) / max(alive, 1),
            (whole.gradients - spent[1]) / max(alive, 1),
        ),
        "broken": (spent[0] / max(len(broken), 1), spent[1] / max(len(broken), 1)),
    }


def _passes_of_package(subject: BenchSubject) -> dict[str, tuple[float, float]]:
    """Of all images that are right when clean, together: the package does not tell them apart."""
    with crafting(subject.network, "eval"), passes_counted(subject.network) as passes:
        survives = _package(subject)
    del survives
    right = int(_native(subject, AutoAttack(), attacked=False).survives.sum())
    return {"right when clean": (passes.forwards / max(right, 1), passes.gradients / max(right, 1))}
