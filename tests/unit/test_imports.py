"""The import rule of the package, and commands that answer without importing torch."""

import ast
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

import robustcli
from robustcli.data.datasets.digits import embedded_digits

PACKAGE = Path(robustcli.__file__).parent
ROOT = PACKAGE.parent

# From the top. A module imports from its own band or from a band below it.
BANDS = tuple(
    line.split()
    for line in (
        "__main__ api cli reports",
        "workflows bench measuring contracts",
        "training evaluation diagnostics defenses evaluators attacks architectures preprocessors "
        "optimization data models",
        "store specs threat registry runtime statistics errors __init__",
    )
)
BAND = {name: number for number, names in enumerate(BANDS) for name in names}
IMPORTS = {
    path: [
        (node.lineno, f"{node.module}.{alias.name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("robustcli")
        for alias in node.names
    ]
    for path in sorted(PACKAGE.rglob("*.py"))
}


def place(path: Path) -> str:
    """The folder or module at the top of the package that a file belongs to."""
    return Path(path.relative_to(PACKAGE).parts[0]).stem


def target(name: str) -> str:
    """The same for an imported name such as "robustcli.threat.noise.derive"."""
    top = name.split(".")[1]
    return top if (PACKAGE / top).is_dir() or (PACKAGE / f"{top}.py").exists() else "__init__"


def test_no_import_points_up() -> None:
    assert {place(path) for path in IMPORTS} == set(BAND)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}, which lies in a band above"
        for path, imports in IMPORTS.items()
        for line, name in imports
        if BAND[target(name)] < BAND[place(path)]
    ]
    assert wrong == []


def require_no_circle(below: Mapping[str, Collection[str]]) -> None:
    """Fail if following `below` leads back to where it began."""
    finished: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in finished:
            for other in sorted(below.get(name, ())):
                visit(other, (*trail, name))
            finished.add(name)

    for name in sorted(below):
        visit(name, ())


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {".".join(("robustcli", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in IMPORTS}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    require_no_circle(
        {
            name: {to if to in modules else to.rpartition(".")[0] for _, to in IMPORTS[path]}
            for name, path in modules.items()
        }
    )


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for path, imports in IMPORTS.items():
        below.setdefault(place(path), set()).update(target(name) for _, name in imports)
    require_no_circle({name: others - {name, "__init__"} for name, others in below.items() if name != "__init__"})


# Commands that do not compute anything

HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pyautoattack", "PIL", "jinja2", "matplotlib")
RUNS = (*HEAVY, "filelock")
SPECS = (*RUNS, "yaml", "robustcli.specs.spec", "robustcli.workflows.sweep_spec")
# By command, the modules that it does not import.
COMMANDS = {
    ("--help",): SPECS,
    ("train", "--help"): SPECS,
    ("bench", "train", "--help"): SPECS,
    ("export", "robustbench", "--help"): SPECS,
    ("list",): SPECS,
    ("list", "architectures", "--family", "wide_resnet"): SPECS,
    ("show", "trades"): SPECS,
    ("validate", "demo/digits_pgd_at"): RUNS,
    ("runs", "."): RUNS,
}
# Each takes as long as importing torch itself.
COMPILER_AND_LIKE = ("torch._dynamo", "sympy", "sklearn", "scipy.stats")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def imported(words: tuple[str, ...], unwanted: tuple[str, ...], folder: Path) -> str:
    """The modules among `unwanted` that a command imports; what the command itself says on stderr precedes them."""
    code = (
        "import sys\n"
        f"sys.argv = ['robust', *{words!r}]\n"
        "from robustcli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"sys.stderr.write(' '.join(sorted(set({unwanted!r}) & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout
    return done.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_imports_only_what_it_needs(words: tuple[str, ...], tmp_path: Path) -> None:
    assert imported(words, COMMANDS[words], tmp_path) == ""


@pytest.mark.slow
def test_training_and_evaluation_import_no_compiler(tmp_path: Path) -> None:
    assert imported(("train", "smoke/pgd_at", "--quiet"), COMPILER_AND_LIKE, tmp_path) == ""
    _, test = embedded_digits()
    np.savez(tmp_path / "images.npz", x_test=test.images[:20, 0].numpy(), y_test=test.labels[:20].numpy())
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/best.pt")
    words = ("eval", str(checkpoint), "--data", "images.npz", "--attack", "apgd", "--quiet")
    assert imported(words, (*COMPILER_AND_LIKE, "torchvision", "pyautoattack"), tmp_path) == ""
