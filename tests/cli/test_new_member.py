"""`robust new` writes working members; `robust check-member` runs the contract tests of any member."""

import ast
import json
import subprocess
from pathlib import Path

import forked
import pytest

import robustcli
from robustcli.errors import RobustCliError
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.workflows.new import KINDS, new_member

pytestmark = pytest.mark.slow

# As in the guide for new members, without a declared cost or advice.
MARGIN_AT = '''"""Adversarial training on the margin."""

from dataclasses import dataclass

from torch import Tensor, nn

from robustcli.attacks.losses import shares_of
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES, Batch, StatelessLoss
from robustcli.defenses.min_max import MinMax
from robustcli.registry.types import Size


@dataclass(frozen=True, kw_only=True)
class HingeLoss(StatelessLoss):
    """max(0, target - margin), mean over the batch."""

    target: float

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x_adv)
        first, second = logits.topk(2, dim=1).values.split(1, dim=1)
        hinge = (self.target - logits + first.where(logits < first, second)).clamp_min(0)
        return (shares_of(batch.y, logits) * hinge).sum(1).mean()


@DEFENSES.register("margin_at", smoke={"steps": 2})
def margin_at(*, target: float = 1.0, steps: Size = 10) -> MinMax:
    """Hinge loss on the logit margin of adversarial examples.

    Attack and loss use the same margin, so they pull in opposite directions on one quantity. Batch statistics are
    updated by the adversarial batch.

    Args:
        target: margin to ask for, in logits.
        steps: gradient steps of the attack.

    Reference: illustration only; compare Crammer and Singer, JMLR 2001.
    """
    return MinMax(attack=Pgd(steps=steps, loss="margin"), loss=HingeLoss(target=target))
'''
SPEC = """\
name: margin
data: {name: digits, train_size: 64}
architecture: {name: small_cnn, width: 2}
threat: {norm: linf, eps: 8/255}
defense: {name: margin_at, steps: 1, weights: {name: awp}}
train: {epochs: 1, batch_size: 32, check_examples: 10, device: cpu}
evaluate: {clean: {name: clean, examples: 20}}
"""


def robust(folder: Path, *words: object, installed: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forked.robust(*words, cwd=folder, path=[] if installed is None else [installed])


def pretend_to_install(package: Path) -> Path:
    """Imitate `pip install --editable` of a package made by `robust new`."""
    info = package / f"{package.name}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[robustcli]\n{package.name} = {package.name}\n")
    return package


def holding(folder: Path, source: str) -> Path:
    """A package with one module of members."""
    package = folder / "their_members"
    (package / "their_members").mkdir(parents=True)
    (package / "their_members/__init__.py").write_text("")
    (package / "their_members/members.py").write_text(source)
    return pretend_to_install(package)


def test_every_family_has_a_kind_of_new_members() -> None:
    assert sorted(kind.family for kind in KINDS.values()) == sorted(FAMILIES)


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package with a new member of every kind."""
    package = tmp_path_factory.mktemp("new") / "my_members"
    for kind in KINDS:
        new_member(kind, f"new_{kind}", package=package)
    assert 'my_members = "my_members"' in (package / "pyproject.toml").read_text()
    return pretend_to_install(package)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_member_of_a_new_package_passes_every_check(kind: str, one_of_each: Path, tmp_path: Path) -> None:
    checked = robust(tmp_path, "check-member", f"new_{kind}", installed=one_of_each)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "every check passed" in checked.stdout
    assert "advice" not in checked.stdout


def test_new_members_train_together(one_of_each: Path, tmp_path: Path) -> None:
    spec = """
name: mine
data: {name: new_dataset, train_size: 32, mixer: new_mixer}
architecture: {name: new_architecture, preprocess: new_preprocessor, width: 4}
threat: {norm: linf, eps: 8/255}
defense: {name: new_defense, steps: 1, weights: new_weights, averaging: new_averaging, regularizer: new_regularizer}
train: {epochs: 1, batch_size: 32, check_examples: 10, device: cpu, optimizer: new_optimizer, schedule: new_schedule}
evaluate: {one: {name: new_evaluator, examples: 10}, two: {name: attack, attack: new_attack, examples: 10}}
"""
    (tmp_path / "spec.yaml").write_text(spec)
    trained = robust(tmp_path, "train", "spec.yaml", "--quiet", installed=one_of_each)
    assert trained.returncode == 0, trained.stderr
    assert "mine, seed 0: finished" in trained.stdout


def test_an_installed_robustcli_gets_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "brand_new" not in catalog("attacks")  # read before the folder seems to be another one
    monkeypatch.setattr(robustcli, "__file__", str(tmp_path / "site-packages/robustcli/__init__.py"))
    with pytest.raises(RobustCliError, match=r"belongs to an installed package; write --package my_members"):
        new_member("attack", "brand_new")


def test_a_second_member_joins_the_package(tmp_path: Path) -> None:
    for kind, name in (("attack", "one"), ("defense", "other")):
        written = robust(tmp_path, "new", kind, name, "--package", "my_members")
        assert written.returncode == 0, written.stderr
        assert f"next: robust check-member {name}" in written.stdout
    files = sorted(path.name for path in (tmp_path / "my_members/my_members").iterdir())
    assert files == ["__init__.py", "one.py", "other.py"]
    again = robust(tmp_path, "new", "attack", "one", "--package", "my_members")
    assert again.returncode == 2
    assert "one.py: this file already exists" in again.stderr


def test_a_member_is_written_into_a_folder(tmp_path: Path) -> None:
    assert robust(tmp_path, "new", "attack", "two_words", "--into", tmp_path).returncode == 0
    tree = ast.parse((tmp_path / "two_words.py").read_text())
    assert [node.name for node in tree.body if isinstance(node, ast.ClassDef)] == ["TwoWords"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("defence", "one"), "'defence' is not a kind of member; did you mean 'defense'?"),
        (("defense", "trades"), "defenses have a member 'trades' already"),
        (("defense", "My-AT"), "'My-AT' is not a valid name; use lower-case letters"),
        (("defense", "class"), "'class' is not a valid name"),
        (("defense", "one", "--into", "nowhere"), "--into: there is no folder 'nowhere'"),
        (("defense", "one", "--into", ".", "--package", "p"), "use only one of them"),
        (("defense", "one", "--package", "1st"), "is not a valid module name"),
    ],
)
def test_what_cannot_be_written_is_refused(words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    refused = robust(tmp_path, "new", *words)
    assert refused.returncode == 2
    assert text in " ".join(refused.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_defense_of_one_file_is_checked_shown_and_trained(tmp_path: Path) -> None:
    package = holding(tmp_path, MARGIN_AT)
    checked = robust(tmp_path, "check-member", "margin_at", installed=package)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "advice costs_what_it_declares: no cost is declared; write passes=(11, 10, 1)" in checked.stdout
    assert "advice says_when_to_use_it: no paragraph that begins with When to use: or First setting:" in checked.stdout
    assert "margin to ask for, in logits." in robust(tmp_path, "show", "margin_at", installed=package).stdout
    (tmp_path / "spec.yaml").write_text(SPEC)
    trained = robust(tmp_path, "train", "spec.yaml", "--quiet", installed=package)
    assert trained.returncode == 0, trained.stderr
    (results,) = (tmp_path / "runs").rglob("results.json")
    assert json.loads(results.read_text())["evaluations"]["clean"]["total"] == 20


@pytest.mark.parametrize(
    ("sound", "broken", "check"),
    [
        ("shares_of(batch.y, logits)", "shares_of(labels_of(batch.y), logits)", "smooths_only_its_loss"),
        ('smoke={"steps": 2}', 'smoke={"steps": 2}, passes=(1, 2, 3)', "costs_what_it_declares"),
        ("        steps: gradient steps of the attack.\n", "", "has_reference_and_describes_every_parameter"),
        ("logits = model(batch.x_adv)", "logits = model.eval()(batch.x_adv)", "restores_modes"),
    ],
)
def test_a_failed_check_is_named(sound: str, broken: str, check: str, tmp_path: Path) -> None:
    source = MARGIN_AT.replace("import shares_of", "import labels_of, shares_of")
    assert sound in source
    checked = robust(tmp_path, "check-member", "margin_at", installed=holding(tmp_path, source.replace(sound, broken)))
    assert checked.returncode == 1
    assert f"failed {check}" in checked.stdout
    assert check in checked.stderr


UNDERIVED = """
from dataclasses import dataclass

from robustcli.attacks import ATTACKS


@ATTACKS.register("bare")
@dataclass(frozen=True, kw_only=True)
class Bare:
    \"\"\"One step along the signs of the gradient, without a base class.

    Reference: none.
    \"\"\"

    def __call__(self, model, x, y, threat, rng):
        from robustcli.attacks.fgsm import Fgsm

        return Fgsm()(model, x, y, threat, rng)
"""


def test_a_member_without_the_base_class_is_one_error(tmp_path: Path) -> None:
    package = holding(tmp_path, UNDERIVED)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("margin_at, steps: 1, weights: {name: awp}", "natural"))
    assert robust(tmp_path, "train", "spec.yaml", "--quiet").returncode == 0
    for words in (("check-member", "bare"), ("eval", "runs", "--attack", "bare", "--examples", "20", "--quiet")):
        done = robust(tmp_path, *words, installed=package)
        assert done.returncode == 2, done.stdout
        text = " ".join(done.stderr.split())
        assert "their_members.members.Bare does not have " in text
        assert " is_black_box, " in text
        assert "derive it from robustcli.attacks.Attack" in text
    assert not list((tmp_path / "evals").rglob("*.json"))


def test_what_is_no_member_cannot_be_checked(tmp_path: Path) -> None:
    unknown = robust(tmp_path, "check-member", "tradess")
    assert unknown.returncode == 2
    assert "there is no member 'tradess'; did you mean 'trades'?" in unknown.stderr
    assert "did you mean 'defenses'?" in robust(tmp_path, "check-member", "trades", "--family", "defense").stderr
