"""Architecture search: halves of the data, two stages, the common direction, and the derived architecture."""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_steps import LINF, batch, labeled, progress
from small_training import Recorder, loop_of, small_data, training_of
from torch import Tensor, nn

from robustcli.architectures import ImageShape
from robustcli.architectures.cells import Cell, Edge
from robustcli.architectures.dsara import dsara as space
from robustcli.architectures.layers import Layers
from robustcli.architectures.operations import OPERATIONS, POOLS
from robustcli.architectures.supernet import KINDS, Mixture, Supernet, strongest
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, drawn_from, images, search_net
from robustcli.data.datasets import Source, TensorSplit
from robustcli.data.splits import Data, prepare
from robustcli.data.targets import Labels
from robustcli.defenses import Metrics
from robustcli.defenses.dsara import SearchLoss, dsara, natural_share, unrolled_gradient
from robustcli.defenses.min_max import MinMaxStep
from robustcli.errors import RobustCliError
from robustcli.optimization.progress import Progress
from robustcli.registry.catalog import describe
from robustcli.specs.derivation import derived_spec
from robustcli.specs.settings import TrainSettings
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel
from robustcli.training.loop import fit
from robustcli.workflows.train import run_experiment

CPU = torch.device("cpu")
LATE = Progress(25, steps_per_epoch=3, epochs=10)


def supernet_of(model: nn.Module) -> Supernet:
    return next(module for module in model.modules() if isinstance(module, Supernet))


# The common direction.


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_common_direction_is_the_shortest_vector_between_the_gradients(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, 4, generator=generator, dtype=torch.float64) + 0.5
    other = scale * other
    shares = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    lengths = (shares[:, None] * one + (1 - shares[:, None]) * other).norm(dim=1)
    share = natural_share(one, other)
    assert float(share) == pytest.approx(float(shares[lengths.argmin()]), abs=1e-4)
    direction = share * one + (1 - share) * other
    # A step against it lowers both losses.
    assert float(direction @ one) >= float(direction @ direction) - 1e-9
    assert float(direction @ other) >= float(direction @ direction) - 1e-9


def test_shares_of_plain_cases() -> None:
    one, other = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert float(natural_share(one, other)) == pytest.approx(16 / 25)
    assert float(natural_share(one, one)) == 0
    assert float(natural_share(one, 2 * one)) == 1
    assert float(natural_share(2 * one, one)) == 0
    assert float(natural_share(one, -one)) == 0.5


# The supernet.


def test_a_mixture_is_the_sum_of_its_operations_in_shares() -> None:
    torch.manual_seed(0)
    for stride in (1, 2):
        mixture = Mixture(4, stride, Layers(affine=False)).eval()
        mixture.shares = torch.linspace(0.1, 0.7, 7)
        x = torch.randn(2, 4, 8, 8)
        expected = sum(0.1 * (i + 1) * choice(x) for i, choice in enumerate(mixture.choices.values()))
        torch.testing.assert_close(mixture(x), expected)
        norms = [module for module in mixture.modules() if isinstance(module, nn.BatchNorm2d)]
        assert not any(module.affine for module in norms)


def test_pools_of_a_mixture_have_a_norm() -> None:
    choices = Mixture(4, 1, Layers(affine=False)).choices
    for name in POOLS:
        assert [type(part) for part in choices[name].modules()][2:] == [nn.BatchNorm2d]


def test_every_edge_has_the_shares_of_its_own_row() -> None:
    net = supernet_of(search_net())
    wide = space_of(nodes=3)
    for supernet, edges in ((net, 2), (wide, 2 + 3 + 4)):
        seen: dict[str, list[Tensor]] = {}
        for cell in supernet.network.cells:
            assert isinstance(cell, Cell)
            rows = seen.setdefault(cell.kind, [])
            rows.clear()  # Cells of one kind have the same shares; the last one is looked at.
            for module in cell.modules():
                if isinstance(module, Mixture):
                    module.register_forward_pre_hook(lambda m, _x, rows=rows: rows.append(m.shares))
        supernet(images(2))
        for kind in KINDS:
            expected = supernet.alphas[kind].softmax(1)
            assert expected.shape == (edges, 7)
            assert torch.equal(torch.stack(seen[kind][:edges]), expected)
        assert all(module.shares is None for module in supernet.modules() if isinstance(module, Mixture))


def space_of(**settings: Any) -> Supernet:
    with drawn_from(0):
        net = space(ImageShape(1, 8, 8, 10), **{"width": 2, "cells": 4, "nodes": 2, **settings})
    assert isinstance(net, Supernet)
    return net


def test_a_node_keeps_its_two_strongest_edges() -> None:
    names = list(OPERATIONS)
    shares = torch.full((5, 7), 0.1)
    shares[0, names.index("max")] = 0.3
    shares[1, names.index("dil5")] = 0.2
    # Of three edges: the second is the weakest.
    shares[2, names.index("skip")] = 0.4
    shares[3, names.index("avg")] = 0.2
    shares[4, names.index("sep5")] = 0.9
    assert strongest(shares) == (
        (Edge("max", 0), Edge("dil5", 1)),
        (Edge("skip", 0), Edge("sep5", 2)),
    )


def test_what_is_derived_has_two_edges_for_each_node_and_no_operation_beyond_the_seven() -> None:
    assert set(OPERATIONS) == {"max", "avg", "skip", "sep3", "sep5", "dil3", "dil5"}
    supernet = space_of(nodes=4)
    for alpha in supernet.alphas.values():
        alpha.data = torch.randn(alpha.shape, generator=torch.Generator().manual_seed(4))
    derived = supernet.derived()
    for kind in KINDS:
        assert len(derived[kind]) == 4
        for number, text in enumerate(derived[kind]):
            edges = [edge.split() for edge in text.split(" + ")]
            assert len({source for _, source in edges}) == 2
            assert all(int(source) < 2 + number and name in OPERATIONS for name, source in edges)


def test_a_supernet_without_robust_cells_is_refused() -> None:
    with pytest.raises(RobustCliError, match=r"architecture\.cells: 3"):
        space_of(cells=3)


# The step.


def started(**settings: Any) -> tuple[nn.Module, MinMaxStep]:
    model = search_net(seed=3).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    noise = StreamNoise.on(CPU).reseed(0, "attack", 0)
    step = dsara(steps=2, **settings).start(model, optimizer, noise)
    assert isinstance(step, MinMaxStep)
    return model, step


def alphas_of(model: nn.Module) -> list[Tensor]:
    return [alpha.detach().clone() for alpha in supernet_of(model).alphas.values()]


def weights_of(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for name, value in model.named_parameters() if "alphas" not in name]


def updated(x: Tensor, y: Tensor, at: Progress, **settings: Any) -> tuple[list[Tensor], list[Tensor], Metrics]:
    model, step = started(**settings)
    metrics = step(x, Labels.of(y), LINF, at)
    return alphas_of(model), weights_of(model), metrics


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("at", [progress(), LATE])
@pytest.mark.slow
def test_shares_and_weights_are_trained_on_their_own_halves(at: Progress) -> None:
    x, y = batch()
    before_alphas, before_weights = alphas_of(started()[0]), weights_of(started()[0])
    alphas, weights, _ = updated(x, y, at)
    assert not same(alphas, before_alphas)
    assert not same(weights, before_weights)
    for place, labels_too in ((0, False), (0, True), (1, False), (1, True)):
        other, named = x.clone(), y.clone()
        other[place::2] = 1 - other[place::2]
        if labels_too:
            named[place::2] = (named[place::2] + 1) % 10
        changed = updated(other, named, at)
        if place == 0:
            assert same(changed[0], alphas), "the weights' half moved the shares"
            assert not same(changed[1], weights)
        else:
            assert not same(changed[0], alphas)
            # With fixed shares, their half does not change the weights.
            still, moved = (updated(*at_hand, at, alpha_lr=1e-30) for at_hand in ((x, y), (other, named)))
            assert same(still[0], before_alphas), "something else moved the shares"
            assert same(still[1], moved[1]), "the shares' half moved the weights"


@pytest.mark.parametrize("at", [progress(), LATE])
@pytest.mark.slow
def test_shares_step_along_the_direction_of_their_stage(at: Progress) -> None:
    """Adam's first step without decay is its rate against the sign of the gradient."""
    x, y = batch()
    model, step = started(adversarial_weight=1.0, alpha_lr=0.01, alpha_weight_decay=0.0)
    reference = deepcopy(model)
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]) if m.training else None)
    metrics = step(x, Labels.of(y), LINF, at)
    hook.remove()
    # In train mode: the adversarial and, in the second stage, the clean images of the one half, then the other half.
    assert len(seen) == (2 if at is not LATE else 3)
    x_adv, own = seen[0], list(supernet_of(reference).alphas.values())
    assert len(x_adv) == 4
    assert float((x_adv - x[1::2]).abs().max()) == pytest.approx(LINF.radius, abs=1e-6)
    for alpha in own:
        alpha.requires_grad_(True)

    def gradient(points: Tensor) -> Tensor:
        loss = F.cross_entropy(reference(points), y[1::2])
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, own)])

    direction = gradient(x_adv)
    if at is LATE:
        assert torch.equal(seen[1], x[1::2])
        clean = gradient(x[1::2])
        share = natural_share(clean, direction)
        assert 0 < float(share) < 1
        assert float(metrics["natural_share"]) == pytest.approx(float(share), rel=1e-4)
        direction = share * clean + (1 - share) * direction
    else:
        assert float(metrics["natural_share"]) == 0
    before, after = (torch.cat([part.flatten() for part in alphas_of(net)]) for net in (reference, model))
    sure = direction.abs() > 1e-5
    assert sure.sum() > 30
    torch.testing.assert_close((after - before)[sure], -0.01 * direction[sure].sign(), rtol=1e-2, atol=0)


def test_shares_require_gradients_only_during_their_update() -> None:
    model, step = started()
    alphas = list(supernet_of(model).alphas.values())
    for _ in range(2):
        step(*labeled(), LINF, LATE)
        assert not any(alpha.requires_grad for alpha in alphas)
        assert all(alpha.grad is None for alpha in alphas)


def test_the_skipped_share_is_reported() -> None:
    model, step = started(alpha_lr=1e-30)
    said = step(*labeled(), LINF, progress())
    rows = torch.cat([shares[:, 2] for shares in supernet_of(model).shares().values()])
    assert list(OPERATIONS)[2] == "skip"
    assert float(said["skip_share"]) == pytest.approx(float(rows.mean()))
    assert set(said) == {"loss", "alpha_loss", "natural_share", "skip_share"}


def test_a_network_without_shares_is_refused() -> None:
    model = conv_net()
    with pytest.raises(RobustCliError, match=r"architecture: \{name: dsara"):
        dsara().start(model, torch.optim.SGD(model.parameters(), lr=0.1), StreamNoise.on(CPU))


# The step that looks ahead.


def quadratic(seed: int) -> tuple[Any, Any, list[Tensor], list[Tensor]]:
    """L and T of two alphas and two weights, in float64: squared errors of (a1 * w1) x + a2^2 w2."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    alphas, weights = [drawn(3).requires_grad_(), drawn(1).requires_grad_()], [drawn(3).requires_grad_(), drawn(1)]
    weights[1].requires_grad_()
    (x, y), (x_train, y_train) = ((drawn(5, 3), drawn(5)) for _ in range(2))

    def error(points: Tensor, targets: Tensor, w: list[Tensor]) -> Tensor:
        return (points @ (alphas[0] * w[0]) + alphas[1].square() * w[1] - targets).square().mean()

    return partial(error, x, y), partial(error, x_train, y_train), alphas, weights


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.0, 0.03, 0.3])
def test_the_gradient_ahead_is_that_of_an_unrolled_step(seed: int, rate: float) -> None:
    """T is quadratic in the weights, so its derivative in alpha is a parabola and the difference is exact."""
    loss, train, alphas, weights = quadratic(seed)
    kept = [weight.detach().clone() for weight in weights]
    steps = torch.autograd.grad(train(weights), weights, create_graph=True)
    ahead = [weight - rate * step for weight, step in zip(weights, steps, strict=True)]
    expected = torch.cat(torch.autograd.grad(loss(ahead), alphas))
    value, found = unrolled_gradient(
        lambda: loss(weights), lambda: train(weights), alphas, weights, [step.detach() for step in steps], rate
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert value.item() == pytest.approx(loss(ahead).item())
    for weight, before in zip(weights, kept, strict=True):
        assert torch.equal(weight, before)
    if rate:
        here = torch.cat(torch.autograd.grad(loss(weights), alphas))
        assert not torch.allclose(found, here, rtol=1e-2)


def test_the_gradient_ahead_of_a_curved_loss_is_near_that_of_an_unrolled_step() -> None:
    """Cross-entropy of a small network of tanh units, whose difference is not exact."""
    generator = torch.Generator().manual_seed(0)
    x, weights = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64), []
    alphas = [torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()]
    for shape in ((5, 4), (3, 5)):
        weights.append(torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_())
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(half: int, w: list[Tensor]) -> Tensor:
        return F.cross_entropy((alphas[0].softmax(0) * (x[half] @ w[0].T).tanh()) @ w[1].T, y)

    steps = torch.autograd.grad(loss(0, weights), weights, create_graph=True)
    stepped = [weight - 0.5 * step for weight, step in zip(weights, steps, strict=True)]
    (expected,) = torch.autograd.grad(loss(1, stepped), alphas)
    _, found = unrolled_gradient(
        lambda: loss(1, weights), lambda: loss(0, weights), alphas, weights, [step.detach() for step in steps], 0.5
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("at", "passes"), [(progress(), 4 + 1), (LATE, 7 + 1)])
@pytest.mark.slow
def test_the_second_order_moves_the_shares_elsewhere_and_the_weights_alike(at: Progress, passes: int) -> None:
    x, y = batch()
    # First with fixed shares, then with trained ones.
    still = [updated(x, y, at, order=order, alpha_lr=1e-30) for order in ("first", "second")]
    for one, other in zip(still[0][1], still[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    first, second = (updated(x, y, at, order=order, alpha_lr=0.01) for order in ("first", "second"))
    assert not same(first[0], second[0])
    assert set(first[2]) == set(second[2])
    model, step = started(order="second")
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda m, inputs: sizes.append(len(inputs[0])) if m.training else None)
    step(x, Labels.of(y), LINF, at)
    assert sizes == [4] * passes
    tracked = {int(module.num_batches_tracked) for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert tracked == {1}, "weights that were tried left their statistics"


def test_the_second_order_uses_the_rate_of_the_weights() -> None:
    x, y = batch()
    found = []
    for rate in (0.0, 0.1):
        model, step = started(order="second", alpha_lr=0.01, alpha_weight_decay=0.0)
        step.optimizer.param_groups[0]["lr"] = rate
        step(x, Labels.of(y), LINF, progress())
        found.append(alphas_of(model))
    assert not same(*found)
    # Without a step there is no second order.
    expected = updated(x, y, progress(), alpha_lr=0.01, alpha_weight_decay=0.0)[0]
    for one, other in zip(found[0], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


# The halves of the data.


def data_of(count: int) -> Data:
    """Images of one pixel whose value is their number."""
    split = TensorSplit(torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1) / 255, torch.zeros(count).long())
    source = Source(split, split, ["one"], mean=(0.5,), std=(0.25,))
    return prepare(source, val_size=0, train_size=None, device=CPU, workers=0)


@pytest.mark.parametrize("count", [2, 3, 8, 21, 32, 33])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_batch_holds_fixed_halves_in_turn(count: int, drop_last: bool) -> None:
    size = 2 if drop_last else 6
    data = data_of(count)
    halves: tuple[set[int], set[int]] = (set(), set())
    orders = []
    for epoch in range(5):
        order = data.epoch(torch.Generator().manual_seed(epoch), size, drop_last, split_in_two=True)
        assert -(-len(order) // size) == data.steps_per_epoch(size, drop_last)
        assert len(order) % 2 == 0
        for place, half in enumerate(halves):
            half.update(order[place::2].tolist())
        orders.append(order.tolist())
        if not drop_last:
            assert set(orders[-1]) == set(range(count)), "an image is missing"
    assert halves[0] & halves[1] == set()
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    if count > 8:
        assert len({tuple(order) for order in orders}) == 5, "not shuffled"


def test_one_image_has_no_halves() -> None:
    with pytest.raises(RobustCliError, match="1 image cannot be halved"):
        data_of(1).epoch(torch.Generator(), 2, False, split_in_two=True)


@dataclass
class Collector(Recorder):
    """A step that records the images of both halves."""

    places: tuple[set[bytes], set[bytes]] = field(default_factory=lambda: (set(), set()))

    def __call__(self, x: Tensor, labels: Labels, threat: ThreatModel, at: Progress) -> Metrics:
        for place, seen in enumerate(self.places):
            seen.update(image.numpy().tobytes() for image in x[place::2])
        return super().__call__(x, labels, threat, at)


@pytest.mark.parametrize("halves", [True, False])
def test_the_loop_splits_batches_when_a_defense_requires_halves(halves: bool) -> None:
    settings = TrainSettings(epochs=4, batch_size=6, lr=0.1)
    step = Collector()
    training = training_of(settings, step)
    fit(training, loop_of(training, settings, split_in_two=halves))
    count = small_data().sizes.train
    assert len(step.places[0] | step.places[1]) == count
    assert (len(step.places[0] & step.places[1]) == 0) == halves


def test_the_search_requires_halves() -> None:
    assert describe("defenses", "dsara").two_halves
    assert isinstance(dsara().loss, SearchLoss)
    assert not describe("defenses", "natural").two_halves


# The run.

SPEC = """\
name: found
data: {name: digits, val_size: 40, train_size: 64}
architecture: {name: dsara, width: 2, cells: 4, nodes: 2, normalize: none}
threat: {norm: linf, eps: 8/255}
defense: {name: dsara, steps: 1, step_size: 8/255, alpha_lr: 0.1, averaging: {name: ema, decay: 0.5}}
train: {epochs: 1, batch_size: 32, lr: 0.05, check_examples: 10, check_steps: 1, device: cpu, grad_clip: 5}
evaluate:
  clean: {name: clean, examples: 20}
claim: {source: nobody, metrics: {clean: 0.5}}
"""


@pytest.mark.slow
def test_a_run_ends_with_a_spec_that_trains_what_it_found(tmp_path: Path) -> None:
    spec = ExperimentSpec.parse(SPEC, "the test")
    run = run_experiment(spec, tmp_path, Screen(is_quiet=True))
    text = run.derived.read_text(encoding="utf-8")
    assert text.startswith("# What the search found found with seed 0")
    derived = ExperimentSpec.parse(text, "derived")
    assert derived.name == "found_derived"
    assert derived.claim is None
    assert (derived.architecture.name, derived.architecture.options.normalize) == ("cell_network", "none")
    assert derived.architecture.parameters["factors"] == (1, 2, 2)
    assert (derived.architecture.parameters["width"], derived.architecture.parameters["cells"]) == (2, 4)
    assert [len(derived.architecture.parameters[kind]) for kind in KINDS] == [2, 2, 2]
    assert derived.defense.name == "pgd_at"
    assert derived.defense.parameters["steps"] == 1
    assert derived.defense.parameters["averaging"] == spec.defense.parameters["averaging"]
    assert (derived.threat, derived.train, derived.data) == (spec.threat, spec.train, spec.data)
    trained = run_experiment(derived, tmp_path, Screen(is_quiet=True))
    assert trained.is_finished
    assert not trained.derived.exists()


def test_a_supernet_trained_by_another_defense_keeps_it() -> None:
    spec = ExperimentSpec.parse(
        SPEC.replace("{name: dsara, steps: 1,", "{name: trades, steps: 1,").replace(" alpha_lr: 0.1,", ""), "the test"
    )
    derived = ExperimentSpec.parse(derived_spec(spec, space_of().derived()), "derived")
    assert derived.defense == spec.defense


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("batch_size: 32", "batch_size: 31"), "train.batch_size: 31; 'dsara' needs as many images of each half"),
        (("val_size: 40", "val_size: 40, mixer: mixup"), "data.mixer: 'dsara' learns from two halves"),
        (("val_size: 40", "val_size: 40, extra: {path: x.npz}"), "data.extra: 'dsara' halves the data set's own"),
        (("device: cpu", "compile: true"), "train.compile: a compiled network does not show"),
        (
            ("{name: dsara, width: 2, cells: 4, nodes: 2, normalize: none}", "small_cnn"),
            "defense.name: 'dsara' trains the architecture 'dsara'; this is 'small_cnn'",
        ),
    ],
)
def test_what_does_not_go_with_a_search_is_refused(change: tuple[str, str], text: str) -> None:
    assert change[0] in SPEC
    with pytest.raises(RobustCliError) as caught:
        ExperimentSpec.parse(SPEC.replace(*change), "the test")
    assert text in str(caught.value)
