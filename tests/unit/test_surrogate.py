"""Fast search: the network verifies proposals of a faster copy, and samples bound what they miss."""

import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustcli.attacks import Attack
from robustcli.attacks.pgd import Pgd
from robustcli.attacks.surrogate import Surrogate, SurrogateCopy
from robustcli.contracts.networks import conv_net, images, linear_net
from robustcli.errors import EvaluationError
from robustcli.evaluation import searches
from robustcli.evaluation.evidence import Evidence
from robustcli.evaluation.gather import gather
from robustcli.evaluation.journal import NO_JOURNAL, FolderJournal
from robustcli.evaluation.run_attack import AttackOutcome
from robustcli.evaluators import AttackContext, Evaluator, Stage
from robustcli.evaluators.autoattack import AutoAttack
from robustcli.evaluators.worst_case import WorstCase
from robustcli.statistics import unseen_at_most
from robustcli.threat.noise import IndexedNoise, Noise
from robustcli.threat.threat import ThreatModel

LINF = ThreatModel("linf", Fraction(1, 40))
COUNT = 40


def case() -> tuple[nn.Module, Tensor, Tensor]:
    model, x = conv_net(classes=4).eval(), images(COUNT)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def gathered(evaluator: Any, journal: Any = NO_JOURNAL, threat: ThreatModel = LINF) -> Evidence:
    model, x, y = case()
    return gather(evaluator, model, x, y, threat, IndexedNoise(0, torch.arange(COUNT)), journal)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class Standardized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.25


class Own(nn.BatchNorm2d):
    """A copy that may compute something else."""


class TestSearchNetwork:
    def test_in_single_precision_it_is_the_network(self) -> None:
        model, x, _ = case()
        with torch.no_grad():
            assert torch.allclose(SurrogateCopy(model)(x), model(x), atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("affine", [True, False])
    def test_its_batch_norms_are_those_of_the_network(self, dtype: torch.dtype, affine: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=affine), nn.ReLU(), Flat())
        for _ in range(5):
            model(3 * images(COUNT) + 1)
        if affine:
            nn.init.normal_(model[1].weight)
            nn.init.normal_(model[1].bias)
        model.to(dtype).eval().requires_grad_(False)
        x = images(COUNT, dtype=dtype).requires_grad_()
        search = SurrogateCopy(model)
        (found,) = torch.autograd.grad(search(x).square().sum(), x)
        expected, logits = torch.autograd.grad(model(x).square().sum(), x)[0], model(x)
        # The logits of the copy are rounded to single precision in any case.
        rounding = {torch.float32: 1e-4, torch.float64: 1e-6}[dtype] * float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=rounding)
        assert torch.allclose(search(x).to(dtype), logits, rtol=1e-5, atol=1e-5)
        assert "forward" in vars(search.network[1])  # type: ignore[index]
        assert "forward" not in vars(model[1]), "the network itself is as it was"

    @pytest.mark.parametrize("convolutions", [1, 2, 3])
    def test_few_convolutions_stay_in_the_plain_format(self, convolutions: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions)]
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 4)).eval().requires_grad_(False)
        x, formats = images(COUNT, 3), []
        for precision in ("fp32", "fast"):
            search = SurrogateCopy(model, precision=precision)  # type: ignore[arg-type]
            search.network.register_forward_pre_hook(lambda _module, inputs: formats.append(inputs[0].is_contiguous()))
            search(x)
            assert search.network[0].weight.is_contiguous() == (convolutions <= 2)  # type: ignore[index]
        assert formats == 2 * [convolutions <= 2]
        if convolutions <= 2:
            assert torch.equal(SurrogateCopy(model)(x), model(x)), "the same bits as the network"

    @pytest.mark.parametrize(
        ("layer", "height", "width"),
        [
            (nn.Conv2d(1, 5, 4, 2, 1), 10, 10),
            (nn.Conv2d(3, 5, 3, 2, 1, bias=False), 9, 12),
            (nn.Conv2d(3, 5, (3, 5), 2, (0, 2)), 11, 13),
            (nn.Conv2d(2, 5, 2, 3), 11, 10),
            (nn.Conv2d(4, 5, 3, 3, 2), 9, 10),
            (nn.Conv2d(3, 5, 4, 4), 9, 8),
        ],
    )
    @pytest.mark.parametrize("precision", ["fp32", "fast"])
    def test_strided_convolutions_of_images_have_the_usual_gradient(
        self, layer: nn.Conv2d, height: int, width: int, precision: Any
    ) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(Standardized(), layer, nn.ReLU(), nn.Flatten()).eval().requires_grad_(False)
        x = torch.rand(6, layer.in_channels, height, width).requires_grad_()
        search = SurrogateCopy(model, precision=precision)
        assert "forward" in vars(search.network[1])  # type: ignore[index]
        assert "forward" not in vars(model[1]), "the network itself is as it was"
        (found,) = torch.autograd.grad(search(x).square().sum(), x)
        (expected,) = torch.autograd.grad(model(x).square().sum(), x)
        rounding = {"fp32": 1e-5, "fast": 0.03}[precision] * float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=rounding)
        if precision == "fp32":
            assert torch.equal(search(x), model(x)), "the same bits as the network"
            assert torch.equal(search(x.detach()), model(x))

    def test_other_convolutions_stay_as_they_are(self) -> None:
        normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 2, 2))
        layers: list[nn.Module] = [
            nn.Conv2d(1, 2, 2),
            nn.Conv2d(6, 2, 2, 2),
            nn.Conv2d(1, 2, 2, (2, 1)),
            nn.Conv2d(1, 2, 2, 2, dilation=2),
            nn.Conv2d(2, 2, 2, 2, groups=2),
            nn.Conv2d(1, 2, 2, 2, 1, padding_mode="reflect"),
            normed,
        ]
        for layer in layers:
            search = SurrogateCopy(nn.Sequential(layer).eval())
            assert not any("forward" in vars(module) for module in search.network.modules()), layer

    def test_batch_norms_that_see_the_batch_stay_as_they_are(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(1).train(), Own(1)).eval()
        model[1].train()
        search = SurrogateCopy(model)
        assert not any("forward" in vars(module) for module in search.network.modules())

    def test_in_bf16_it_returns_nearly_the_same_logits_in_float32(self) -> None:
        model, x, _ = case()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        search = SurrogateCopy(model, precision="fast")
        with torch.no_grad():
            logits, exact = search(x), model(x)
        assert logits.dtype == torch.float32
        assert 0 < float((logits - exact).abs().max()) < 0.05 * float(exact.abs().max())
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), "the network itself was changed"

    @pytest.mark.parametrize("precision", ["fp32", "fast"])
    def test_gradients_reach_the_images_and_no_weight(self, precision: Any) -> None:
        model, x, _ = case()
        model.requires_grad_(False)
        search = SurrogateCopy(model, precision=precision)
        x = x.requires_grad_()
        (found,) = torch.autograd.grad(search(x).square().sum(), x)
        (exact,) = torch.autograd.grad(model(x).square().sum(), x)
        cosine = torch.nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
        assert float(cosine.min()) > 0.95
        assert all(parameter.grad is None for parameter in search.parameters())


@dataclass(frozen=True)
class Given(Surrogate):
    """A network that exists already."""

    network: nn.Module

    @property
    def is_copy(self) -> bool:
        return isinstance(self.network, SurrogateCopy)

    @property
    def is_coarse(self) -> bool:
        return isinstance(self.network, SurrogateCopy) and self.network.is_fast

    def __call__(self, model: nn.Module) -> nn.Module:
        return self.network


@dataclass(frozen=True)
class Hasty(Evaluator):
    """One PGD that searches with a given copy."""

    copy: nn.Module
    attack: Any
    batch_size: int = 50

    def stages(self, case: AttackContext) -> list[Stage]:
        return [Stage(name="pgd", attack=self.attack, noise="pgd", surrogate=Given(self.copy))]


class TestPrediction:
    @pytest.mark.parametrize("precision", ["fp32", "fast"])
    def test_points_that_fool_only_the_copy_break_no_image(self, precision: Any) -> None:
        """Images that only the copy finds broken are attacked again with the network."""
        model, _, _ = case()
        liar = SurrogateCopy(model, precision=precision)
        liar.network = nn.Sequential(model, Rolled())
        found = gathered(Hasty(liar, Pgd(steps=10, keep="fooled")))
        honest = gathered(Hasty(model, Pgd(steps=10, keep="fooled")))
        assert torch.equal(found.survives, honest.survives)
        assert 0 < int(found.survives.sum()) < COUNT

    def test_survivors_get_their_last_steps_with_the_network(self) -> None:
        """A copy without gradients does not move images; a few steps of the network still break some."""
        model, _, _ = case()
        blind = SurrogateCopy(model, precision="fast")
        blind.network = Blind(model)
        assert 0 < int(gathered(Hasty(blind, Pgd(steps=1, start="clean"))).survives.sum()) < COUNT

    def test_in_single_precision_nothing_is_added(self) -> None:
        model, _, _ = case()
        blind = SurrogateCopy(model)
        blind.network = Blind(model)
        assert int(gathered(Hasty(blind, Pgd(steps=1, start="clean"))).survives.sum()) == COUNT

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    @pytest.mark.slow
    def test_fast_autoattack_breaks_what_the_slow_one_does(self, norm: Any) -> None:
        threat = ThreatModel(norm, {"linf": Fraction(1, 40), "l2": Fraction(1, 3), "l1": Fraction(1)}[norm])
        slow, fast = (
            gathered(AutoAttack(attacks=("apgd-ce", "apgd-t", "fab-t"), precision=precision), threat=threat)  # type: ignore[arg-type]
            for precision in ("fp32", "fast")
        )
        assert int((slow.survives != fast.survives).sum()) <= 1
        assert 0 < int(slow.survives.sum()) < COUNT

    def test_passes_of_copy_and_network_are_counted(self) -> None:
        model, _, _ = case()
        found = gathered(Hasty(SurrogateCopy(model), Pgd(steps=3, keep="last")))
        # Clean, three steps by the copy, one comparison of both, and the verdict.
        assert (found.forwards, found.gradients) == (COUNT + 3 * COUNT + 2 * COUNT + COUNT, 3 * COUNT)


def test_fab_is_precise_even_with_precision_fast() -> None:
    stages = AutoAttack(precision="fast").stages(AttackContext(LINF, (1, 8, 8), 10))
    model, _, _ = case()
    is_fast = {stage.name: stage.faster is not None and stage.faster(model).is_fast for stage in stages}
    assert is_fast == {"apgd-ce": True, "apgd-t": True, "fab-t": False, "square": True}
    assert not any(stage.surrogate(model).is_fast for stage in stages if stage.surrogate is not None)


class TestChoiceOfPrecision:
    def test_without_a_clear_gain_the_search_is_that_in_fp32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(searches, "_gain", lambda *_args, **settings: 1.15 if settings["has_gradients"] else 1.05)
        settings: Any = {"attacks": ("apgd-ce", "square")}
        exact, found = (gathered(AutoAttack(precision=precision, **settings)) for precision in ("fp32", "fast"))  # type: ignore[arg-type]
        assert 0 < int(exact.survives.sum()) < COUNT
        # The forwards of Square also depend on measured times.
        assert found.stages[0].forwards == exact.stages[0].forwards
        assert found.gradients == exact.gradients
        assert torch.equal(found.broken_by, exact.broken_by)
        assert torch.equal(found.margins, exact.margins)
        assert all(torch.equal(found.points[number], exact.points[number]) for number in exact.points)
        assert exact.warnings == ()
        assert [text.split(",")[0] for text in found.warnings] == [
            f"precision fast: {name} searched in fp32" for name in ("apgd-ce", "square")
        ]

    def test_with_a_clear_gain_it_is_in_bf16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def gain(faster: Any, usual: Any, batch: Tensor, *, has_gradients: bool) -> float:
            asked.append((faster.is_fast, usual.is_fast, len(batch), has_gradients))
            return 1.3

        monkeypatch.setattr(searches, "_gain", gain)
        monkeypatch.setattr(searches, "is_native", lambda _precision, _device: True)
        found = gathered(AutoAttack(attacks=("apgd-ce", "square"), precision="fast", batch_size=25))
        assert found.warnings == ()
        survivors = found.stages[1].entered
        sizes = [len(part) for part in torch.arange(survivors).split(25)]
        # Two batches of APGD, of 25 and 15 images, are measured at a quarter; about equal sizes are measured once.
        assert asked[:2] == [(True, False, 6, True), (True, False, 3, True)]
        assert [one for one in asked[2:] if one != (True, False, sizes[0], False)] in (
            [],
            [(True, False, sizes[-1], False)],
        )

    def test_the_gain_is_that_of_the_pass_in_question(self) -> None:
        class Slow(nn.Module):
            """Slow in forwards, by default, or in gradients only."""

            def __init__(self, *, in_gradients: bool) -> None:
                super().__init__()
                self.in_gradients = in_gradients

            def forward(self, x: Tensor) -> Tensor:
                if x.requires_grad or not self.in_gradients:
                    for _ in range(20):
                        torch.ones(300, 300) @ torch.ones(300, 300)
                return x.flatten(1) * 2

        quick, x = nn.Flatten(), images(4)
        for has_gradients in (True, False):
            assert searches._gain(quick, Slow(in_gradients=False), x, has_gradients=has_gradients) > 2
            assert searches._gain(Slow(in_gradients=False), quick, x, has_gradients=has_gradients) < 1 / 2
        assert searches._gain(quick, Slow(in_gradients=True), x, has_gradients=True) > 2
        assert searches._gain(quick, Slow(in_gradients=True), x, has_gradients=False) < 2


def test_within_a_worst_case_it_uses_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 is visible in the passes: survivors get extra steps with the network."""
    monkeypatch.setattr(searches, "_gain", lambda *_args, **_settings: 2.0)
    monkeypatch.setattr(searches, "is_native", lambda _precision, _device: True)
    hasty = AutoAttack(attacks=("apgd-ce",), precision="fast")
    alone, within = gathered(hasty), gathered(WorstCase(members=[hasty]))
    assert (alone.forwards, alone.gradients) == (within.forwards, within.gradients)
    assert alone.gradients > gathered(AutoAttack(attacks=("apgd-ce",))).gradients


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    model = conv_net(classes=4).eval()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match=r"cannot be copied for the search .*engine: reference"):
        SurrogateCopy(model)


class TestCompiled:
    """Compilers fail at the first call of a program; a compiler that returns its input is fast."""

    @pytest.fixture
    def shapes(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []

        def compiled(call: Callable[[Tensor], Tensor], *, dynamic: bool) -> Callable[[Tensor], Tensor]:
            assert dynamic, "a program for every size of batch would be compiled"

            def program(x: Tensor) -> Tensor:
                seen.append(tuple(x.shape))
                return call(x)

            return program

        monkeypatch.setattr(torch, "compile", compiled)
        return seen

    def test_it_gives_what_the_copy_gives(self, shapes: list[tuple[int, ...]]) -> None:
        model, x, _ = case()
        plain, compiled = SurrogateCopy(model), SurrogateCopy(model, is_compiled=True)
        for count in (7, 1, 2):
            assert torch.allclose(plain(x[:count]), compiled(x[:count]), atol=1e-5)
        # Both passes are tried with the first batch, never with a batch of one image.
        assert [shape[0] for shape in shapes] == [7, 7, 7, 2, 2]

    def test_one_image_gets_its_own_gradient(self, shapes: list[tuple[int, ...]]) -> None:
        model, x, _ = case()
        one = x[:1].clone().requires_grad_()
        (found,) = torch.autograd.grad(SurrogateCopy(model, is_compiled=True)(one).square().sum(), one)
        (exact,) = torch.autograd.grad(model(one).square().sum(), one)
        assert torch.allclose(found, exact, atol=1e-4)

    def test_passes_that_only_compile_are_not_counted(self, shapes: list[tuple[int, ...]]) -> None:
        plain, compiled = (gathered(AutoAttack(attacks=("apgd-ce",), compile=wish)) for wish in (False, True))
        assert shapes
        assert torch.equal(plain.survives, compiled.survives)
        assert (plain.forwards, plain.gradients) == (compiled.forwards, compiled.gradients)

    def test_a_failure_is_a_warning_and_changes_no_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
            def program(x: Tensor) -> Tensor:
                raise RuntimeError("no compiler\nand a long story")

            return program

        monkeypatch.setattr(torch, "compile", broken)
        plain, compiled = (gathered(AutoAttack(attacks=("apgd-ce",), compile=wish)) for wish in (False, True))
        assert torch.equal(plain.survives, compiled.survives)
        (warning,) = compiled.warnings
        assert warning.endswith("without torch.compile, which failed (RuntimeError: no compiler)")

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
    @pytest.mark.parametrize("precision", ["fast", pytest.param("fp32", marks=pytest.mark.full)])
    def test_compiled_programs_break_the_same_images_as_the_copy(
        self, precision: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(searches, "_gain", lambda *_args, **_settings: 2.0)
        plain, compiled = (
            gathered(AutoAttack(attacks=("apgd-ce", "square"), precision=precision, compile=wish))
            for wish in (False, True)
        )
        assert compiled.warnings == plain.warnings
        assert int((plain.survives != compiled.survives).sum()) <= 1
        assert 0 < int(plain.survives.sum()) < COUNT


class Rolled(nn.Module):
    """Shifts the logits by one, so that the class always changes."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.roll(1, 1)


class Blind(nn.Module):
    """The logits of the network without a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.detach())
        return logits + 0 * x.sum((1, 2, 3))[:, None]


@dataclass(frozen=True)
class BreaksGiven(Attack):
    broken: frozenset[int]
    asked: list[list[int]]

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: Noise) -> Tensor:
        assert isinstance(rng, IndexedNoise)
        numbers = rng.index.tolist()
        self.asked.append(numbers)
        found = Pgd(steps=20, keep="fooled", loss="margin")(model, x, y, threat, rng)
        hit = torch.tensor([number in self.broken for number in numbers])
        return torch.where(hit[:, None, None, None], found, x)


@dataclass(frozen=True)
class Sampled(Evaluator):
    """Breaks given images, after attacking a sample of size `sample` first."""

    broken: frozenset[int]
    sample: int
    asked: list[list[int]]
    batch_size: int = 6

    def stages(self, case: AttackContext) -> list[Stage]:
        return [
            Stage(
                name="late", attack=BreaksGiven(self.broken, self.asked), noise="late", batch_size=6, sample=self.sample
            )
        ]


WIDE = ThreatModel("linf", Fraction(1, 5))


class TestScreen:
    def test_without_breaks_in_the_sample_the_rest_is_skipped_and_the_bound_reported(self) -> None:
        asked: list[list[int]] = []
        found = gathered(Sampled(frozenset(), 10, asked), threat=WIDE)
        assert sum(map(len, asked)) == 10
        assert bool(found.survives.all())
        assert found.stages[0].sampled == 10
        missed = unseen_at_most(10, COUNT)
        assert (
            f"late attacked 10 of 40 survivors and broke none; with 95 % confidence it would break at most {missed}"
            in (found.warnings[0])
        )

    def test_one_break_in_the_sample_makes_all_images_attacked(self) -> None:
        asked: list[list[int]] = []
        sampled = sorted(chain.from_iterable(_asked_first()))
        found = gathered(Sampled(frozenset([sampled[0], *(set(range(COUNT)) - set(sampled))]), 10, asked), threat=WIDE)
        assert sorted(chain.from_iterable(asked)) == list(range(COUNT))
        assert int(found.survives.sum()) == 9
        assert found.stages[0].sampled is None
        assert found.warnings == ()

    def test_few_survivors_are_all_attacked(self) -> None:
        asked: list[list[int]] = []
        found = gathered(Sampled(frozenset(), COUNT, asked), threat=WIDE)
        assert sum(map(len, asked)) == COUNT
        assert found.stages[0].sampled is None

    def test_killed_between_sample_and_rest_it_attacks_no_image_twice(self, tmp_path: Any) -> None:
        sampled = sorted(chain.from_iterable(_asked_first()))
        broken = frozenset([sampled[0], *(set(range(COUNT)) - set(sampled))])
        whole = gathered(Sampled(broken, 10, []), threat=WIDE)
        for left in range(1, 7):
            asked: list[list[int]] = []
            journal = FolderJournal.open(tmp_path / str(left), {})
            with pytest.raises(KeyboardInterrupt):
                gathered(Sampled(broken, 10, asked), Dying(journal, left), threat=WIDE)
            found = gathered(Sampled(broken, 10, asked), journal, threat=WIDE)
            assert torch.equal(found.broken_by, whole.broken_by)
            # The call in which the process died is repeated, nothing else.
            assert sum(map(len, asked)) <= COUNT + 6

    def test_autoattack_samples_what_seldom_breaks(self) -> None:
        case_ = AttackContext(LINF, (3, 8, 8), 10)
        samples = {stage.name: stage.sample for stage in AutoAttack(sample_first=5).stages(case_)}
        assert samples == {"apgd-ce": None, "apgd-t": None, "fab-t": 5, "square": 5}
        assert {stage.sample for stage in AutoAttack().stages(case_)} == {None}

    def test_two_stages_sample_the_same_images(self) -> None:
        first, second = _asked_first(), _asked_first()
        assert first == second


@dataclass
class Dying:
    journal: FolderJournal
    left: int

    def outcomes(self, stage: str, images: Any = None) -> Any:
        return self.journal.outcomes(stage, images)

    def keep(self, outcome: AttackOutcome) -> AttackOutcome:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.journal.keep(outcome)


def _asked_first() -> list[list[int]]:
    asked: list[list[int]] = []
    gathered(Sampled(frozenset(), 10, asked), threat=WIDE)
    return asked


@pytest.mark.parametrize(("sampled", "total"), [(1, 10), (10, 40), (20, 20), (30, 300), (200, 560), (59, 60)])
def test_the_bound_is_the_largest_number_that_would_stay_unseen_too_often(sampled: int, total: int) -> None:
    """Against the binomial coefficients themselves."""

    def unseen(number: int) -> float:
        return math.comb(total - number, sampled) / math.comb(total, sampled)

    bound = unseen_at_most(sampled, total)
    assert bound == 0 or unseen(bound) > 0.05
    assert bound == total - sampled or unseen(bound + 1) <= 0.05 + 1e-12


def test_of_many_the_bound_is_about_three_over_the_sample() -> None:
    assert unseen_at_most(300, 100_000) / 100_000 == pytest.approx(1 - 0.05 ** (1 / 300), rel=0.01)


def test_a_linear_network_may_be_copied_too() -> None:
    model = linear_net(64).eval()
    assert SurrogateCopy(model, precision="fast")(images(3)).shape == (3, model(images(3)).shape[1])
