"""Images normalized one by one: the formula, its gradient, flat images, and what is built and stored with it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustcli.architectures import ImageShape, Network, Normalize, Standardize
from robustcli.cli.progress import Screen
from robustcli.contracts.networks import conv_net, images
from robustcli.diagnostics.layer_norms import LayerNorms
from robustcli.models.build import build_network, network_of
from robustcli.models.model import LoadedModel
from robustcli.models.start import start_from
from robustcli.registry.registry import MemberSpec
from robustcli.specs.settings import ArchitectureOptions
from robustcli.specs.spec import ExperimentSpec
from robustcli.store.checkpoint import NetworkCheckpoint
from robustcli.threat.noise import IndexedNoise
from robustcli.threat.threat import ThreatModel
from robustcli.workflows.export import rebuild
from robustcli.workflows.train import run_experiment

SHAPE = ImageShape(3, 8, 8, 10)
CHOSEN = MemberSpec("architectures", "small_cnn", {"width": 4, "hidden": 8}, ArchitectureOptions(normalize="per_image"))
SPEC = """
name: standardized
data: {name: digits, train_size: 64}
architecture: {name: small_cnn, width: 4, hidden: 8, normalize: per_image}
threat: {norm: linf, eps: 0.1}
defense: {name: pgd_at, steps: 1}
train: {epochs: 1, lr: 0.1, check_examples: 10, device: cpu}
evaluate: {clean: {name: clean, examples: 20}}
"""


def test_every_image_gets_mean_0_and_deviation_1_over_all_channels() -> None:
    x = images(5, channels=3, dtype=torch.float64)
    found = Standardize()(x).flatten(1)
    assert torch.allclose(found.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.std(1, correction=0), torch.ones(5, dtype=torch.float64), atol=1e-12)
    # Not per channel, and not over the batch.
    assert Standardize()(x).mean((2, 3)).abs().min() > 1e-3
    assert torch.allclose(Standardize()(x[:1]), Standardize()(x)[:1], rtol=0, atol=1e-12)


def test_brightness_and_contrast_change_nothing() -> None:
    x = images(4, channels=3, dtype=torch.float64)
    assert torch.allclose(Standardize()(0.3 + 0.4 * x), Standardize()(x), rtol=0, atol=1e-9)


def test_the_gradient_flows_through_mean_and_deviation() -> None:
    x = images(2, channels=3, dtype=torch.float64)[:, :, :3, :3].requires_grad_()
    assert torch.autograd.gradcheck(Standardize(), x)
    weights = images(2, channels=3, seed=9, dtype=torch.float64)[:, :, :3, :3]
    (grad,) = torch.autograd.grad((weights * Standardize()(x)).sum(), x)
    # The function does not depend on brightness and contrast, so its gradient is orthogonal to both.
    flat = grad.flatten(1)
    assert flat.sum(1).abs().max() < 1e-9 < flat.abs().max()
    assert (flat * x.detach().flatten(1)).sum(1).abs().max() < 1e-9


def test_a_flat_image_becomes_0_and_has_a_finite_gradient() -> None:
    x = torch.full((2, 3, 8, 8), 0.4, requires_grad=True)
    found = Standardize()(x)
    assert found.abs().max() < 1e-3
    (grad,) = torch.autograd.grad((found * images(2, channels=3)).sum(), x)
    assert grad.isfinite().all()
    # One level of 255 in one pixel of 192 is as little as the deviation is cut at.
    x = x.detach().clone()
    x[0, 0, 0, 0] += 1 / 255
    assert float(Standardize()(x)[0].max()) == pytest.approx(1 * 192**0.5 * 191 / 192, rel=1e-3)


def test_a_spec_builds_it_and_its_checkpoint_brings_it_back(tmp_path: Path) -> None:
    run = run_experiment(ExperimentSpec.parse(SPEC, "the test"), tmp_path, Screen(is_quiet=True))
    found = NetworkCheckpoint.read(run.last)
    assert not [name for name in found.weights if name.startswith("normalize.")]
    spec, network = network_of(found, torch.device("cpu"), Path("x.pt"))
    assert isinstance(network.normalize, Standardize)
    assert spec.architecture.options.normalize == "per_image"
    built = LoadedModel(network=network).to_json()
    assert (built["mean"], built["std"]) == (None, None)
    other = MemberSpec("architectures", "small_cnn", {"width": 4, "hidden": 8}, ArchitectureOptions())
    usual = build_network(other, ImageShape(1, 8, 8, 10), (0.3,), (0.5,))
    start_from(usual, str(run.last), other, ImageShape(1, 8, 8, 10))
    assert isinstance(usual.normalize, Normalize)
    assert usual.normalize.std.item() == 0.5
    assert all(torch.equal(a, b) for a, b in zip(usual.body.parameters(), network.body.parameters(), strict=True))


def test_an_exported_network_is_made_again(tmp_path: Path) -> None:
    network = build_network(CHOSEN, SHAPE, (0.5,) * 3, (0.25,) * 3).eval()
    rebuild.keep(tmp_path, network, CHOSEN, SHAPE)
    x = images(3, channels=3)
    with torch.no_grad():
        assert torch.equal(rebuild.rebuild(tmp_path)(x), network(x))


def test_norms_of_layers_have_no_product_where_images_set_the_scale() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = images(4)
    found = {}
    for normalize in (Standardize(), Normalize((0.5,), (0.5,))):
        network = Network(normalize, body).eval()
        threat, rng = ThreatModel("linf", 0), IndexedNoise(0, torch.arange(4))  # type: ignore[arg-type]
        found[type(normalize)] = LayerNorms(iterations=5)(network, x, torch.zeros(4).long(), threat, rng)
    assert found[Standardize]["others"] == ["normalize (Standardize)"]
    assert found[Standardize]["products"]["linf"] is None
    assert found[Normalize]["products"]["linf"] is not None


def test_an_attack_moves_what_is_standardized() -> None:
    network = Network(Standardize(), conv_net(3)).eval()
    x = images(4, channels=3).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(network(x), torch.arange(4)), x)
    assert grad.abs().max() > 0
    assert grad.flatten(1).sum(1).abs().max() < 1e-4 * grad.abs().sum()
