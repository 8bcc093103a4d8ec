"""MultiBN: branches of batch norms, the gate that weights them, and training with separate branches."""

import re
from copy import deepcopy
from fractions import Fraction
from typing import Any

import pytest
import torch
from judging import noise
from small_steps import LINF, batch, counted, progress, same, tracked, train
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.branches import Branched, BranchedNorm, branched_of, through_branch, with_kinds
from robustcli.architectures.features import classifier_of
from robustcli.architectures.multibn import multibn as multibn_network
from robustcli.architectures.small_cnn import small_cnn
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import branched_net, conv_net, drawn_from, images, labels
from robustcli.data.targets import Labels
from robustcli.defenses import Batch
from robustcli.defenses.half_half import half_half
from robustcli.defenses.multibn import BranchesCrossEntropy, multibn
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import catalog
from robustcli.registry.types import OtherThreat
from robustcli.threat.noise import StreamNoise
from robustcli.threat.threat import ThreatModel

resnet18 = ARCHITECTURES.get("resnet18")
preact_resnet18 = ARCHITECTURES.get("preact_resnet18")
SHAPE = ImageShape(3, 32, 32, 10)
SHORTCUT = re.compile(r".*\.(shortcut|downsample|proj)")
L2 = OtherThreat(norm="l2", eps=Fraction(1, 2))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def buffers(part: Branched) -> list[list[Tensor]]:
    """Running statistics of every branch."""
    norms = [module for module in part.modules() if isinstance(module, BranchedNorm)]
    return [
        [value.clone() for norm in norms for value in norm.branches[branch].buffers()] for branch in range(part.count)
    ]


@pytest.mark.parametrize("branch", [None, 0])
def test_one_branch_is_the_plain_network(branch: int | None) -> None:
    for training in (True, False):
        with drawn_from(0):
            plain = preact_resnet18(SHAPE, width=4).train(training)
        with drawn_from(0):
            body: Any = preact_resnet18(SHAPE, width=4)
            one = multibn_network(SHAPE, network=body, branches=1, branch=branch, gate_width=2).train(training)
        x = images(4, 3, 32)
        with torch.no_grad():
            assert torch.equal(one(x), plain(x))


def test_a_preact_resnet18_has_3904_channels_of_batch_norm() -> None:
    plain: Any = preact_resnet18(SHAPE)
    three = Branched(None, deepcopy(plain), 3, 0, False)
    assert parameters(three) - parameters(plain) == 2 * 2 * 3904
    resnet: Any = resnet18(SHAPE)
    # Its 896 channels on shortcuts stay single where they are shared.
    shared, own = (Branched(None, deepcopy(resnet), 3, 0, shares) for shares in (True, False))
    assert parameters(shared) - parameters(resnet) == 2 * 2 * 3904
    assert parameters(own) - parameters(shared) == 2 * 2 * 896


@pytest.mark.parametrize("name", ["resnet50", "clip_resnet", "regnet", "robust_arch_resnet50", "sknet"])
def test_norms_on_shortcuts_have_no_branches(name: str) -> None:
    member = catalog("architectures")[name]
    network: Any = ARCHITECTURES.get(name)(SHAPE, **member.smoke)
    shortcuts = [module for place, module in network.named_modules() if SHORTCUT.fullmatch(place)]
    assert any(isinstance(part, _BatchNorm) for shortcut in shortcuts for part in shortcut.modules())
    Branched(None, network, 2, 0, True)
    assert not any(isinstance(part, BranchedNorm) for shortcut in shortcuts for part in shortcut.modules())


def test_the_gate_weighs_the_branches() -> None:
    norm = BranchedNorm(nn.BatchNorm2d(3), 2).eval()
    for branch, (scale, shift) in zip(norm.branches, ((2.0, 1.0), (-1.0, 0.5)), strict=True):
        nn.init.constant_(branch.weight, scale)  # type: ignore[arg-type]
        nn.init.constant_(branch.bias, shift)  # type: ignore[arg-type]
    h, shares = torch.randn(4, 3, 5, 5), torch.rand(4, 2)
    norm.route = shares
    one, other = ((h / (1 + 1e-5) ** 0.5) * scale + shift for scale, shift in ((2.0, 1.0), (-1.0, 0.5)))
    expected = shares[:, 0].view(4, 1, 1, 1) * one + shares[:, 1].view(4, 1, 1, 1) * other
    assert torch.allclose(norm(h), expected, atol=1e-6)


def test_branches_take_short_clips_too() -> None:
    """The layer accepts any number of dimensions."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    gate = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    clips = torch.rand(3, 1, 8, 8, 8)
    assert Branched(gate, network, 2, None, True)(clips).shape == (3, 4)


def test_a_gate_is_seen_by_an_attack() -> None:
    """The gradient to the image goes through the choice of branches, too."""
    part: Any = branched_net(2).eval()
    x = images(4)

    def gradient() -> Tensor:
        points = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(part(points).square().sum(), points)
        return grad

    whole = gradient()
    part.gate.register_forward_hook(lambda _gate, _inputs, kinds: kinds.detach())
    assert not torch.allclose(whole, gradient(), rtol=1e-3)


def test_an_explicit_branch_overrides_gate_and_setting() -> None:
    x = images(4)
    for part in (branched_net(3).eval(), branched_net(3, branch=2).eval()):
        assert isinstance(part, Branched)
        with torch.no_grad():
            usual = part(x)
            asked = []
            for branch in range(3):
                with through_branch(part, branch):
                    asked.append(part(x))
            assert torch.equal(part(x), usual), "restored"
        assert not torch.equal(asked[0], asked[1])
        assert torch.equal(usual, asked[2]) == (part.gate is None)


def test_only_the_branch_that_is_taken_moves_its_statistics() -> None:
    part: Any = branched_net(3).train()
    before = buffers(part)
    with through_branch(part, 1):
        part(images(8))
    after = buffers(part)
    moved = [
        not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(before, after, strict=True)
    ]
    assert moved == [False, True, False]


def test_statistics_of_a_branch_are_those_of_its_kind() -> None:
    part: Any = branched_net(3).train()
    x, y = images(8), labels(8)
    versions = [images(8, seed=seed) for seed in (5, 6)]
    expected = []
    for branch, points in enumerate((x, *versions)):
        copy = deepcopy(part)
        with through_branch(copy, branch):
            copy(points)
        expected.append(buffers(copy)[branch])
    BranchesCrossEntropy(branches=3, gate_weight=1.0)(part, Batch(x, y, torch.cat(versions)))
    for found, wanted in zip(buffers(part), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_loss_is_its_formula() -> None:
    part: Any = branched_net(2, dtype=torch.float64).eval()
    x, y, x_adv = images(4, dtype=torch.float64), labels(4), images(4, seed=5, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for branch, points in enumerate((x, x_adv)):
            with through_branch(part, branch):
                expected += nn.functional.cross_entropy(part(points), y) / 2
            kind = torch.full((4,), branch)
            expected += 0.3 * nn.functional.cross_entropy(part.gate(points), kind) / 2
        found = BranchesCrossEntropy(branches=2, gate_weight=0.3)(part, Batch(x, y, x_adv))
    assert found.item() == pytest.approx(expected.item())


def test_classes_do_not_teach_the_gate_nor_kinds_the_network() -> None:
    part: Any = branched_net(2).train()
    x, _ = batch()
    logits, kinds = with_kinds(part, part, x, 0)
    assert kinds is not None
    network, gate = list(part.network.parameters()), list(part.gate.parameters())
    of_classes = torch.autograd.grad(logits.sum(), gate, allow_unused=True, retain_graph=True)
    assert of_classes == (None,) * len(gate)
    assert torch.autograd.grad(kinds.sum(), network, allow_unused=True) == (None,) * len(network)


def test_the_gate_learns_the_kinds() -> None:
    part: Any = branched_net(2).train()
    noise_, optimizer = StreamNoise.on(torch.device("cpu")), torch.optim.Adam(part.parameters(), lr=0.01)
    step = multibn(others=[], steps=1, step_size=0.2).start(part, optimizer, noise_)
    x, y = images(64, seed=3) * 0.2 + 0.4, labels(64)
    for update in range(40):
        noise_.reseed(0, update)
        step(x, Labels.of(y), ThreatModel("linf", Fraction(1, 5)), progress())
    x_adv = Pgd(steps=1, step_size=0.2)(part.eval(), x, y, ThreatModel("linf", Fraction(1, 5)), noise(64))
    with torch.no_grad():
        kinds = part.gate(torch.cat((x, x_adv))).argmax(1)
    assert (kinds == torch.arange(2).repeat_interleave(64)).float().mean() > 0.9


def test_with_one_network_for_all_it_is_half_and_half_training() -> None:
    """Branches that are the same norm: the mean over clean and adversarial images, as without branches."""
    plain = conv_net(dtype=torch.float64)
    single = Branched(None, deepcopy(plain), 2, 0, False)
    for norm in (module for module in single.modules() if isinstance(module, BranchedNorm)):
        norm.branches[1] = norm.branches[0]
    found = train(multibn(others=[], steps=3), single)
    expected = train(half_half(share=0.5, steps=3), plain)
    weights = [value for name, value in zip(single.state_dict(), found, strict=True) if "branches.1" not in name]
    assert all(
        torch.allclose(a.double(), b.double(), rtol=0, atol=1e-12) for a, b in zip(weights, expected, strict=True)
    )


@pytest.mark.parametrize("through", ["branch", "gate"])
def test_attacks_see_their_branch_or_the_gate(through: Any) -> None:
    part: Any = branched_net(3).eval()
    x, y = images(8), labels(8)
    found = multibn(others=[L2], steps=3, start="clean", attack_through=through).attack(part, x, y, LINF, noise(8))
    with through_branch(part, 1):
        alone = Pgd(steps=3, start="clean")(part, x, y, LINF, noise(8))
    gated = Pgd(steps=3, start="clean")(part, x, y, LINF, noise(8))
    assert not torch.equal(alone, gated)
    assert torch.equal(found[:8], alone if through == "branch" else gated)
    assert len(found) == 16


def test_a_step_costs_k_attack_steps_and_one_branch_per_kind() -> None:
    part: Any = branched_net(3)
    calls: list[None] = []
    part.gate.register_forward_hook(lambda *_: calls.append(None))
    with counted(part) as passes:
        train(multibn(others=[L2], steps=4), part, updates=1)
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (2 * 4 + 3, 8, 8, 3)
    assert len(calls) == 3, "the gate is asked where it learns, and by no attack"
    assert len(set(tracked(part))) == 1


def test_the_classifier_is_that_of_the_network() -> None:
    part: Any = branched_net(2)
    assert classifier_of(part) is part.network[-1]


def test_what_has_no_branches_is_refused() -> None:
    body: Any = small_cnn(ImageShape(1, 8, 8, 10))
    with pytest.raises(RobustCliError, match="no batch norms, so there is nothing to branch"):
        multibn_network(ImageShape(1, 8, 8, 10), network=body)
    with pytest.raises(RobustCliError, match="no branches of batch norms"):
        branched_of(conv_net(), 2)
    with pytest.raises(RobustCliError, match="has 3 branches; the defense needs 2"):
        branched_of(branched_net(3), 2)
    with pytest.raises(RobustCliError, match=r"architecture\.branch: 2; the branches have the numbers 0 to 1"):
        multibn_network(SHAPE, network=body, branch=2)


def test_an_error_leaves_no_branch_behind() -> None:
    part: Any = branched_net(2).eval()
    before = part(images(2))
    with pytest.raises(RuntimeError), through_branch(part, 1):
        part(images(2, channels=3))
    assert torch.equal(part(images(2)), before)
    assert same([part(images(2))], [deepcopy(part)(images(2))])
