"""Checkpoints are written completely or not at all, contain no code, and damaged ones give one clear error."""

import os
import pickle
import random
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.errors import RobustCliError
from robustcli.store.checkpoint import Checkpoint

CONTENTS: dict[str, Any] = {
    "spec": "name: x\n",
    "weights": {"a": torch.arange(12.0).view(3, 4), "n": torch.tensor(3)},
    "training": {
        "updates": 5,
        "best_score": -float("inf"),
        "best_epoch": 0,
        "best_robust": 0.0,
        "collapsed_at": None,
        "is_over": False,
        **{part: {"parts": [1, 2.5, {"none": None, "yes": True}]} for part in ("network", "optimizer", "step")},
        **{part: {} for part in ("average", "means")},
    },
}


def saved(contents: dict[str, Any]) -> Checkpoint:
    return Checkpoint.model_validate(contents)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.pt"
    saved(CONTENTS).write(path)
    return path


def test_what_is_saved_is_loaded(path: Path) -> None:
    loaded = Checkpoint.read(path)
    assert loaded.spec == CONTENTS["spec"]
    assert loaded.training is not None
    assert dict(loaded.training) == CONTENTS["training"]
    assert torch.equal(loaded.weights["a"], CONTENTS["weights"]["a"])
    assert torch.load(path, weights_only=True).keys() == {"format", "robustcli", *CONTENTS}
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_state_dictionaries_keep_the_versions_of_their_modules(path: Path) -> None:
    weights: Any = torch.nn.BatchNorm2d(2).state_dict()
    saved({**CONTENTS, "weights": weights}).write(path)
    read: Any = Checkpoint.read(path).weights
    assert read._metadata == weights._metadata, "torch decides by them how to load older weights"


def crash(*_: object, **__: object) -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize(("owner", "name"), [(torch, "save"), (os, "fsync"), (Path, "replace")])
def test_a_crash_before_the_rename_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crash)
        with pytest.raises(OSError, match="the disk is gone"):
            saved({**CONTENTS, "spec": "name: y\n"}).write(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]
    saved({**CONTENTS, "spec": "name: y\n"}).write(path)
    assert Checkpoint.read(path).spec == "name: y\n"
    assert [file.name for file in path.parent.iterdir()] == ["last.pt"]


def test_a_half_written_temporary_file_is_overwritten(path: Path) -> None:
    path.with_name("last.pt.writing").write_bytes(b"half")
    saved({**CONTENTS, "spec": "name: y\n"}).write(path)
    assert Checkpoint.read(path).spec == "name: y\n"


def test_a_leftover_link_of_a_killed_process_is_not_followed(path: Path) -> None:
    best = path.with_name("best.pt")
    saved(CONTENTS).write(best)
    before = best.read_bytes()
    os.link(best, path.with_name("last.pt.writing"))
    saved({**CONTENTS, "spec": "name: y\n"}).write(path)
    assert best.read_bytes() == before


def require_refused(path: Path, *texts: str) -> None:
    with pytest.raises(RobustCliError) as caught:
        Checkpoint.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for text in texts:
        assert text in message


def test_a_file_that_is_not_there_is_named_with_what_was_expected(tmp_path: Path) -> None:
    require_refused(tmp_path / "gone.pt", "no such file", "best.pt")
    require_refused(tmp_path, "no such file")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_half_a_checkpoint_is_refused(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    require_refused(path, "the file is empty" if not share else "the file is truncated" if share > 0.01 else "")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hello", "a text that begins with 'hello'"),
        ("e", "a text that begins with 'e'"),
        ("(i0\n.", "a text that begins with '(i0'"),
        ("# Model\n\nA README.\n", "a text that begins with '# Model'"),
        ("\ufeffname: tiny\nseed: 0\n", "a text that begins with 'name: tiny'"),
        ("Größe" + "ö" * 1000, "a text that begins with 'Gr"),
        (" \n\n", "empty except for spaces"),
        ("<!DOCTYPE html>", "an HTML or XML page"),
        ("version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("BZh91AY", "a bzip2 archive"),
        ("\x80\x02", "cannot be read as plain data"),
        ("\x08\0\0\0\0\0\0\0" + '{"a":{}}', "a safetensors file"),
    ],
)
def test_another_file_is_called_what_it_is(tmp_path: Path, text: str, kind: str) -> None:
    data = text.encode("latin-1") if text.startswith("\x80") else text.encode()
    (tmp_path / "other.pt").write_bytes(data)
    require_refused(tmp_path / "other.pt", kind)


def test_no_bytes_whatever_end_in_another_error(path: Path) -> None:
    rng = random.Random(0)
    whole = path.read_bytes()
    legacy = path.with_name("legacy.pt")
    torch.save({"format": 1, "spec": "x"}, legacy, _use_new_zipfile_serialization=False)
    old = legacy.read_bytes()

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    makers: list[Callable[[], bytes]] = [
        lambda: rng.randbytes(rng.randrange(1, 200)),
        lambda: flipped(whole),
        lambda: flipped(old),
        lambda: old[: rng.randrange(len(old))],
        lambda: whole[: rng.randrange(len(whole))],
    ]
    for number in range(400):
        path.write_bytes(makers[number % len(makers)]())
        # torch warns of odd pickles before it refuses them; a flipped bit in a weight is a weight like any other.
        with warnings.catch_warnings(), suppress(RobustCliError):
            warnings.simplefilter("ignore")
            Checkpoint.read(path)


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_is_not_run(
    tmp_path: Path, save: Callable[[Any, Path], Any]
) -> None:
    target = tmp_path / "made by code"
    save({"format": 1, "spec": "name: x\n", "weights": Code(target)}, tmp_path / "code.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        require_refused(tmp_path / "code.pt", "cannot be read as plain data")
    assert not target.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pt")
    require_refused(tmp_path / "network.pt", "cannot be read as plain data")


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        (torch.nn.Linear(2, 2).state_dict(), "found weight, bias"),
        ({"state_dict": {}, "epoch": 3}, "found state_dict, epoch"),
        ({}, "found "),
        ([1, 2], "found list"),
        (torch.zeros(3), "found Tensor"),
    ],
)
def test_weights_of_another_program_are_named_for_what_they_are(tmp_path: Path, contents: Any, found: str) -> None:
    torch.save(contents, tmp_path / "other.pt")
    require_refused(tmp_path / "other.pt", "not written by `robust train`", found, "expected the keys format, spec")


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 99, "spec": "x"}, tmp_path / "new.pt")
    require_refused(tmp_path / "new.pt", "checkpoint format 99; this version reads format 1")
