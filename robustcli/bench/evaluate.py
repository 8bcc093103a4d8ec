"""`robust bench eval`: speed of PGD-20 with early exit, compared with its passes and with other packages."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustcli.attacks.pgd import Pgd
from robustcli.bench.baselines import find_package, foolbox_attack, torchattacks_attack
from robustcli.bench.results.evaluation import EvaluationBench, EvaluationPasses, EvaluationRow
from robustcli.bench.subjects import BenchSubject
from robustcli.evaluation.passes import count_passes
from robustcli.evaluation.restore import restored_generators, restored_model
from robustcli.evaluators import chunks
from robustcli.evaluators.attack import Attacked
from robustcli.measuring.counters import peak_of_run
from robustcli.measuring.passes import CONVOLUTIONS, forward_alone, input_gradient_alone, passes_by_kind
from robustcli.measuring.timing import AGAIN, ALONE, Stopwatch, Timed, Timings, measure
from robustcli.runtime.precision import full_precision

STEPS = 20
LEAVING, WHOLE = "ours, images leave", "ours, to the last step"
TORCHATTACKS, FOOLBOX = "torchattacks, as it comes", "foolbox, as it comes"
# Batch size of all implementations.
BATCH = 250


@dataclass
class _Way:
    """One implementation.

    Args:
        run: runs it and returns the mask of the surviving images, or None if it only runs passes.
    """

    run: Callable[[], Tensor | None]
    survives: Tensor | None = None

    def __call__(self) -> None:
        self.survives = self.run()


def bench_evaluation(subject: BenchSubject, rounds: int) -> EvaluationBench:
    """Time PGD-20 on all images with every implementation, in turn in every round.

    A step is a quarter of the radius. The limit is one input gradient per step and one forward pass, on all images.
    """
    watch = Stopwatch(subject.x.device)
    missing: list[str] = []
    # Ours and the limit run in single precision, other packages in the default precision of torch.
    with restored_model(subject.network), restored_generators(subject.x.device):
        subject.network.requires_grad_(False)
        ways = {name: _Way(run) for name, run in _ways(subject, missing).items()}
        passes = {name: _counted(subject, way) for name, way in ways.items()}
        peaks = {name: peak_of_run(way.run, subject.x.device) for name, way in ways.items()}
        samples = {name: Timed(way, watch) for name, way in ways.items()}
        timings = Timings(measure(samples, rounds), ours=LEAVING)
    rows = [
        EvaluationRow(
            name=name,
            seconds=timings.spread(name),
            images_per_second=len(subject.x) / timings.spread(name).median,
            ratio=timings.ratio(name),
            verdict=timings.verdict(name),
            over_limit=timings.over(ALONE, name),
            beside_torchattacks=timings.beside(TORCHATTACKS, name),
            robust=None if way.survives is None else int(way.survives.sum()),
            passes=passes[name],
            peak_bytes=peaks[name],
        )
        for name, way in ways.items()
    ]
    return EvaluationBench(
        **subject.header([name.partition(",")[0] for name in (TORCHATTACKS, FOOLBOX) if name in ways]),
        attack=f"pgd-{STEPS}",
        clock=watch.name,
        rounds=rounds,
        notes=missing,
        rows=rows,
    )


def _ways(subject: BenchSubject, missing: list[str]) -> dict[str, Callable[[], Tensor | None]]:
    """Return the implementations by name, ours first."""

    def ours(keep: str) -> Callable[[], Tensor]:
        evaluator = Attacked(attack=Pgd(steps=STEPS, keep="fooled" if keep == "fooled" else "last"), batch_size=BATCH)
        return lambda: subject.gather(evaluator).survives

    ways: dict[str, Callable[[], Tensor | None]] = {
        LEAVING: ours("fooled"),
        AGAIN: ours("fooled"),
        WHOLE: ours("last"),
        ALONE: lambda: _passes_alone(subject),
    }
    threat = subject.threat
    if threat.norm == "l1":
        missing.append("torchattacks and foolbox are omitted: they have no such PGD for l1")
        return ways
    torchattacks, foolbox = (find_package(name, missing) for name in ("torchattacks", "foolbox"))
    if torchattacks is not None:
        attack = torchattacks_attack(torchattacks, subject.network, threat.norm, threat.radius, STEPS)
        ways[TORCHATTACKS] = lambda: _as_users_do(subject, attack)
    if foolbox is not None:
        other = foolbox_attack(foolbox, subject.network, threat.norm, threat.radius, STEPS)
        ways[FOOLBOX] = lambda: _as_users_do(subject, other)
    return ways


def _as_users_do(subject: BenchSubject, attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Attack all images as users of a package do, with weights that need gradients; then one forward pass."""
    network: nn.Module = subject.network.requires_grad_(True)
    survives = []
    for part in chunks(len(subject.x), BATCH):
        points = attack(subject.x[part], subject.y[part])
        with torch.no_grad():
            survives.append(network(points).argmax(1) == subject.y[part])
    network.requires_grad_(False)
    return torch.cat(survives).cpu()


def _passes_alone(subject: BenchSubject) -> None:
    with full_precision(subject.x.device.type):
        for part in chunks(len(subject.x), BATCH):
            x, y = subject.x[part], subject.y[part]
            for _ in range(STEPS):
                input_gradient_alone(subject.network, x, y)
            forward_alone(subject.network, x)


def _counted(subject: BenchSubject, way: _Way) -> EvaluationPasses:
    """Return the passes per image; gradients of the weights are counted at a convolution, if there is one."""
    images = len(subject.x)
    has_convolution = any(isinstance(module, CONVOLUTIONS) for module in subject.network.modules())
    with ExitStack() as stack:
        passes = stack.enter_context(count_passes(subject.network))
        kinds = stack.enter_context(passes_by_kind(subject.network)) if has_convolution else None
        way()
    return EvaluationPasses(
        forwards=passes.forwards / images,
        gradients=passes.gradients / images,
        weight_gradients=kinds.weight_gradients / images if kinds else None,
    )
