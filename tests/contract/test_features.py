"""Features are the input of the last linear layer in every architecture."""

import pytest
import torch
from members import names_of, shape_for
from torch import nn

from robustcli.architectures import Network, Normalize
from robustcli.architectures.features import classifier_of, with_features
from robustcli.contracts.build import builder
from robustcli.contracts.model_state import Failing, PlannedError, found_again
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import catalog
from robustcli.specs.settings import TrainSettings
from robustcli.training.model import TrainingModel

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", names_of("architectures"))
def test_the_logits_of_every_architecture_are_linear_in_its_features(name: str) -> None:
    member = catalog("architectures")[name]
    shape = shape_for(member, member.smoke)
    body = builder(member, member.smoke)(shape).eval()
    network = Network(Normalize((0.5,) * shape.channels, (0.25,) * shape.channels), body)
    model = TrainingModel(network, TrainSettings(epochs=1), torch.device("cpu"))
    x = torch.rand(3, shape.channels, shape.height, shape.width, generator=torch.Generator().manual_seed(0))
    logits, features = with_features(model, x)
    layer = classifier_of(model)
    assert logits.shape == (3, shape.classes)
    assert features.shape == (3, layer.in_features)
    assert torch.equal(logits, model(x))
    assert torch.allclose(layer(features), logits, rtol=1e-5, atol=1e-6)
    assert features.requires_grad


def test_extraction_leaves_no_hook_behind() -> None:
    model = conv_net()
    with found_again(model, except_for=("buffer",)):
        with_features(model, images(4))
    failing = Failing(conv_net(), 1)
    before = len(classifier_of(failing)._forward_pre_hooks)
    with pytest.raises(PlannedError):
        with_features(failing, images(4))
    assert len(classifier_of(failing)._forward_pre_hooks) == before == 0


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(RobustCliError, match="has no linear layer"):
        with_features(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()), images(2))


def test_a_linear_layer_that_is_not_called_once_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.layer(self.layer(x.flatten(1)))
            return logits

    with pytest.raises(RobustCliError, match="was called 2 times"):
        with_features(Twice(), images(2))
