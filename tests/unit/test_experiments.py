"""The shipped specs: all valid, all described, all with a target in the Makefile."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from editor import errors

from robustcli.errors import RobustCliError
from robustcli.reports.recipes import recipe_index
from robustcli.specs import experiments
from robustcli.specs.spec import ExperimentSpec
from robustcli.specs.yamlfile import read_yaml
from robustcli.workflows.sweep_spec import Sweep

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments"
SWEEPS = sorted((FOLDER / "sweeps").glob("*.yaml"))
FINDINGS = sorted((FOLDER / "findings").glob("*.yaml"))
SPEEDRUNS = sorted((FOLDER / "speedrun").glob("*.yaml"))
FILES = sorted(set(FOLDER.rglob("*.yaml")) - {*SWEEPS, *FINDINGS, *SPEEDRUNS})
IDS = [path.relative_to(FOLDER).as_posix() for path in FILES]


def test_some_specs_are_shipped_and_all_are_found_by_name() -> None:
    assert len(FILES) >= 4
    assert experiments.folder() == FOLDER
    assert experiments.names() == [Path(name).with_suffix("").as_posix() for name in IDS]
    assert len(SWEEPS) >= 2
    assert experiments.sweeps() == [f"sweeps/{path.stem}" for path in SWEEPS]
    assert all(experiments.find(name) in SWEEPS for name in (*experiments.sweeps(), SWEEPS[0].stem))
    others = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".yaml", ".md")]
    # Results are stored with the specs as text: no weights, and no paths of the machine.
    assert {path.relative_to(FOLDER).parts[0] for path in others} <= {"results"}
    tables = {FOLDER / "results" / kind for kind in ("bench", "sweeps", "findings", "speedrun")}
    of_runs = [path for path in others if path.parent not in tables]
    assert {path.name for path in of_runs} <= {"results.json", "provenance.json"}
    assert {path.suffix for path in others} == {".json"}
    assert not [path for path in others if re.search(r"=/|/home/|/root/", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_every_shipped_spec_is_sound(path: Path) -> None:
    """Valid here and to an editor, the same after the way through YAML, and without a warning."""
    spec = ExperimentSpec.read(path)
    assert spec.evaluate
    again = ExperimentSpec.parse(spec.to_yaml(), "again")
    assert (again, again.digest, again.to_yaml()) == (spec, spec.digest, spec.to_yaml())
    assert errors(read_yaml(path).value) == []
    assert errors(spec.to_plain()) == []
    # Radii such as 0.031 may come from a source; other warnings must not occur in a shipped spec.
    assert [warning for warning in spec.warnings() if "is near 8/255" not in warning] == []


def test_every_shipped_file_begins_with_a_line_that_says_what_it_is() -> None:
    for path in (*FILES, *SWEEPS, *FINDINGS, *SPEEDRUNS):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), path
        assert len(first) > 20, path
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        assert experiments.summary(name) == first.removeprefix("# ")


def test_no_two_specs_have_one_name() -> None:
    names = [read_yaml(path).value["name"] for path in FILES]
    assert len(names) == len(set(names))


def test_every_spec_has_a_target_in_the_makefile() -> None:
    make = shutil.which("make")
    assert make is not None, "make is what the README names to run the tests"
    help_text = subprocess.run(
        [make, "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in experiments.names():
        target = f"reproduce-{name.replace('/', '-')}"
        assert target in help_text.split()
        # -n prints what would be done; a target that nothing depends on yet would install first.
        plan = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"robust reproduce {name} \n" in plan.replace("$(ARGS)", "")


@pytest.mark.slow
def test_make_tables_writes_a_table_of_every_sweep() -> None:
    make = shutil.which("make")
    assert make is not None
    plan = subprocess.run(
        [make, "-n", "tables", "ARGS=train.epochs=3"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    results = (FOLDER / "results" / "README.md").read_text(encoding="utf-8")
    for name in experiments.sweeps():
        assert f"sweep {name} train.epochs=3 --quiet --into experiments/results/README.md" in plan
        block = Sweep.read(experiments.find(name)).name
        assert f"<!-- {block} -->\n" in results
        assert f"<!-- /{block} -->\n" in results


@pytest.mark.slow
def test_the_index_of_experiments_is_up_to_date() -> None:
    assert recipe_index() in (FOLDER / "README.md").read_text(encoding="utf-8"), "run `make recipes`"


@pytest.mark.parametrize("name", ["demo/digits_pgd_at", "digits_pgd_at", "demo/digits_pgd_at.yaml"])
def test_a_shipped_spec_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiments.find(name) == FOLDER / "demo" / "digits_pgd_at.yaml"


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "digits_pgd_at.yaml").write_text("name: mine\n")
    assert experiments.find("demo/digits_pgd_at.yaml") == Path("demo/digits_pgd_at.yaml")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("digits_pgd", "unknown experiment 'digits_pgd'"),
        ("demo/digits_pgd_att", r"did you mean 'demo/digits_pgd_at'\?"),
        ("gone.yaml", r"gone\.yaml: no such file"),
        ("demo/digits_pgd_att.yaml", r"no such file; did you mean 'demo/digits_pgd_at'\?"),
        ("", "unknown experiment ''"),
        ("demo", "unknown experiment 'demo'"),
    ],
)
def test_what_is_not_found_is_an_error_with_the_nearest_name(name: str, text: str) -> None:
    with pytest.raises(RobustCliError, match=text):
        experiments.find(name)


def test_a_last_part_that_several_specs_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.yaml").write_text("# One.\nname: same\n")
    monkeypatch.setattr(experiments, "folder", lambda: tmp_path)
    assert experiments.find("a/same") == tmp_path / "a" / "same.yaml"
    with pytest.raises(RobustCliError, match="is not one but several: a/same, b/same"):
        experiments.find("same")
