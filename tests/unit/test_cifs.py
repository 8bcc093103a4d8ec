"""CIFS: relevance of channels, masks, use of labels, and the joint loss."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from judging import noise
from small_steps import LINF, batch, counted, same, train
from torch import Tensor, nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.architectures.branches import Branched
from robustcli.architectures.channel_gates import ChannelGate, Mask, Probe, gates_of, labeled, with_probes
from robustcli.architectures.cifs import cifs as cifs_network
from robustcli.architectures.features import with_features
from robustcli.architectures.small_cnn import small_cnn
from robustcli.architectures.wide_resnet import wide_resnet
from robustcli.attacks.joint_pgd import JointPgd, JointScores, joint_loss
from robustcli.attacks.pgd import Pgd
from robustcli.contracts.networks import conv_net, drawn_from, gated_net, images, labels
from robustcli.defenses import Batch
from robustcli.defenses.cifs import CifsLoss, cifs
from robustcli.defenses.pgd_at import pgd_at
from robustcli.errors import RobustCliError

resnet18 = ARCHITECTURES.get("resnet18")
preact_resnet18 = ARCHITECTURES.get("preact_resnet18")
SHAPE = ImageShape(3, 32, 32, 10)


def features(count: int = 4, channels: int = 6) -> Tensor:
    return torch.randn((count, channels, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [0, 7])
def test_relevance_is_the_gradient_of_two_logits_summed_over_pixels(hidden: int) -> None:
    probe = Probe(6, 5, hidden).double()
    z, pairs = features().requires_grad_(), torch.tensor([[0, 1], [4, 2], [3, 3], [1, 0]])
    two = probe(z.mean((2, 3))).gather(1, pairs).sum()
    (grad,) = torch.autograd.grad(two, z)
    assert torch.allclose(probe.relevance(z.mean((2, 3)), pairs), grad.sum((2, 3)))


def test_relevance_of_a_linear_probe_is_two_rows_of_its_weights() -> None:
    probe = Probe(6, 5, 0)
    pairs = torch.tensor([[0, 1], [4, 2]])
    rows = probe.last.weight
    found = probe.relevance(torch.randn(2, 6), pairs)
    assert torch.equal(found, torch.stack((rows[0] + rows[1], rows[4] + rows[2])))


@pytest.mark.parametrize("mask", ["softmax", "scaled", "sigmoid", "tanh"])
def test_masks_are_their_formulas(mask: Mask) -> None:
    gate, z = ChannelGate(6, 5, 7, mask, True).double(), features()
    with torch.no_grad():
        found = gate(z) / z
        v = z.mean((2, 3))
        g = gate.probe.relevance(v, gate.probe(v).topk(2).indices)
    share = g.exp() / g.exp().sum(1, keepdim=True)
    formulas = {"softmax": share, "scaled": 6 * share, "sigmoid": 1 / (1 + (-g).exp()), "tanh": g.tanh().clamp(0, 1)}
    assert torch.allclose(found, formulas[mask][:, :, None, None].expand_as(z))


def test_a_gate_uses_the_label_in_training_and_its_prediction_otherwise() -> None:
    gate, z = ChannelGate(6, 5, 0, "softmax", True).double(), features()
    rows = gate.probe.last.weight
    v = z.mean((2, 3))
    first, second = gate.probe(v).topk(2).indices.unbind(1)
    y = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        assert torch.allclose(gate(z), z * (rows[first] + rows[second]).softmax(1)[:, :, None, None])
        with labeled(gate, y):
            assert torch.allclose(gate(z), z * (rows[y] + rows[second]).softmax(1)[:, :, None, None])
        # The second class may be the label itself.
        with labeled(gate, second):
            assert torch.allclose(gate(z), z * (2 * rows[second]).softmax(1)[:, :, None, None])
        assert torch.allclose(gate(z), z * (rows[first] + rows[second]).softmax(1)[:, :, None, None]), "forgotten"


@pytest.mark.parametrize("detaches", [True, False])
def test_a_detached_mask_is_a_constant_to_the_features(detaches: bool) -> None:
    gate, z = ChannelGate(6, 5, 7, "softmax", detaches).double(), features().requires_grad_()
    out = gate(z)
    (grad,) = torch.autograd.grad(out.sum(), z, retain_graph=True)
    mask = (out / z).detach()
    assert torch.allclose(grad, mask) == detaches
    # The probe learns through the mask in both; the biases of its logits have no gradient.
    weights = [gate.probe.last.weight, gate.probe.first.weight, gate.probe.first.bias]  # type: ignore[union-attr]
    assert all(found.abs().max() > 0 for found in torch.autograd.grad(out.square().sum(), weights))


def test_the_published_network_has_its_parameters() -> None:
    body: Any = resnet18(SHAPE)
    network = cifs_network(SHAPE, network=body)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_246_046
    assert [(gate.probe.first is None, gate.probe.last.in_features) for gate in gates_of(network)] == [
        (False, 128),
        (True, 512),
    ]


def test_a_softmax_mask_starts_near_one_over_the_channels() -> None:
    body: Any = resnet18(SHAPE)
    gate = gates_of(cifs_network(SHAPE, network=body))[0]
    z = torch.rand(4, 512, 4, 4)
    mask = (gate.eval()(z) / z).detach()
    assert 0.9 < float(mask.min()) * 512 < float(mask.max()) * 512 < 1.1


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (resnet18, {"width": 4}),
        (preact_resnet18, {"width": 4}),
        (preact_resnet18, {"width": 4, "downsample": "flc"}),
        (preact_resnet18, {"width": 4, "norm": "conv"}),
        (wide_resnet, {"depth": 16, "widen": 1}),
    ],
)
def test_gates_follow_the_blocks_of_the_last_stage(build: Any, settings: dict[str, Any]) -> None:
    body = build(SHAPE, **settings)
    gated = cifs_network(SHAPE, network=body, hidden=3)
    assert len(gates_of(gated)) == 2
    assert gated.training
    # Finding the channels has not changed the statistics.
    assert {int(value) for name, value in gated.state_dict().items() if "tracked" in name} == {0}
    logits, probes = with_probes(gated, torch.rand(2, 3, 32, 32))
    assert [said.shape for said in (logits, *probes)] == [(2, 10)] * 3
    # Other methods still read the features of the classifier and not of a probe.
    assert with_features(gated, torch.rand(2, 3, 32, 32))[1].shape[1] > 10


def test_a_network_without_stages_is_refused() -> None:
    body: Any = small_cnn(ImageShape(1, 8, 8, 10))
    with pytest.raises(RobustCliError, match="not a sequence of convolutional blocks"):
        cifs_network(ImageShape(1, 8, 8, 10), network=body)
    with pytest.raises(RobustCliError, match="no channel gates; write architecture"):
        CifsLoss(beta=2.0)(conv_net(), Batch(*batch(), batch()[0]))


def test_gates_within_gates_are_refused() -> None:
    body: Any = resnet18(SHAPE, width=4, channel_gate="cifs")
    with pytest.raises(RobustCliError, match=r"network.channel_gate: cifs: this network already has such gates"):
        cifs_network(SHAPE, network=body)


def test_gates_in_every_block_learn_and_see_labels_only_in_the_loss() -> None:
    with drawn_from(0):
        network = resnet18(ImageShape(1, 8, 8, 10), width=4, channel_gate="cifs")
    told: list[bool] = []
    gates = gates_of(network)
    gates[-1].register_forward_hook(lambda gate, _i, _o: told.append(gate.labels is not None))  # type: ignore[arg-type]
    before = [parameter.detach().clone() for gate in gates for parameter in gate.parameters()]
    train(cifs(steps=2), network, updates=1)
    assert told == [False, False, True]
    moved = [parameter for gate in gates for parameter in gate.parameters()]
    assert len(moved) == 2 * 8
    assert not any(torch.equal(old, new) for old, new in zip(before, moved, strict=True))


def test_an_attack_on_gates_in_every_block_raises_their_joint_loss() -> None:
    with drawn_from(0):
        network = resnet18(ImageShape(1, 8, 8, 10), width=4, channel_gate="cifs").eval()
    x, y = images(8), labels(8)
    x_adv = JointPgd(steps=5, keeps_best=True)(network, x, y, LINF, noise(8))
    with torch.no_grad():
        before, after = (joint_loss(JointScores(network, 2.0)(points), y) for points in (x, x_adv))
    assert len(with_probes(network, x)[1]) == 8
    assert (after > before).all()


def test_gates_and_branches_go_together() -> None:
    body: Any = resnet18(SHAPE, width=4)
    both = Branched(None, cifs_network(SHAPE, network=body, hidden=3), 2, 1, True).eval()
    assert both(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("beta", [0.0, 2.0, 5.0])
def test_joint_loss_is_its_formula(beta: float) -> None:
    network = gated_net(dtype=torch.float64).eval()
    x, y, x_adv = images(4, dtype=torch.float64), labels(4), images(4, seed=5, dtype=torch.float64)
    with torch.no_grad():
        with labeled(network, y):
            logits, probes = with_probes(network, x_adv)
        assert len(probes) == 2
        each = F.cross_entropy(logits, y) + beta / 2 * sum(F.cross_entropy(said, y) for said in probes)
        found = CifsLoss(beta=beta)(network, Batch(x, y, x_adv))
    assert found.item() == pytest.approx(3 / (beta + 1) * each.item())


def test_the_weight_of_all_parts_is_three() -> None:
    """A network whose probes agree with it has three times its cross-entropy, whatever beta is."""
    scores = torch.randn(5, 10, dtype=torch.float64)
    y = labels(5)
    for beta in (0.0, 2.0, 7.0):
        joint = scores.log_softmax(1) * (1 + beta)
        total = 3 / (beta + 1) * joint_loss(joint, y).mean()
        assert total.item() == pytest.approx(3 * F.cross_entropy(scores, y).item())


def test_without_probes_the_joint_attack_is_pgd() -> None:
    model, x, y = conv_net().eval(), images(8), labels(8)
    joint, pgd = JointPgd(steps=4, beta=7.0), Pgd(steps=4)
    assert torch.allclose(joint(model, x, y, LINF, noise(8)), pgd(model, x, y, LINF, noise(8)), atol=1e-6)


def test_with_weight_0_the_joint_attack_is_pgd() -> None:
    model, x, y = gated_net().eval(), images(8), labels(8)
    joint, pgd = JointPgd(steps=4, beta=0.0), Pgd(steps=4)
    assert torch.allclose(joint(model, x, y, LINF, noise(8)), pgd(model, x, y, LINF, noise(8)), atol=1e-6)


def test_the_joint_attack_raises_the_joint_loss_more() -> None:
    model, x, y = gated_net().eval(), images(32), labels(32)
    found = {
        name: attack(model, x, y, LINF, noise(32))
        for name, attack in (("joint", JointPgd(steps=10, keeps_best=True)), ("pgd", Pgd(steps=10, keep="best")))
    }
    with torch.no_grad():
        losses = {name: joint_loss(JointScores(model, 2.0)(points), y).mean() for name, points in found.items()}
    assert losses["joint"] > losses["pgd"]


def test_the_best_point_is_not_worse_than_the_last_one() -> None:
    model, x, y = gated_net().eval(), images(32), labels(32)
    best, last = (
        JointPgd(steps=5, step_size=0.03, keeps_best=keeps)(model, x, y, LINF, noise(32)) for keeps in (True, False)
    )
    with torch.no_grad():
        gain = joint_loss(JointScores(model, 2.0)(best), y) - joint_loss(JointScores(model, 2.0)(last), y)
    assert (gain >= 0).all()
    assert (gain > 0).any()


def test_gates_see_no_labels_during_the_training_attack() -> None:
    network = gated_net().train()
    told: list[bool] = []
    gates_of(network)[0].register_forward_hook(lambda gate, _i, _o: told.append(gate.labels is not None))  # type: ignore[arg-type]
    train(cifs(steps=3), network, updates=1)
    assert told == [False, False, False, True]


def test_a_step_costs_what_pgd_at_costs() -> None:
    network = gated_net()
    with counted(network) as passes:
        train(cifs(steps=5), network, updates=1)
    assert (passes.forwards, passes.crafting, passes.input, passes.weight) == (6, 5, 5, 1)


def test_with_gates_that_weigh_nothing_and_no_probes_it_is_pgd_at() -> None:
    """beta 0 leaves three times the cross-entropy; a third of the rate makes up for it."""

    class Open(ChannelGate):
        def forward(self, z: Tensor) -> Tensor:
            return z

    body: Any = conv_net(dtype=torch.float64)
    gated = nn.Sequential(*deepcopy(body), Open(1, 1, 0, "softmax", True))
    settings: Any = {"momentum": 0.0, "weight_decay": 0.0}
    found = train(cifs(steps=3, beta=0.0, attack_beta=0.0), gated, lr=0.02, **settings)
    expected = train(pgd_at(steps=3), body, lr=0.06, **settings)
    pairs = list(zip(found, expected, strict=False))
    assert len(pairs) == len(expected)
    assert all(torch.allclose(a.double(), b.double(), rtol=0, atol=1e-9) for a, b in pairs)


def test_an_error_leaves_no_labels_behind() -> None:
    network, x, y = gated_net().eval(), images(4), labels(4)
    before = network(x)
    with pytest.raises(RuntimeError), labeled(network, y):
        with_probes(network, images(4, channels=3))
    assert same([network(x)], [before])
