"""For any input, `robust eval` ends with exit code 0 or 2, without a traceback, and never TRUSTED at chance."""

import argparse
import json
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from robustcli.cli.main import main
from robustcli.statistics import is_at_chance

pytestmark = pytest.mark.slow

# Each example writes files and runs a command, in a folder that it shares with the others.
FUZZ = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
CODE = """\
from torch import nn
class Gray(nn.Module):
    def forward(self, x):
        return x.mean(1, keepdim=True)
def build():
    return nn.Sequential(Gray(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
"""
THREAT = ("--norm", "linf", "--eps", "8 / 255", "--attack", "pgd", "--steps", "1")
DIGITS = load_digits()
PIXELS = (DIGITS.images[:60, ..., None] / 16 * 255).round().astype("uint8")
LABELS = DIGITS.target[:60].astype("int64")


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """Weights of a small network that reads digits."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(CODE, names)
    net = names["build"]()
    x, y = torch.tensor(DIGITS.images).float()[:, None] / 16, torch.tensor(DIGITS.target)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights: dict[str, Any] = net.state_dict()
    return weights


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any]) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("f.py").write_text(CODE)
    torch.save(state, "w.pt")
    np.savez("test.npz", x_test=PIXELS, y_test=LABELS)
    yield
    sys.modules.pop("robust_eval_model_f", None)


def require_sound(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `robust eval`, check its results, and return the exit code."""
    command = ["robust", "eval", "--model", "f.py:build", *THREAT, "--fresh", "--json", "-q", *words]
    monkeypatch.setattr(sys, "argv", command)
    capsys.readouterr()
    code: Any = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()
    except SystemExit as stop:
        code = stop.code or 0
    said = capsys.readouterr()
    assert code in (0, 2), f"{code}: {said.err}"
    assert "Traceback" not in said.out + said.err
    assert "weights_only" not in said.err
    assert "allow_pickle" not in said.err
    if code == 0:
        (result,) = json.loads(said.out)["evaluations"].values()
        clean = sum(stage["entered"] for stage in result["stages"][:1])
        assert result["verdict"] == "SUSPECT" or not is_at_chance(clean, result["total"], 10)
    return int(code)


# Checkpoints

LEAVES = st.sampled_from(
    [
        3,
        None,
        "text",
        float("nan"),
        np.float64(0.5),
        np.arange(3),
        argparse.Namespace(lr=0.1),
        torch.ones(2),
        torch.ones(2).half(),
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.int8),
        Path("x"),
        {1, 2},
        {0: torch.ones(2)},
    ]
)
WRAPPERS = st.sampled_from(["module.", "model.", "_orig_mod.", "net.", "1.", "0.", "a.b."])


@FUZZ
@given(
    prefixes=st.lists(WRAPPERS, max_size=3),
    keys=st.lists(st.sampled_from(["state_dict", "model", "ema", "0"]), max_size=4),
    extra=st.dictionaries(st.sampled_from(["epoch", "args", "best", "criterion.weight", "weight"]), LEAVES, max_size=3),
    inside=st.booleans(),
    change=st.sampled_from(["nothing", "half", "int8", "lacks one", "double", "wrong shape", "nan", "parameters"]),
    keyed=st.sampled_from([None, "state_dict", "ema", "model.state_dict", "x..y", ""]),
)
def test_checkpoints(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Any],
    prefixes: list[str],
    keys: list[str],
    extra: dict[str, Any],
    inside: bool,
    change: str,
    keyed: str | None,
) -> None:
    tensors: dict[str, Any] = dict(state)
    name = next(iter(tensors))
    changes = {
        "half": lambda: tensors.update({key: one.half() for key, one in tensors.items()}),
        "double": lambda: tensors.update({key: one.double() for key, one in tensors.items()}),
        "int8": lambda: tensors.update({key: (50 * one).to(torch.int8) for key, one in tensors.items()}),
        "lacks one": lambda: tensors.pop(name),
        "wrong shape": lambda: tensors.update({name: tensors[name][:1]}),
        "nan": lambda: tensors.update({name: tensors[name] * float("nan")}),
        "parameters": lambda: tensors.update({key: nn.Parameter(one) for key, one in tensors.items()}),
    }
    changes.get(change, lambda: None)()
    value: Any = OrderedDict((f"{''.join(prefixes)}{key}", one) for key, one in tensors.items())
    if inside:
        value.update(extra)
    for key in keys:
        value = {key: value}
    if not inside:
        value = {**value, **extra}
    torch.save(value, "fuzz.pt")
    options = [] if keyed is None else ["--weights-key", keyed]
    code = require_sound(capsys, monkeypatch, "--data", "test.npz", "--weights", "fuzz.pt", *options)
    if not extra and keyed is None and change in ("nothing", "half", "double", "parameters"):
        assert code == 0


@FUZZ
@given(
    at=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    end=st.one_of(st.none(), st.integers(0, 10**6)),
    start=st.sampled_from([b"", b"<html>", b"version https://git-lfs", b"PK\x03\x04", b"\x80\x02"]),
    legacy=st.booleans(),
)
def test_damaged_checkpoints(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: dict[str, Any],
    at: int,
    bit: int,
    end: int | None,
    start: bytes,
    legacy: bool,
) -> None:
    torch.save(state, "fuzz.pt", _use_new_zipfile_serialization=not legacy)
    data = bytearray(Path("fuzz.pt").read_bytes())
    data[at % len(data)] ^= 1 << bit
    if end is not None:
        del data[end % len(data) :]
    Path("fuzz.pt").write_bytes(start + bytes(data))
    require_sound(capsys, monkeypatch, "--data", "test.npz", "--weights", "fuzz.pt")
    monkeypatch.setattr(sys, "argv", ["robust", "eval", "fuzz.pt", "--data", "test.npz", *THREAT])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 2


# Arrays

ARRAYS: dict[str, Any] = {
    "absent": None,
    "as it is": PIXELS,
    "floats": PIXELS.astype("float32") / 255,
    "doubles": PIXELS / 255,
    "floats of levels": PIXELS.astype("float32"),
    "0 or 1": (PIXELS > 127).astype("uint8"),
    "few levels": PIXELS // 16,
    "black": PIXELS * 0,
    "channels first": np.repeat(PIXELS, 3, 3).transpose(0, 3, 1, 2),
    "rgb": np.repeat(PIXELS, 3, 3),
    "no channel": PIXELS[..., 0],
    "flat": PIXELS.reshape(60, -1),
    "empty": PIXELS[:0],
    "five": PIXELS[:5],
    "int64": PIXELS.astype("int64"),
    "negative": -PIXELS.astype("float32"),
    "nan": PIXELS * np.nan,
    "objects": np.array([{}, 1], dtype=object),
    "texts": np.array(["a"] * 60),
    "number": np.array(3),
    "complex": PIXELS.astype("complex64") / 255,
    "bool": PIXELS > 127,
}
NUMBERS: dict[str, Any] = {
    "absent": None,
    "as it is": LABELS,
    "column": LABELS[:, None],
    "shifted": (LABELS + 1) % 10,
    "one hot": np.eye(10, dtype="int64")[LABELS],
    "floats": LABELS.astype("float32"),
    "uint8": LABELS.astype("uint8"),
    "negative": LABELS - 3,
    "large": LABELS + 10**12,
    "beyond": LABELS + 5,
    "five": LABELS[:5],
    "zeros": LABELS * 0,
    "empty": LABELS[:0],
    "texts": LABELS.astype(str),
    "number": np.array(3),
    "uint64": np.full(60, 2**64 - 1, dtype="uint64"),
}


@FUZZ
@given(
    x=st.sampled_from(sorted(ARRAYS)),
    y=st.sampled_from(sorted(NUMBERS)),
    x_train=st.sampled_from(sorted(ARRAYS)),
    y_train=st.sampled_from(sorted(NUMBERS)),
    classes=st.sampled_from([None, np.array([str(i) for i in range(10)]), np.arange(10), np.array("a")]),
    suffix=st.sampled_from(["npz", "NPZ"]),
)
@example(x="as it is", y="shifted", x_train="absent", y_train="absent", classes=None, suffix="npz")
@example(x="0 or 1", y="as it is", x_train="absent", y_train="absent", classes=None, suffix="npz")
@example(x="few levels", y="as it is", x_train="empty", y_train="empty", classes=None, suffix="NPZ")
@example(x="doubles", y="column", x_train="flat", y_train="texts", classes=None, suffix="NPZ")
def test_arrays(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    x: str,
    y: str,
    x_train: str,
    y_train: str,
    classes: Any,
    suffix: str,
) -> None:
    given = {"x_test": ARRAYS[x], "y_test": NUMBERS[y], "x_train": ARRAYS[x_train], "y_train": NUMBERS[y_train]}
    arrays = {key: value for key, value in {**given, "classes": classes}.items() if value is not None}
    with Path(f"fuzz.{suffix}").open("wb") as file:
        np.savez(file, **arrays)
    code = require_sound(capsys, monkeypatch, "--data", f"fuzz.{suffix}", "--weights", "w.pt")
    if (
        x in ("as it is", "floats", "doubles", "no channel")
        and y in ("as it is", "column", "uint8")
        and classes is None
    ):
        assert code == 0


@FUZZ
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), end=st.one_of(st.none(), st.integers(0, 10**6)))
def test_damaged_arrays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: int, bit: int, end: int | None
) -> None:
    data = bytearray(Path("test.npz").read_bytes())
    data[at % len(data)] ^= 1 << bit
    if end is not None:
        del data[end % len(data) :]
    Path("fuzz.npz").write_bytes(bytes(data))
    require_sound(capsys, monkeypatch, "--data", "fuzz.npz", "--weights", "w.pt")


# Folders

FILES = st.sampled_from(
    ["0.png", "1.PNG", "Thumbs.db", "desktop.ini", ".hidden", "broken.png", "notes.txt", "deep/2.png"]
)


@FUZZ
@given(
    parts=st.lists(st.sampled_from(["train", "test", "val"]), max_size=3, unique=True),
    folders=st.lists(st.sampled_from(["a", "b", "c", "caf\u00e9", "cafe\u0301", ".git"]), max_size=4, unique=True),
    files=st.lists(FILES, max_size=3, unique=True),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1", "I;16"]),
    number=st.integers(0, 10**6),
)
def test_folders(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    parts: list[str],
    folders: list[str],
    files: list[str],
    mode: str,
    number: int,
) -> None:
    root = Path(f"folder{number}")
    root.mkdir(exist_ok=True)
    for part in parts:
        for folder in folders:
            for file in files:
                path = root / part / folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                if file.lower().endswith(".png") and "broken" not in file:
                    Image.new(mode, (8, 8)).save(path, "PNG")
                else:
                    path.write_text("x")
    require_sound(capsys, monkeypatch, "--data", str(root), "data.size=8", "--weights", "w.pt")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("import sys\nsys.exit(0)", "the code ends the program (sys.exit(0))"),
        ("import sys\ndef build():\n    sys.exit(0)", "the code ends the program (sys.exit(0))"),
        (
            "import sys\nfrom torch import nn\nclass build(nn.Module):\n    def forward(self, x):\n        sys.exit(0)",
            "SystemExit: 0",
        ),
        (
            "from torch import nn\nclass build(nn.Flatten):\n    def train(self, mode=True):\n"
            "        raise OSError('no')",
            "cannot be set to evaluation mode by eval() (OSError: no)",
        ),
    ],
)
def test_code_that_ends_the_program_or_refuses_a_mode_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, body: str, text: str
) -> None:
    Path("odd.py").write_text(body)
    monkeypatch.setattr(sys, "argv", ["robust", "eval", "--model", "odd.py:build", "--data", "test.npz", *THREAT])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_pipe_in_the_folder_of_a_class_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("piped/test/a")
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0.png")
    code = require_sound(capsys, monkeypatch, "--data", "piped", "data.size=8", "--weights", "w.pt")
    assert code == 2
