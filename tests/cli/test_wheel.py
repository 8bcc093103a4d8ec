"""The wheel works in a separate environment, outside the checkout."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from robustcli import __version__
from robustcli.specs import experiments

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that does not see the checkout."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the checkout builds."""
    folder = tmp_path_factory.mktemp("wheel")
    # Where the build backend is installed already, nothing needs to be fetched.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, *isolation, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with only the wheel, without the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    commands = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = commands / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip())
    # Dependencies come from the running environment. A .pth file adds that folder and does not read the .pth
    # files inside it, so that an editable install of the checkout stays out of sight.
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "dependencies.pth").write_text("\n".join(paths) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check")
    # The checkout may be installed next to the dependencies; that copy is not this environment's to replace.
    run(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return commands


def test_the_wheel_holds_the_package_and_the_shipped_specs_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"robustcli-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"robustcli-{__version__}.dist-info/METADATA").decode()
    files = [path for path in (ROOT / "robustcli").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    package = {path.relative_to(ROOT).as_posix() for path in files}
    shipped = [path for path in (ROOT / "experiments").rglob("*") if path.is_file()]
    specs = {f"robustcli/{path.relative_to(ROOT).as_posix()}" for path in shipped}
    assert {f"robustcli/experiments/{name}.yaml" for name in experiments.names()} <= specs
    info = {name for name in names if name.startswith(f"robustcli-{__version__}.dist-info/")}
    assert names - info == package | specs
    assert any(name.endswith("LICENSE") for name in info)
    assert "Requires-Dist: torch" in metadata


def test_an_installed_wheel_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import robustcli, importlib.metadata as m; print(robustcli.__file__); print(m.version('robustcli'))"
    file, version = run(installed / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert Path(file).is_relative_to(installed.parent)
    assert version == __version__


def test_an_installed_wheel_knows_and_checks_its_specs(installed: Path, tmp_path: Path) -> None:
    listed = run(installed / "robust", "list", "experiments", cwd=tmp_path).stdout
    for name in experiments.names():
        assert name in listed
    # All are the files of the checkout, where each of them is validated.
    some = experiments.names()[::20]
    valid = run(installed / "robust", "validate", *some, cwd=tmp_path).stdout
    assert valid.count(": valid, digest ") == len(some)
    shown = run(installed / "robust", "show", "trades", cwd=tmp_path).stdout
    assert str(installed.parent) in shown


def test_an_installed_wheel_trains_and_evaluates(installed: Path, tmp_path: Path) -> None:
    smoke = [name for name in experiments.names() if name.startswith("smoke/")]
    assert smoke
    run(installed / "robust", "train", smoke[0], "train.device=cpu", "--quiet", cwd=tmp_path)
    (folder,) = tmp_path.glob("runs/*/*")
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["sessions"][0]
    assert provenance["versions"]["robustcli"] == __version__
    assert provenance["commit"] is None
    words = ("--attack", "clean", "--examples", "20", "--json", "--quiet")
    said = run(installed / "robust", "eval", folder / "checkpoints" / "best.pt", *words, cwd=tmp_path).stdout
    assert json.loads(said)["evaluations"]["clean"]["total"] == 20
