"""The import rule of the package, and commands that answer without importing torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import robustcli

PACKAGE = Path(robustcli.__file__).parent
ROOT = PACKAGE.parent

# From the top. A module imports from its own band or from a band below it.
BANDS = tuple(
    line.split()
    for line in (
        "__main__ cli reports",
        "workflows bench measuring promises",
        "training evaluation diagnostics defenses evaluators attacks architectures optimization data models",
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


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    modules = {".".join(("robustcli", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in IMPORTS}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    below = {
        name: {to if to in modules else to.rpartition(".")[0] for _, to in IMPORTS[path]}
        for name, path in modules.items()
    }
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in finished:
            for name in sorted(below.get(module, ())):
                visit(name, (*trail, module))
            finished.add(module)

    for module in sorted(below):
        visit(module, ())


# Commands that do not compute anything


COMMANDS = [
    ("--help",),
    ("list",),
    ("list", "architectures", "--family", "wide_resnet"),
    ("validate", "demo/digits_pgd_at"),
    ("train", "--help"),
    ("show", "trades"),
    ("export", "robustbench", "--help"),
]
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pyautoattack", "PIL")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_only_looks_does_not_import_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['robust', *{words!r}]\n"
        "from robustcli.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"sys.stderr.write(' '.join(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout
