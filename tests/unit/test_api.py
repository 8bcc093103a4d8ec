"""The Python API: what it returns and refuses, and that it does not change models."""

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustcli
from robustcli.errors import EvaluationError, RobustCliError, SpecError
from robustcli.evaluation.per_image import read_per_image
from robustcli.specs.spec import ExperimentSpec
from robustcli.threat.threat import ThreatModel

TINY = {
    "name": "tiny",
    "data": {"name": "digits", "val_size": 50, "train_size": 128},
    "architecture": {"name": "small_cnn", "width": 4, "hidden": 16},
    "threat": {"norm": "linf", "eps": 0.1},
    "defense": {"name": "pgd_at", "steps": 2},
    "train": {"epochs": 1, "batch_size": 32, "lr": 0.01, "optimizer": "adam", "weight_decay": 0, "device": "cpu"},
    "evaluate": {"pgd": {"name": "attack", "attack": {"name": "pgd", "steps": 3, "keep": "fooled"}, "examples": 60}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> robustcli.Run:
    return robustcli.train(TINY, runs=tmp_path_factory.mktemp("api") / "runs", train__epochs=2)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return robustcli.images("digits", examples=60)


def test_import_is_fast_and_does_not_import_torch() -> None:
    code = "import sys, robustcli; print(robustcli.__version__, 'torch' in sys.modules, 'load' in dir(robustcli))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [robustcli.__version__, "False", "True"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'atack'"):
        robustcli.atack  # type: ignore[attr-defined]  # noqa: B018


def test_train_returns_the_run(run: robustcli.Run) -> None:
    assert run.spec.train.epochs == 2
    assert len(run.history) == 2
    assert run.checkpoint.is_file()
    assert 0 < run.evaluations["pgd"].accuracy <= 1
    assert "pgd" in str(run)
    # A finished run is read.
    assert robustcli.train(run.spec, runs=run.folder.parents[1]) == run


def test_load_takes_a_checkpoint_or_the_folder_of_a_run(run: robustcli.Run, digits: tuple[Tensor, Tensor]) -> None:
    x, _ = digits
    networks = [run.load(), robustcli.load(run.folder), robustcli.load(str(run.checkpoint))]
    with torch.no_grad():
        logits = [network(x) for network in networks]
    assert not any(network.training for network in networks)
    assert all(torch.equal(logits[0], other) for other in logits[1:])


def test_load_puts_weights_of_a_file_behind_their_normalization(tmp_path: Path) -> None:
    from robustcli.architectures import ImageShape
    from robustcli.architectures.small_cnn import small_cnn

    network = small_cnn(ImageShape(3, 16, 16, 7), width=4, hidden=8).eval()
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    architecture = {"name": "small_cnn", "width": 4, "hidden": 8}
    loaded = robustcli.load(path, architecture=architecture, mean=(0.1, 0.2, 0.3), std=0.5, image=(3, 16, 16))
    x = torch.rand(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network((x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5))
    with pytest.raises(RobustCliError, match="nothing says which normalization"):
        robustcli.load(path, architecture=architecture, image=(3, 16, 16))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_attack_returns_images_in_the_threat_set_in_the_form_it_was_given(
    run: robustcli.Run, digits: tuple[Tensor, Tensor], norm: Any
) -> None:
    x, y = digits
    model, eps = run.load(), {"linf": 0.1, "l2": 0.5, "l1": 3.0}[norm]
    found = robustcli.attack(model, x, y, norm=norm, eps=eps, steps=3)
    as_array = robustcli.attack(model, x.numpy(), y.tolist(), norm=norm, eps=eps, steps=3, batch_size=7)
    assert isinstance(as_array, np.ndarray)
    np.testing.assert_allclose(as_array, found.numpy(), atol=1e-6)
    assert bool(ThreatModel(norm, Fraction(str(eps))).contains(found, x).all())
    other = robustcli.attack(model, x, y, norm=norm, eps=eps, steps=3, seed=1)
    assert not torch.equal(other, found)


def test_an_attack_leaves_the_model_as_it_was(run: robustcli.Run, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    model = run.load().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    robustcli.attack(model, x, y, norm="linf", eps=0.1, attack="mim", steps=2)
    robustcli.evaluate(model, (x, y), norm="linf", eps=0.1, attack="pgd", steps=2)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluate_agrees_with_the_evaluation_of_the_run(run: robustcli.Run) -> None:
    settings: dict[str, Any] = {"attack": "pgd", "steps": 3, "examples": 60}
    result = robustcli.evaluate(run.load(), "digits", norm="linf", eps="0.1", **settings)
    stored = run.evaluations["pgd"]
    assert result.evaluation.survivors == stored.survivors
    assert result.evaluation.parameters == stored.parameters
    assert (result.robust, result.interval, result.verdict) == (stored.accuracy, stored.interval, stored.verdict)
    lines = read_per_image(run.folder / "evaluations" / "pgd.csv")
    assert [image.broken_by for image in result.per_image] == [line.broken_by for line in lines]
    assert result.clean == sum(line.clean == line.label for line in lines) / 60
    assert result.survives.sum() == stored.correct


def test_evaluate_and_attack_find_the_same_images(run: robustcli.Run, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    model = run.load()
    how: dict[str, Any] = {"norm": "linf", "eps": 0.1, "attack": "pgd", "steps": 5, "seed": 3}
    result = robustcli.evaluate(model, (x.numpy(), y.numpy()), **how)
    points = robustcli.attack(model, x, y, **how)
    broken = torch.tensor([image.broken_by == "pgd" for image in result.per_image])
    assert 0 < int(broken.sum()) < len(x)
    torch.testing.assert_close(result.x_adv[broken], points[broken], atol=1e-6, rtol=0)
    assert torch.equal(result.x_adv[~broken], x[~broken])


def test_any_callable_can_be_attacked_and_evaluated(run: robustcli.Run, digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    model = run.load()
    how: dict[str, Any] = {"norm": "linf", "eps": 0.1, "attack": "pgd", "steps": 3}
    torch.testing.assert_close(
        robustcli.attack(lambda images: model(images), x, y, **how), robustcli.attack(model, x, y, **how)
    )
    one = robustcli.evaluate(lambda images: model(images), (x, y), **how)
    assert one.evaluation.survivors == robustcli.evaluate(model, (x, y), **how).evaluation.survivors


class _Wrapper:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def predict(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    __call__ = predict


_GLOBAL: list[nn.Module] = []


def _by_global_name(x: Tensor) -> Tensor:
    return torch.cat([_of_a_list(part) for part in x.split(8)])


def _of_a_list(x: Tensor) -> Tensor:
    return torch.stack([model(x) for model in _GLOBAL]).mean(0)


@pytest.mark.parametrize(
    "function_of",
    [
        lambda model: lambda x: model(x),
        lambda model: lambda x, network=model: network(x),
        lambda model: model.forward,
        _Wrapper,
        lambda model: _Wrapper(model).predict,
        lambda model: partial(nn.Module.__call__, model),
        lambda model: lambda x: _Wrapper(model)(x),
        lambda _: _by_global_name,
    ],
)
def test_networks_of_a_callable_are_attacked_in_eval_mode_and_restored(
    function_of: Callable[[nn.Module], Callable[[Tensor], Tensor]], digits: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
    model = nn.Sequential(*layers).train()
    _GLOBAL[:] = [model]
    x, y = (part[:8] for part in digits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    how: dict[str, Any] = {"norm": "linf", "eps": 0.1, "attack": "pgd", "steps": 2}
    expected = robustcli.attack(model, x, y, **how)
    assert torch.equal(robustcli.attack(function_of(model), x, y, **how), expected)
    robustcli.evaluate(function_of(model), (x, y), **how)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: nn.Flatten()(x.sub_(0.5)), "changes its images in place"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).half(), r"weights are float16.*model\.float\(\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(65, 10)), "fails on an image of 1x8x8"),
    ],
)
def test_a_model_that_fails_or_changes_its_images_is_one_clear_error(
    model: Any, message: str, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:4].clone() for part in digits)
    before = x.clone()
    with pytest.raises(EvaluationError, match=message):
        robustcli.attack(model, x, y, norm="linf", eps=0.1)
    with pytest.raises(EvaluationError, match=message):
        robustcli.evaluate(model, (x, y), norm="linf", eps=0.1, attack="pgd")
    assert torch.equal(x, before)


def test_autoattack_is_the_default_and_a_broken_model_is_suspect(digits: tuple[Tensor, Tensor]) -> None:
    x, y = digits
    result = robustcli.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (x, y), norm="linf", eps=0.3)
    assert result.evaluation.evaluator == "autoattack"
    assert result.verdict == "SUSPECT"
    assert "guessing" in str(result)


def test_a_part_of_autoattack_may_be_named() -> None:
    x, y = torch.rand((8, 1, 8, 8)), torch.arange(8)
    result = robustcli.evaluate(_network(), (x, y), norm="linf", eps=0.1, attack="apgd-t")
    assert result.evaluation.evaluator == "autoattack"
    assert result.evaluation.parameters["attacks"] == ["apgd-t"]
    with pytest.raises(RobustCliError, match="unknown parameter of 'autoattack'"):
        robustcli.evaluate(_network(), (x, y), norm="linf", eps=0.1, attack="apgd-t", stepps=3)


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


X, Y = torch.full((3, 1, 8, 8), 0.5), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 255 * X}, "pixels from 127.5 to 127.5; expected \\[0, 1\\]: divide by 255"),
        ({"x": X - 1}, "normalization belongs inside the model"),
        ({"x": X[0]}, "shape \\(1, 8, 8\\); expected \\(n, c, h, w\\)"),
        ({"x": X.permute(0, 2, 3, 1)}, "channels last"),
        ({"x": X.tolist()}, "found list; expected a NumPy array or a tensor"),
        ({"x": X.numpy().astype(object)}, "found object; expected floats in"),
        ({"seed": "a"}, "seed: found 'a'; expected a whole number, 0 or more"),
        ({"batch_size": 0}, "batch_size: found 0; expected a whole number, 1 or more"),
        ({"attack": None}, "attack: found NoneType; expected a name"),
        ({"eps": float("nan")}, "threat.eps: 'nan' is not a number"),
        ({"x": X.long()}, "expected floats in \\[0, 1\\], or uint8"),
        ({"y": Y[:2]}, "shape \\(2,\\) for 3 images"),
        ({"y": torch.eye(10)[:3]}, "use y.argmax\\(1\\)"),
        ({"y": Y.float()}, "expected whole numbers"),
        ({"y": Y + 8}, "the model has 10 logits"),
        ({"eps": 8}, "write 8/255"),
        ({"eps": -1}, "must be >= 0"),
        ({"norm": "l3"}, "'l3' is not one of the choices"),
        ({"attack": "pdg"}, "did you mean 'pgd'"),
        ({"attack": "autoattack"}, "is an evaluator; use robustcli.evaluate"),
        ({"attack": "none"}, "attacks nothing"),
        ({"stepps": 3}, "did you mean 'steps'"),
        ({"steps": 1.5}, "1.5 is not a whole number"),
        ({"model": "best.pt"}, "robustcli.load"),
        ({"model": lambda x: x}, "expected logits"),
    ],
)
def test_wrong_input_of_an_attack_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    arguments = {"model": _network(), "x": X, "y": Y, "norm": "linf", "eps": 0.1, **change}
    with pytest.raises(RobustCliError, match=message):
        robustcli.attack(**arguments)


@pytest.mark.parametrize(
    "settings", [{"batch_size": 0}, {"seed": "a"}, {"seed": 1.0}, {"examples": 2.0}, {"examples": 0}]
)
def test_numbers_of_an_evaluation_are_checked(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(RobustCliError, match=f"{name}: found .*; expected a whole number"):
        robustcli.evaluate(_network(), (X, Y), norm="linf", eps=0.1, attack="pgd", **settings)


@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_cannot_read_are_copied() -> None:
    x = np.linspace(0, 1, 192, dtype=np.float32).reshape(3, 1, 8, 8)
    y = np.array([2, 1, 0])
    held = x.copy()
    held.flags.writeable = False
    expected = robustcli.attack(_network(), x, y, norm="linf", eps=0, steps=1)
    for images, labels in ((x[::-1][::-1].astype(">f4"), y.astype(">i8")), (held, Y.numpy()[::-1])):
        assert np.array_equal(robustcli.attack(_network(), images, labels, norm="linf", eps=0, steps=1), expected)
    flipped = robustcli.attack(_network(), x[..., ::-1], y, norm="linf", eps=0, steps=1)
    assert np.array_equal(flipped, x[..., ::-1])


def test_load_refuses_arguments_that_it_would_not_use(run: robustcli.Run) -> None:
    for given in ({"mean": 0.5, "std": 0.5}, {"image": (1, 8, 8)}, {"classes": 3}):
        with pytest.raises(RobustCliError, match=rf"^{' and '.join(given)}: .* has its own; leave out"):
            robustcli.load(run.checkpoint, **given)
    with pytest.raises(RobustCliError, match="classes: those of the data are used"):
        robustcli.load(run.checkpoint, data="digits", classes=3)
    with pytest.raises(RobustCliError, match=r"architecture: found .* without a name"):
        robustcli.load(run.checkpoint, architecture={"width": 3})


def test_images_of_bytes_are_scaled() -> None:
    images = (X * 255).to(torch.uint8)
    found = robustcli.attack(_network(), images, Y, norm="linf", eps="8/255", steps=1)
    assert found.dtype == torch.float32
    assert float((found - images.float() / 255).abs().max()) <= 8 / 255 + 1e-6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "expected \\(x, y\\), a name, a path or a mapping"),
        ("cifar99", "is not a data set, folder or .npz file"),
        ({"name": "digits", "rooot": "x"}, "rooot"),
    ],
)
def test_wrong_data_of_an_evaluation_is_one_clear_error(data: Any, message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        robustcli.evaluate(_network(), data, norm="linf", eps=0.1, attack="clean")


def test_a_model_of_other_classes_than_the_data_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 11))
    with pytest.raises(RobustCliError, match="10 classes; the model gives 11 logits"):
        robustcli.evaluate(network, "digits", norm="linf", eps=0.1, attack="clean")


@pytest.mark.parametrize("eps", ["8/255", 8 / 255, Fraction(8, 255), np.float64(8 / 255)])
def test_a_spec_of_python_values_is_that_of_the_file(eps: Any, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    from robustcli.specs.yamlfile import to_yaml

    path.write_text(to_yaml({**TINY, "threat": {"norm": "linf", "eps": Fraction(8, 255)}}), encoding="utf-8")
    ours = robustcli.spec({**TINY, "threat": {"norm": "linf", "eps": eps}})
    assert ours == robustcli.spec(path) == ExperimentSpec.read(path)
    assert ours.threat.eps == Fraction(8, 255)


def test_overrides_change_a_spec_as_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(robustcli.spec(TINY).to_yaml(), encoding="utf-8")
    words = ("seed=3", "train.epochs=7", "defense.steps=4")
    expected = ExperimentSpec.read(path, words)
    assert robustcli.spec(TINY, seed=3, train__epochs=7, defense__steps=4) == expected
    assert robustcli.spec(robustcli.spec(TINY), **{"seed": 3, "train.epochs": 7, "defense.steps": 4}) == expected
    assert robustcli.spec("demo/digits_pgd_at", seed=2).seed == 2


def test_a_part_and_a_key_of_it_can_be_given_in_any_order() -> None:
    chosen = robustcli.spec(TINY, defense__steps=4, defense="trades")
    assert (chosen.defense.name, chosen.defense.parameters["steps"]) == ("trades", 4)
    with pytest.raises(SpecError, match=r"'free' does not take steps, .* write defense=free instead"):
        robustcli.spec(TINY | {"defense": {"name": "pgd_at", "steps": 4}}, defense__name="free")


def test_a_wrong_spec_lists_all_problems() -> None:
    with pytest.raises(SpecError) as caught:
        robustcli.spec(TINY, train__epocs=3, defense__name="pgd_att")
    assert len(caught.value.problems) == 2
    assert "did you mean 'epochs'" in str(caught.value)


@pytest.mark.parametrize("call", [robustcli.load, robustcli.spec])
def test_a_missing_file_is_named(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RobustCliError, match=r"nothing\.yaml"):
        call(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("call", [robustcli.load, robustcli.spec])
def test_what_names_nothing_is_one_clear_error(call: Callable[..., Any]) -> None:
    with pytest.raises(RobustCliError, match="found NoneType; expected a name or a path"):
        call(None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": 5}, "data: found int; expected a name or a path"),
        ({"weights": 5}, "weights: found int"),
        ({"weights_key": 5}, "weights_key: found int"),
        ({"architecture": 5}, "architecture: found int; expected a name or a mapping"),
        ({"device": None}, "device: .*None"),
    ],
)
def test_wrong_types_of_load_are_one_clear_error(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RobustCliError, match=message):
        robustcli.load("timm:resnet18", **given)


def test_data_of_evaluations_may_be_a_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x_test=(255 * X).permute(0, 2, 3, 1).to(torch.uint8).numpy(), y_test=Y.numpy())
    assert robustcli.images(tmp_path / "x.npz")[0].shape == X.shape
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    found = robustcli.evaluate(network, tmp_path / "x.npz", norm="linf", eps=0.1, attack="clean")
    assert len(found.per_image) == 3
    for data in (None, (X, Y, Y)):
        with pytest.raises(RobustCliError, match=r"data: found .* expected \(x, y\), a name, a path"):
            robustcli.evaluate(_network(), data, norm="linf", eps=0.1)  # type: ignore[arg-type]


def test_a_folder_of_several_runs_lists_them(run: robustcli.Run, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"s{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"s{number}" / "checkpoints" / "best.pt").touch()
    with pytest.raises(RobustCliError, match=r"holds 3 runs(.|\n)*s0\n(.|\n)*s2"):
        robustcli.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RobustCliError, match="a folder without a run"):
        robustcli.load(tmp_path / "empty")
    # A folder with one run stands for that run.
    assert isinstance(robustcli.load(run.folder.parent), nn.Module)
