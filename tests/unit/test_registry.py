"""Registries: names, members dropped into a folder, and members of installed packages."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest

import robustcli
from robustcli.errors import RobustCliError
from robustcli.registry import catalog as catalog_module
from robustcli.registry.catalog import FAMILIES, catalog, describe, package_of
from robustcli.registry.published import published
from robustcli.registry.registry import MemberSpec, Registry, instantiate
from robustcli.registry.signatures import REQUIRED, argument_docs
from robustcli.registry.types import Family

SCHEDULES_FOLDER = "robustcli/optimization/schedules"

MEMBER = '''"""A schedule for the tests."""

from dataclasses import dataclass

from robustcli.optimization.progress import Progress
from robustcli.registry.types import Share
from robustcli.optimization.schedules import SCHEDULES, Schedule


@SCHEDULES.register("%s")
@dataclass(frozen=True, kw_only=True)
class Halved(Schedule):
    """%s

    Args:
        share: of the full rate.

    Reference: made up for this test.
    """

    share: Share = 0.5

    def __call__(self, progress: Progress) -> float:
        return self.share
'''


def run(*words: object, path: list[Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """`robust` in a process that imports from `path` first."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, "-m", "robustcli", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_members_and_each_is_what_its_name_gives(family: str) -> None:
    registry: Registry = getattr(importlib.import_module(package_of(family)), family.upper())
    assert list(registry) == list(catalog(family)) == sorted(catalog(family))
    assert list(registry)
    for name, member in catalog(family).items():
        assert member.name == name
        held = registry.get(name)
        assert getattr(held, "func", held).__name__ == member.attribute
        assert re.search(rf'register\(\s*"{name}"', member.path.read_text(encoding="utf-8"))
        assert member.summary


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_in_the_text_of_files_are_those_that_parsing_finds(family: str) -> None:
    parsed = {
        member.name: path
        for module, path in catalog_module._own_files(family)
        for member in catalog_module._read(module, path, family)
    }
    assert {name: member.path for name, member in catalog(family).items()} == parsed


def test_a_file_is_parsed_when_one_of_its_members_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "theirs.py"
    path.write_text((MEMBER % ("halved", "Half the rate.")).replace("share: Share", "share: Unknown"))
    members = catalog_module.Members("schedules", {"halved": ("theirs", path)})
    assert (list(members), len(members), "halved" in members) == (["halved"], 1, True)
    assert "cosine" not in members
    assert members.get("cosine") is None
    with pytest.raises(RobustCliError, match="annotation 'Unknown'"):
        members["halved"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            '@SCHEDULES.register("one")\ndef one(): ...\n\n\n@SCHEDULES.register(\n    "two"\n)\ndef two(): ...\n',
            "one two",
        ),
        ("@SCHEDULES.register('one')\ndef one(): ...\n", "one"),
        ('"""Say\n\n@SCHEDULES.register("other")\n"""\n\n\n@SCHEDULES.register("o" "ne")\ndef one(): ...\n', "one"),
        ("TEXT = 'SCHEDULES.register(\"other\")'\n", ""),
    ],
)
def test_names_are_found_however_they_are_written(text: str, names: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.py"
    path.write_text(text)
    assert catalog_module._names("theirs", path, "schedules") == names.split()


def test_a_name_in_a_text_that_registers_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "theirs.py"
    path.write_text('"""Say\n\n@SCHEDULES.register("other")\n"""\n')
    members = catalog_module.Members("schedules", {"other": ("theirs", path)})
    with pytest.raises(RobustCliError, match=r'theirs\.py: register\("other"\) must decorate a function or class'):
        members["other"]


def test_two_members_with_one_name_are_refused_when_they_register() -> None:
    registry = Registry("attacks")

    def first() -> None: ...

    def second() -> None: ...

    second.__module__ = "elsewhere"
    registry.register("same")(first)
    registry.register("same")(first)  # a module that is imported again
    with pytest.raises(RobustCliError, match=r"two attacks are named 'same': in .*test_registry and in elsewhere"):
        registry.register("same")(second)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(RobustCliError, match=r"unknown name 'tradess' in defenses; did you mean 'trades'\? \(nearest "):
        describe("defenses", "tradess")
    with pytest.raises(RobustCliError, match="unknown name 'sdg' in optimizers; did you mean 'sgd'"):
        Registry("optimizers").get("sdg")


def test_parameters_are_read_as_the_signature_states_them() -> None:
    trades = describe("defenses", "trades")
    assert list(trades.parameters)[:2] == ["beta", "steps"]
    assert trades.parameters["beta"].default == 6.0
    assert trades.parameters["beta"].doc.startswith("weight of the robust term")
    assert {"attack", "weights", "averaging"} <= set(trades.replaceable)
    assert trades.replaceable["weights"].annotation == Family("weights")
    assert "loss" not in {**trades.parameters, **trades.replaceable}
    assert describe("datasets", "npz").parameters["path"].default is REQUIRED


def test_published_accuracies_are_read_from_the_table() -> None:
    lines = published("robust_resnet")
    (first,) = [line for line in lines if not line.settings and line.data == "CIFAR-10"]
    assert (first.autoattack, first.clean, first.training) == (0.5442, 0.8546, "TRADES")
    (last,) = [line for line in lines if line.settings == "budget=40.0" and line.data == "CIFAR-100"]
    assert (last.threat, last.counted_by) == ("linf 8/255", "the authors")
    places = [(line.data, line.threat, -line.autoattack) for line in lines]
    assert places == sorted(places)
    (robnet,) = [found for found in published("robnet") if found.data == "CIFAR-10"]
    assert (robnet.autoattack, robnet.settings) == (0.4748, "width=64 cells=33")
    assert [found.settings for found in published("robust_resnet") if found.clean is None] == ["activation=silu"]
    assert published("vgg16") == ()


def test_parts_of_a_member_are_built_and_replaced() -> None:
    awp = MemberSpec("weights", "awp", {"gamma": 0.25, "warmup": 1.0})
    built = instantiate(MemberSpec("defenses", "trades", {"beta": 3.0, "weights": awp}))
    assert built.loss.beta == 3.0
    assert built.weights.gamma == 0.25
    assert type(built.averaging).__name__ == "LastWeights"


@pytest.mark.parametrize(
    ("doc", "entries"),
    [
        ("No section.", {}),
        (
            "First.\n\nArgs:\n    a: one\n        more.\n    b_c: two.\n\nReference: x.",
            {"a": "one more.", "b_c": "two."},
        ),
        ("First.\n\nArgs:\n    a: one:\n        x: not a name.\n", {"a": "one: x: not a name."}),
    ],
)
def test_the_section_of_parameters_is_read(doc: str, entries: dict[str, str]) -> None:
    assert argument_docs(doc) == entries


# A family's folder, in a copy of the package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the package, to drop files into."""
    source = Path(robustcli.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "robustcli", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


@pytest.mark.slow
def test_a_file_dropped_into_a_family_is_a_member_with_no_other_edit(package: Path) -> None:
    (package / SCHEDULES_FOLDER / "halved.py").write_text(MEMBER % ("halved", "Half the rate."))
    listed = run("list", "schedules", path=[package], cwd=package)
    assert listed.returncode == 0, listed.stderr
    assert "halved" in listed.stdout
    assert "Half the rate." in listed.stdout
    shown = run("show", "halved", path=[package], cwd=package)
    assert "of the full rate." in shown.stdout
    assert str(package / SCHEDULES_FOLDER / "halved.py") in shown.stdout
    schema = json.loads(run("validate", "--schema", path=[package], cwd=package).stdout)
    share = schema["$defs"]["schedules.halved"]["properties"]["share"]
    assert share["description"] == "of the full rate."
    assert share["default"] == 0.5


def test_two_files_with_one_name_are_an_error_that_names_both(package: Path) -> None:
    (package / SCHEDULES_FOLDER / "another.py").write_text(MEMBER % ("cosine", "Another cosine."))
    listed = run("list", "schedules", path=[package], cwd=package)
    assert listed.returncode == 2
    assert "two schedules are named 'cosine'" in listed.stderr
    assert "another.py:12" in listed.stderr
    assert "smooth.py:" in listed.stderr
    assert "Traceback" not in listed.stderr


@pytest.mark.parametrize(
    ("annotation", "text"),
    [("share: Tensor = 0.5", "'Tensor' uses a name that robustcli/registry/types.py does not have")],
)
def test_a_signature_that_cannot_be_read_is_an_error_with_its_line(package: Path, annotation: str, text: str) -> None:
    source = (MEMBER % ("halved", "Half the rate.")).replace("share: Share = 0.5", annotation)
    (package / SCHEDULES_FOLDER / "halved.py").write_text(source)
    listed = run("list", "schedules", path=[package], cwd=package)
    assert listed.returncode == 2
    assert text in listed.stderr
    assert "halved.py:" in listed.stderr


# An installed package of another author

PLUGIN = '''"""Members of a package outside the project."""

from dataclasses import dataclass

from torch import nn

from robustcli.architectures import ARCHITECTURES, ImageShape
from robustcli.attacks.pgd import Pgd
from robustcli.optimization.progress import Progress
from robustcli.defenses import DEFENSES
from robustcli.defenses.min_max import MinMax
from robustcli.defenses.min_max import AdversarialCrossEntropy
from robustcli.registry.types import Count, Positive, Share
from robustcli.optimization.schedules import SCHEDULES, Schedule


@DEFENSES.register("plugged_at", smoke={"steps": 1})
def plugged_at(*, steps: Count = 2, step_size: Positive | None = None) -> MinMax:
    """Adversarial training from a plugin.

    Args:
        steps: gradient steps of the attack, counted by the plugin.
        step_size: length of one step in the unit of eps.

    Reference: made up for this test.
    """
    return MinMax(attack=Pgd(steps=steps, step_size=step_size), loss=AdversarialCrossEntropy())


@ARCHITECTURES.register("plugged_linear")
def plugged_linear(shape: ImageShape, /, *, width: Count = 8) -> nn.Module:
    """One hidden layer from a plugin.

    Args:
        width: hidden units.

    Reference: made up for this test.
    """
    pixels = shape.channels * shape.height * shape.width
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, shape.classes))


@SCHEDULES.register("plugged_constant")
@dataclass(frozen=True, kw_only=True)
class Plugged(Schedule):
    """A share of the full rate throughout, from a plugin.

    Args:
        share: of the full rate.

    Reference: made up for this test.
    """

    share: Share = 1.0

    def __call__(self, progress: Progress) -> float:
        return self.share
'''
PLUGIN_PROJECT = """\
[build-system]
requires = [{requires}]
build-backend = "{backend}"

[project]
name = "robust-demo-plugin"
version = "1.0"

[project.entry-points.robustcli]
{entries}

{rest}
"""
SPEC = """\
# A defense, an architecture and a schedule, all from a plugin.
name: plugged
data: {name: digits, train_size: 64}
architecture: {name: plugged_linear, width: 6}
threat: {norm: linf, eps: 8/255}
defense: {name: plugged_at, steps: 1, weights: {name: awp}}
train:
  epochs: 1
  batch_size: 32
  lr: 0.5
  schedule: {name: plugged_constant, share: 0.5}
  check_examples: 10
  device: cpu
evaluate:
  clean: {name: clean, examples: 20}
"""


def _backend() -> tuple[str, str, str, bool]:
    """Requirement, backend, its configuration, and whether it is installed."""

    def is_here(*modules: str) -> bool:
        return all(importlib.util.find_spec(module) is not None for module in modules)

    def has_bdist_wheel() -> bool:
        return is_here("setuptools.command.bdist_wheel") or is_here("setuptools", "wheel")

    hatch = '[tool.hatch.build.targets.wheel]\ninclude = ["robust_demo_plugin*"]\n'
    setup = '[tool.setuptools]\npy-modules = ["robust_demo_plugin"]\n'
    if is_here("hatchling"):
        return '"hatchling"', "hatchling.build", hatch, True
    if is_here("setuptools") and has_bdist_wheel():
        return '"setuptools"', "setuptools.build_meta", setup, True
    return '"hatchling"', "hatchling.build", hatch, False


def install(folder: Path, source: str, entries: str) -> Path:
    """Build a package with these entry points and install it into a separate folder."""
    requires, backend, rest, is_here = _backend()
    project, target = folder / "project", folder / "installed"
    project.mkdir()
    (project / "robust_demo_plugin.py").write_text(source, encoding="utf-8")
    text = PLUGIN_PROJECT.format(requires=requires, backend=backend, rest=rest, entries=entries)
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    isolation = ["--no-build-isolation"] if is_here else []
    done = subprocess.run(
        [*command, *isolation, "--target", str(target), str(project)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package that brings a defense, an architecture and a schedule."""
    return install(tmp_path_factory.mktemp("plugin"), PLUGIN, 'demo = "robust_demo_plugin"')


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plugged(plugin: Path, tmp_path: Path) -> Call:
    """`robust` with that package, in an empty folder with a spec of its members."""
    (tmp_path / "plugged.yaml").write_text(SPEC, encoding="utf-8")

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return forked.robust(*words, path=[plugin], cwd=tmp_path)

    return call


@pytest.mark.slow
def test_an_installed_package_is_listed_and_shown(plugged: Call, plugin: Path) -> None:
    for family, name, summary in (
        ("defenses", "plugged_at", "Adversarial training from a plugin."),
        ("architectures", "plugged_linear", "One hidden layer from a plugin."),
        ("schedules", "plugged_constant", "A share of the full rate throughout, from a plugin."),
    ):
        listed = plugged("list", family)
        assert listed.returncode == 0, listed.stderr
        (line,) = [line for line in listed.stdout.splitlines() if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1].strip() == summary
    shown = plugged("show", "plugged_at")
    assert shown.returncode == 0, shown.stderr
    assert "counted by the plugin" in shown.stdout
    assert "averaging" in shown.stdout
    assert str(plugin / "robust_demo_plugin.py") in shown.stdout


@pytest.mark.slow
def test_specs_are_checked_against_an_installed_package(plugged: Call, tmp_path: Path) -> None:
    valid = plugged("validate", "plugged.yaml")
    assert valid.returncode == 0, valid.stderr
    (tmp_path / "plugged.yaml").write_text(SPEC.replace("share: 0.5", "share: 2").replace("width: 6", "wdth: 6"))
    invalid = plugged("validate", "plugged.yaml")
    assert invalid.returncode == 2
    assert "train.schedule.share: 2 is outside the range: must be <= 1" in invalid.stderr
    assert "architecture.wdth: unknown parameter of 'plugged_linear' in architectures; did you mean" in invalid.stderr


@pytest.mark.slow
def test_an_installed_package_trains_and_its_checkpoint_is_evaluated(plugged: Call, tmp_path: Path) -> None:
    done = plugged("train", "plugged.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / "plugged").iterdir()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["evaluations"]["clean"]["total"] == 20
    record = json.loads((folder / "train.jsonl").read_text(encoding="utf-8"))
    assert record["lr"] == 0.25
    again = plugged("eval", folder / "checkpoints" / "best.pt", "--json", "--quiet")
    assert again.returncode == 0, again.stderr
    survivors = json.loads(again.stdout)["evaluations"]["clean"]["survivors"]
    assert survivors == results["evaluations"]["clean"]["survivors"]


@pytest.mark.slow
def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "plugged.yaml").write_text(SPEC, encoding="utf-8")
    invalid = forked.robust("validate", "plugged.yaml", cwd=tmp_path)
    assert invalid.returncode == 2
    assert "unknown name 'plugged_at' in defenses" in invalid.stderr


def entry_point(folder: Path, module: str, *names: str) -> Path:
    """Imitate an installed package with these entry points, complete or not."""
    info = folder / "other_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[robustcli]\n" + "".join(f"{name} = {module}\n" for name in names))
    return folder


@pytest.mark.slow
def test_a_package_that_takes_a_name_of_ours_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "other_plugin", "other")
    (folder / "other_plugin.py").write_text(MEMBER % ("cosine", "Another cosine."))
    listed = forked.robust("list", "schedules", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "warning: plugin other_plugin: two schedules are named 'cosine'" in listed.stderr
    assert "other_plugin.py" in listed.stderr
    assert "Another cosine." not in listed.stdout


def test_a_member_that_is_left_out_does_not_come_with_another_one_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other_plugin.py"
    file.write_text(
        (MEMBER % ("aaa", "The first.")) + (MEMBER % ("cosine", "Another cosine.")).split("Schedule\n", 1)[1]
    )
    monkeypatch.setattr(catalog_module, "_plugin_files", lambda: (("other_plugin", file),))
    with pytest.warns(UserWarning, match="two schedules are named 'cosine'"):
        members = catalog.__wrapped__("schedules")
    assert members["aaa"].summary == "The first."
    assert members["cosine"].module == "robustcli.optimization.schedules.smooth"


def test_a_member_that_is_left_out_is_not_used_once_its_file_is_imported() -> None:
    registry = Registry("schedules")
    registry.register("cosine")(lambda: None)
    with pytest.raises(RobustCliError, match=rf"'cosine': in robustcli\.optimization\.schedules.* and in {__name__}"):
        registry.get("cosine")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["def broken(:\n    SCHEDULES.register(", "@SCHEDULES.register(NAME)\ndef halved() -> None: ...\n"]
)
def test_a_package_that_cannot_be_read_is_left_out_with_one_warning(tmp_path: Path, text: str) -> None:
    folder = entry_point(tmp_path / "other", "other_plugin", "other")
    (folder / "other_plugin.py").write_text(text)
    listed = forked.robust("list", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert listed.stderr.count("warning: plugin") == 1
    assert "other_plugin.py: ignored, because it cannot be read" in listed.stderr


@pytest.mark.slow
def test_a_package_that_fails_when_it_is_imported_is_left_out_with_a_warning(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "other_package.members", "other")
    (folder / "other_package").mkdir()
    (folder / "other_package" / "__init__.py").write_text("raise OSError('no license')")
    listed = forked.robust("list", "schedules", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "plugin 'other': ignored, because other_package.members fails: OSError('no license')" in listed.stderr


@pytest.mark.slow
def test_a_package_whose_module_is_gone_is_named(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "no_such_module", "other")
    listed = forked.robust("list", "schedules", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "plugin 'other': ignored, there is no module 'no_such_module'" in listed.stderr


@pytest.mark.slow
def test_a_package_whose_parent_module_is_gone_is_named(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "no_such_package.members", "other")
    listed = forked.robust("list", "schedules", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "plugin 'other': ignored, there is no module 'no_such_package.members'" in listed.stderr


@pytest.mark.slow
def test_a_package_that_announces_one_module_twice_is_read_once(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "other_plugin", "one", "two")
    (folder / "other_plugin.py").write_text(MEMBER % ("halved", "Half the rate."))
    listed = forked.robust("list", "schedules", path=[folder], cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "Half the rate." in listed.stdout


@pytest.mark.slow
def test_a_package_of_several_modules_is_read_as_a_whole(tmp_path: Path) -> None:
    folder = entry_point(tmp_path / "other", "other_plugin", "other")
    (folder / "other_plugin").mkdir()
    (folder / "other_plugin" / "__init__.py").write_text("")
    (folder / "other_plugin" / "halved.py").write_text(MEMBER % ("halved", "Half the rate."))
    spec = tmp_path / "s.yaml"
    spec.write_text(SPEC.replace("plugged_linear, width: 6", "small_cnn, width: 2").replace("plugged_at", "pgd_at"))
    done = forked.robust("train", spec, "train.schedule=halved", "--quiet", path=[folder], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_group_of_entry_points_is_the_name_of_the_package() -> None:
    assert catalog_module.PLUGIN_GROUP == "robustcli"
