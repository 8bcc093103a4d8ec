"""The layers of the package: imports point down, families stay apart, and the shell answers without torch."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import robustcli
from robustcli.catalog import FAMILIES, catalog

PACKAGE = Path(robustcli.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# From the top: a module imports from its own line or from lines below it. Modules on one line belong together
# and may import each other as long as no circle comes of it, which Python itself would tell.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("forecast",),
    ("sweep",),
    ("bench", "export", "shell.evaluation_commands", "shell.member_commands"),
    ("assess", "verify", "diagnose"),
    ("subjects.opening",),
    ("subjects.naming", "evaluation.workers"),
    ("subjects.subject",),
    ("foreign",),
    ("runner",),
    ("assembly",),
    ("shell.progress",),
    ("compare",),
    ("shell.report", "shell.findings", "shell.picture", "shell.anatomy_table"),
    ("train", "evaluation.dossier"),
    ("evaluation.consistency",),
    ("evaluation.journal", "evaluation.ledger"),
    ("runs", "signals", "training_model", "specs.derivation"),
    ("specs.schema", "specs.experiments"),
    ("evaluation.evaluate",),
    ("evaluation.preflight", "evaluation.postflight", "evaluation.fingerprint"),
    ("diagnostics",),
    ("evaluation.evidence",),
    (
        "evaluation.isolation",
        "evaluation.judgement",
        "evaluation.portions",
        "evaluation.proposal",
        "evaluation.statistics",
    ),
    ("evaluation.strikes",),
    ("defenses", "evaluators"),
    ("weights", "averaging", "regularisers"),
    ("build",),
    ("specs.spec",),
    ("specs.guards",),
    ("specs.attack_guards", "specs.data_guards", "specs.pairing"),
    ("specs.places", "specs.sizes"),
    ("specs.check",),
    ("specs.settings",),
    ("attacks",),
    ("data",),
    ("checkpoint",),
    ("data.extra", "data.stores", "data.targets"),
    ("data.augmentation", "data.distortions"),
    ("induced_norms",),
    ("architectures", "datasets", "mixers", "optimizers", "schedules"),
    ("threat", "hyperplane"),
    ("registry",),
    ("catalog",),
    ("signatures",),
    ("specs.yamlfile",),
    ("noise", "clock", "collapse", "memory", "formats", "files", "shell.options", "precision", "compiled"),
    ("published",),
    ("fields",),
    ("errors",),
    # What holds a description alone may be imported from anywhere.
    ("__init__", "specs", "evaluation", "subjects", "shell"),
)
HEIGHT = {name: len(LAYERS) - number for number, names in enumerate(LAYERS) for name in names}
# Families whose line is shared and which nevertheless know nothing of each other.
APART = [
    ("defenses", "evaluators"),
    ("weights", "averaging", "regularisers"),
    ("architectures", "datasets", "mixers", "optimizers", "schedules"),
]
# What must not know a member by name.
BLIND = (
    "train",
    "training_model",
    "defenses.min_max",
    "evaluation.evaluate",
    "specs.spec",
    "specs.check",
    "specs.guards",
)
# The parts that a defense has where nothing else is said; their files are read by no other name.
DEFAULTS = {"attacks.none", "averaging.none", "regularisers.none", "weights.none"}


def module_of(path: Path) -> str:
    """The name of a file's module inside the package: "attacks.pgd", "attacks" for its __init__, "cli"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of everything a file imports from this package, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "robustcli":
                    yield node.lineno, alias.name.partition(".")[2] or "__init__"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides where it points"
            if node.module == "robustcli":
                for alias in node.names:
                    is_module = (PACKAGE / f"{alias.name}.py").exists() or (PACKAGE / alias.name).is_dir()
                    yield node.lineno, alias.name if is_module else "__init__"
            elif node.module and node.module.startswith("robustcli."):
                module = node.module.removeprefix("robustcli.")
                for alias in node.names:
                    inner = PACKAGE.joinpath(*module.split("."), f"{alias.name}.py")
                    yield node.lineno, f"{module}.{alias.name}" if inner.exists() else module


ARROWS = [(path, line, module_of(path), target) for path in FILES for line, target in imports_of(path)]


def top(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> str:
    """Where LAYERS has a module: by its own name, or with its folder."""
    return module if module in HEIGHT else top(module)


def registers(module: str) -> bool:
    """Whether the file of a module holds members of its family."""
    return any(member.module == f"robustcli.{module}" for member in catalog(top(module)).values())


def test_some_imports_were_found_and_every_module_has_a_layer() -> None:
    assert len(ARROWS) > 100
    # A folder that is listed for its description alone has a line for each of its modules.
    described = {"specs", "evaluation", "subjects", "shell"}
    assert [module_of(path) for path in FILES if layer(module_of(path)) in described and path.stem != "__init__"] == []
    assert {layer(module_of(path)) for path in FILES} == set(HEIGHT)


def test_no_import_points_up() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {target}, which lies above it"
        for path, line, module, target in ARROWS
        if HEIGHT[layer(target)] > HEIGHT[layer(module)]
    ]
    assert wrong == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for _, _, module, target in ARROWS:
        below.setdefault(module, set()).add(target)
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in finished:
            for target in sorted(below.get(module, ())):
                visit(target, (*trail, module))
            finished.add(module)

    for module in sorted(below):
        visit(module, ())


def test_families_on_one_line_know_nothing_of_each_other() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {target}"
        for path, line, module, target in ARROWS
        for group in APART
        if top(module) in group and top(target) in group and top(module) != top(target)
    ]
    assert wrong == []


def test_members_of_a_family_do_not_import_each_other() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports the member {target}"
        for path, line, module, target in ARROWS
        if top(module) in FAMILIES and top(target) == top(module) and target != module and registers(target)
    ]
    assert wrong == []


def test_a_family_knows_none_of_its_members() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {target}"
        for path, line, module, target in ARROWS
        if module in FAMILIES and top(target) == module and target != module
    ]
    assert wrong == []


def test_the_loop_and_the_shared_step_name_no_method() -> None:
    # The formula knows its parts by their protocols; only its defaults are named.
    assert set(BLIND) <= {module_of(path) for path in FILES}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports the member {target}"
        for path, line, module, target in ARROWS
        if module in BLIND
        and top(target) in FAMILIES
        and "." in target
        and registers(target)
        and target not in DEFAULTS
    ]
    assert wrong == []


def test_no_module_is_a_drawer_for_anything() -> None:
    names = {path.stem for path in FILES}
    assert names & {"utils", "util", "helpers", "misc", "common", "tools"} == set()


def test_no_file_holds_two_ideas() -> None:
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length >= 300} == {}


# The shell


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
        "from robustcli.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"sys.stderr.write(' '.join(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout
