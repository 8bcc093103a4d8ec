"""Networks without gradients, or that fail on some batches, give a result or a clear error."""

import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.architectures import Normalize
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.square import Square
from robustcli.contracts.networks import conv_net, images
from robustcli.errors import EvaluationError
from robustcli.evaluation.evaluate import evaluate
from robustcli.evaluation.preflight import preflight
from robustcli.evaluators.attack import Attacked
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.clean import Clean
from robustcli.models.digest import weights_digest
from robustcli.models.external import ExternalNetwork, require_values
from robustcli.threat.threat import ThreatModel

THREAT = ThreatModel("linf", Fraction(1, 100))


class Around(nn.Module):
    """A sound network, called in a way that subclasses change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv_net(classes=4)


class NoGrad(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Inference(Around):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Detached(Around):
    def forward(self, x: Tensor) -> Any:
        return self.inner(x.detach())


class OneHot(Around):
    def forward(self, x: Tensor) -> Any:
        return nn.functional.one_hot(self.inner(x).argmax(1), 4).float()


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation
        return torch.ao.quantization.quantize_dynamic(conv_net(classes=4), {nn.Linear}, dtype=torch.qint8)


KINDS = [NoGrad, Inference, Detached, OneHot, quantized]


def external(body: nn.Module) -> ExternalNetwork:
    channels = images(1).shape[1]
    return ExternalNetwork(Normalize((0.0,) * channels, (1.0,) * channels), body).eval()


def labeled(model: nn.Module, count: int = 12) -> tuple[Tensor, Tensor]:
    x = images(count)
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_attacks_refuse_a_model_without_gradients(kind: Any) -> None:
    model = external(kind())
    with pytest.raises(EvaluationError, match=r"this network gives no gradient .*, which pgd cannot do without"):
        evaluate("attack", {}, Attacked(attack=Pgd(steps=2)), model, *labeled(model), THREAT, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_by_scores_run_and_are_suspect(kind: Any) -> None:
    model = external(kind())
    result = evaluate("attack", {}, Attacked(attack=Square(queries=5)), model, *labeled(model), THREAT, 0)
    assert result.verdict == "SUSPECT"
    assert any("the network gives no gradient, so none was used" in text for text in result.suspicions or ())


@pytest.mark.slow
def test_autoattack_without_gradients_is_suspect_with_a_reason() -> None:
    model = external(NoGrad())
    evaluator = AutoAttack(attacks=("apgd-ce", "fab-t", "square"))
    result = evaluate("autoattack", {}, evaluator, model, *labeled(model, 2), THREAT, 0)
    assert [stage.name for stage in result.stages] == ["square"]
    assert result.verdict == "SUSPECT"
    assert any("so apgd-ce, fab-t could not run" in text for text in result.suspicions or ())


class Fails(Around):
    """Fails on batches of one size."""

    size = 1

    def forward(self, x: Tensor) -> Any:
        if len(x) == self.size:
            raise ValueError("not this size")
        return self.inner(x)


class FailsOnThree(Fails):
    size = 3


@pytest.mark.parametrize(("kind", "words"), [(Fails, "a batch of 1 image"), (FailsOnThree, "a batch of 3 images")])
def test_a_network_that_fails_on_some_batches_is_an_error(kind: Any, words: str) -> None:
    model = external(kind())
    x, y = labeled(model, 20)
    with pytest.raises(EvaluationError, match=rf"the network fails on {words} of 1x8x8 \(ValueError: not this size\)"):
        evaluate("attack", {}, Attacked(attack=Pgd(steps=2), batch_size=17), model, x, y, THREAT, 0)


class DependsOnLargeBatches(Around):
    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return logits if len(x) <= 16 else logits - logits.mean(0)


def test_dependence_that_begins_beyond_the_probes_is_seen_in_the_batch_that_is_used() -> None:
    model = DependsOnLargeBatches().eval()
    x, y = labeled(model, 16)
    x, y = torch.cat([x, x.flip(3)]), torch.cat([y, y])
    with pytest.raises(EvaluationError, match="in a batch of 24; accuracy would depend on the batch"):
        evaluate("clean", {}, Clean(batch_size=24), model, x, y, THREAT, 0)
    evaluate("clean", {}, Clean(batch_size=16), model, x, y, THREAT, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_evaluated_with_float32_logits(dtype: torch.dtype) -> None:
    model = external(conv_net(classes=4).to(dtype))
    x, y = labeled(model)
    assert model(x).dtype == torch.float32
    preflight(model, x, y, THREAT)
    assert evaluate("attack", {}, Attacked(attack=Pgd(steps=2)), model, x, y, THREAT, 0).gradients > 0


def test_tensors_without_values_are_refused() -> None:
    with pytest.raises(Exception, match="weight is on the device meta, so it has no values"):
        require_values(nn.Linear(2, 2, device="meta"), "x")


class Odd(Around):
    """Holds a sparse buffer and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(4).to_sparse())
        self.version = 3

    def get_extra_state(self) -> Any:
        return {"version": self.version, "table": torch.ones(2)}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_sparse_buffers_and_extra_state_count_as_weights() -> None:
    model = external(Odd())
    assert evaluate("attack", {}, Attacked(attack=Pgd(steps=2)), model, *labeled(model), THREAT, 0).total == 12
    before = weights_digest(model)
    model.body.version = 4
    assert weights_digest(model) != before
    assert weights_digest(external(quantized())) == weights_digest(external(quantized()))
