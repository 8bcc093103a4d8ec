"""Declarations of members are checked where they are written and also hold for members of other packages."""

import ast
import inspect
import subprocess
from pathlib import Path

import forked
import pytest
import torch

import robustcli
from robustcli.errors import RobustCliError
from robustcli.evaluation import attack_choice
from robustcli.registry import catalog as catalog_module
from robustcli.registry.catalog import FAMILIES, catalog
from robustcli.registry.declarations import Declaration
from robustcli.registry.registry import Registry
from robustcli.registry.signatures import argument_docs
from robustcli.workflows.export import claims

OURS = Path(robustcli.__file__).parent

SPEC = """\
name: declared
data: digits
architecture: {ARCHITECTURE}
threat: {norm: linf, eps: 8/255}
defense: {name: DEFENSE}
train: {epochs: 1, TRAIN}
evaluate: {clean: clean}
"""

PAIR = '''"""A defense and the only network that it trains."""

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.attacks.pgd import Pgd
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import AdversarialCrossEntropy, MinMax
from robustcli.registry.types import Count, Size


@DEFENSES.register("their_pair", trains="their_net", trains_with={"channel_gate": "se"}, smoke={"steps": 1})
def their_pair(*, steps: Size = 2) -> MinMax:
    """Adversarial training of one architecture.

    Args:
        steps: gradient steps of the attack.

    Reference: made up for this test.
    """
    return MinMax(attack=Pgd(steps=steps), loss=AdversarialCrossEntropy())


@ARCHITECTURES.register("their_net")
def their_net(shape: ImageShape, /, *, width: Count = 4) -> nn.Module:
    """One convolution.

    Args:
        width: channels of it.

    Reference: made up for this test.
    """
    layers = nn.Conv2d(shape.channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(width * (shape.height - 2) * (shape.width - 2), shape.classes))
'''


def robust(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`robust` next to a package in a folder."""
    return forked.robust(*words, cwd=folder, path=[folder])


def validate(folder: Path, defense: str, architecture: str, train: str = "compile: false") -> list[str]:
    """The problems of a spec that names these members, next to a package with the modules of a folder."""
    text = SPEC.replace("DEFENSE", defense).replace("ARCHITECTURE", architecture).replace("TRAIN", train)
    (folder / "spec.yaml").write_text(text)
    done = robust(folder, "validate", "spec.yaml")
    assert done.returncode in (0, 2), done.stderr
    return done.stderr.splitlines()[1:]


def plug_in(folder: Path, source: str) -> Path:
    """Imitate an installed package with one module."""
    info = folder / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustcli]\ntheirs = their_package\n")
    (folder / "their_package.py").write_text(source)
    return folder


@pytest.mark.slow
def test_grad_align_of_another_package_has_the_problems_of_ours(tmp_path: Path) -> None:
    source = (OURS / "defenses/grad_align.py").read_text(encoding="utf-8")
    plug_in(tmp_path, source.replace('register("grad_align"', 'register("their_align"'))
    train = "precision: fp16, compile: true"
    ours, theirs = (validate(tmp_path, name, "name: small_cnn", train) for name in ("grad_align", "their_align"))
    assert len(ours) == 3
    assert theirs == [line.replace("'grad_align'", "'their_align'") for line in ours]


@pytest.mark.slow
def test_another_package_can_bring_the_architecture_that_its_defense_trains(tmp_path: Path) -> None:
    plug_in(tmp_path, PAIR)
    assert validate(tmp_path, "their_pair", "name: their_net") == []
    assert validate(tmp_path, "their_pair", "name: small_cnn, channel_gate: se") == []
    (line,) = validate(tmp_path, "their_pair", "name: small_cnn")
    assert "'their_pair' trains the architecture 'their_net', or a network with channel_gate: se; this is" in line
    (line,) = validate(tmp_path, "pgd_at", "name: their_net", "compile: true")
    assert "a compiled network does not show the parts that 'their_net' adds" in line
    checked = robust(tmp_path, "check-member", "their_pair")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_another_package_can_recognize_weights_of_its_architecture(tmp_path: Path) -> None:
    suggested = """
def suggested(tensors):
    return {"width": len(tensors["0.weight"])} if "0.weight" in tensors else None
"""
    source = PAIR.replace('register("their_net"', 'register("their_net", suggested_by="suggested"')
    plug_in(tmp_path, source + suggested)
    torch.save({"0.weight": torch.zeros(6, 1, 3, 3), "4.weight": torch.zeros(10, 216)}, tmp_path / "weights.pt")
    refused = robust(tmp_path, "eval", "weights.pt", "--data", "digits")
    assert refused.returncode == 2
    assert "those of --architecture their_net architecture.width=6" in " ".join(refused.stderr.split())


THEIR_EVALUATOR = """
@EVALUATORS.register("their_ensemble", parts="pieces", leaderboard={"pieces": ["near", "far"]})
@dataclass(frozen=True, kw_only=True)
class Ensemble(Evaluator):
    \"\"\"Two attacks.

    Args:
        pieces: attacks to run.

    Reference: made up for this test.
    \"\"\"

    pieces: tuple[Literal["near", "far"], ...] = ("near", "far")
"""


def test_an_evaluator_of_another_package_declares_parts_and_what_a_leaderboard_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "their_ensemble.py"
    path.write_text(THEIR_EVALUATOR)
    members = {member.name: member for member in catalog_module._read("their_ensemble", path, "evaluators")}
    for module in (attack_choice, claims):
        monkeypatch.setattr(module, "catalog", lambda family: members)
    assert attack_choice._evaluator_with_part("far") == {"name": "their_ensemble", "pieces": ["far"]}
    assert attack_choice._evaluator_with_part("square") is None
    assert claims.leaderboard_settings() == {"their_ensemble": {"pieces": ["near", "far"]}}


@pytest.mark.parametrize(
    ("family", "declared", "text"),
    [
        ("attacks", 'norm=("l2",)', "register(norm=...): members of attacks declare no 'norm'; did you mean 'norms'?"),
        ("attacks", "image=(1, 8, 8)", "register(image=...): members of attacks declare no 'image' (known: "),
        ("attacks", 'norms=("l2", "l3")', "register(norms=...)[1]: found 'l3'; input should be 'linf', 'l2' or 'l1'"),
        ("attacks", 'norms="l2"', "register(norms=...): found 'l2'; input should be a valid tuple"),
        ("defenses", "passes=(1, 2)", "register(passes=...)[2]: "),
        ("defenses", "two_halves=1", "register(two_halves=...): found 1; input should be a valid boolean"),
        ("datasets", "train_images=COUNT", "register(train_images=...): found 'COUNT'; write out the value"),
        ("datasets", "smoke={**SMALL}", "register(smoke=...): found '{**SMALL}'; write out the value"),
        ("datasets", "**SIZES", "register(**=...): found 'SIZES'; write out the value"),
    ],
)
def test_a_wrong_declaration_is_an_error_with_its_line(family: str, declared: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "member.py"
    path.write_text(f'\n@{family.upper()}.register("one", {declared})\ndef one(*, width: int = 1): ...\n')
    with pytest.raises(RobustCliError) as caught:
        list(catalog_module._read("member", path, family))
    assert str(caught.value).startswith(f"{path}:2: {text}")


def test_a_name_that_is_not_written_out_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "member.py"
    for written in ("", "3", "norms=()"):
        path.write_text(f"@ATTACKS.register({written})\ndef one(*, width: int = 1): ...\n")
        with pytest.raises(RobustCliError, match=r"member\.py:1: register.*the first argument is the name"):
            list(catalog_module._read("member", path, "attacks"))


def test_an_import_checks_declarations_too() -> None:
    with pytest.raises(RobustCliError, match=r"attacks 'one': register\(norm=...\): members of attacks declare no"):
        Registry("attacks").register("one", norm=("l2",))


def test_every_declaration_is_documented_and_made_by_some_member() -> None:
    documented = argument_docs(inspect.getdoc(Declaration) or "")
    assert list(documented) == list(Declaration.__dataclass_fields__)
    usual = Declaration()
    members = [member for family in FAMILIES for member in catalog(family).values()]
    for name in documented:
        assert any(getattr(member, name) != getattr(usual, name) for member in members), name


def test_checks_of_specs_name_no_member() -> None:
    """Checks of a spec use declarations of members instead of their names."""
    families = ("attacks", "defenses", "architectures", "datasets", "mixers", "regularizers")
    names = {name for family in families for name in catalog(family)} - {"none"}
    for path in (*(OURS / "specs").glob("*guards.py"), OURS / "specs/pairing.py", OURS / "specs/sizes.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not names & {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}, path
