"""Image files in a folder with one subfolder for each class, or in the layout of TinyImageNet."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from robustcli.data.datasets.encoded import JPEG, EncodedSplit
from robustcli.data.datasets.fixed_order import fixed_order
from robustcli.errors import RobustCliError
from robustcli.store.files import absolute

_SUFFIXES = (*JPEG, ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini")
# TinyImageNet keeps the images of a class, and all images of val, in a folder of this name.
_INNER = "images"
_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True)
class PathFiles:
    """Image files on disk.

    Args:
        folder: folder that names are relative to.
        paths: paths of the images.
    """

    folder: Path
    paths: Sequence[str]

    @property
    def names(self) -> Sequence[str]:
        return [path.removeprefix(f"{self.folder}{os.sep}") for path in self.paths]

    def read(self, number: int) -> bytes:
        return Path(self.paths[number]).read_bytes()

    def length(self, number: int) -> int:
        return os.path.getsize(self.paths[number])

    def where(self, number: int) -> str:
        return self.paths[number]

    def chosen(self, numbers: Sequence[int]) -> "PathFiles":
        return PathFiles(self.folder, [self.paths[number] for number in numbers])


def both_parts(root: str, size: int) -> tuple[EncodedSplit, EncodedSplit, list[str]]:
    """Return the train and test part of a folder, and the names of the classes.

    Test images come in a fixed random order.

    Raises:
        RobustCliError: the folder has another layout; names what is wrong.
    """
    folder = absolute(root)
    train_folder = _part(folder, "train")
    if _is_tiny_imagenet(folder):
        classes = _classes(train_folder)
        train = _split(train_folder, _by_class(classes, _INNER), list(classes), size)
        return train, _tiny_val(folder, list(classes), size), list(classes)
    test_folder = _part(folder, "test", "val")
    classes, test_classes = _classes(train_folder), _classes(test_folder)
    if classes.keys() != test_classes.keys():
        raise RobustCliError(
            f"data.root: {train_folder} and {test_folder} have different classes: "
            f"only in {train_folder.name}: {_listed(set(classes) - set(test_classes))}; "
            f"only in {test_folder.name}: {_listed(set(test_classes) - set(classes))}; expected the same in both"
        )
    names = list(classes)
    train = _split(train_folder, _by_class(classes), names, size)
    return train, _mixed(_split(test_folder, _by_class(test_classes), names, size)), names


def test_part(root: str, size: int) -> tuple[EncodedSplit, list[str]]:
    """Return the test part of a folder and the names of the classes, some of which may have no test images.

    Only the class names of the train part are read, and it may be missing.

    Raises:
        RobustCliError: the folder has another layout; the message says where.
    """
    folder = absolute(root)
    has_train = (folder / "train").is_dir()
    train_classes = _classes(folder / "train", may_be_empty=True) if has_train else {}
    if _is_tiny_imagenet(folder):
        names = sorted({*train_classes, *_annotated(folder).values()})
        return _tiny_val(folder, names, size), names
    test_folder = _part(folder, "test", "val")
    test_classes = _classes(test_folder)
    names = sorted({*test_classes, *train_classes})
    found = _by_class(test_classes, may_lack_images=True)
    return _mixed(_split(test_folder, found, names, size)), names


def several_parts(root: str, names: Sequence[str], size: int) -> tuple[EncodedSplit, list[str]]:
    """Return the images of several folders with the same classes as one test part, and the names of the classes.

    Images come in a fixed random order.

    Args:
        root: parent of the folders.
        names: paths of the folders relative to root.

    Raises:
        RobustCliError: a folder is missing, or has other classes than the first.
    """
    folder = absolute(root)
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise RobustCliError(
            f"data.root: {folder} has no folder {missing[0]}; {len(missing)} of {len(names)} are missing"
        )
    classes = [_classes(folder / name) for name in names]
    for name, own in zip(names, classes, strict=True):
        if own.keys() != classes[0].keys():
            raise RobustCliError(
                f"data.root: {folder / name} has other classes than {names[0]}: only in {name}: "
                f"{_listed(set(own) - set(classes[0]))}; only in {names[0]}: {_listed(set(classes[0]) - set(own))}"
            )
    by_class: dict[str, list[str]] = {}
    for own in classes:
        for name, paths in _by_class(own, may_lack_images=True).items():
            by_class.setdefault(name, []).extend(paths)
    return _mixed(_split(folder, by_class, list(classes[0]), size)), list(classes[0])


def has_train_part(root: str) -> bool:
    """Return True if a folder has a train part."""
    return (absolute(root) / "train").is_dir()


def _is_tiny_imagenet(folder: Path) -> bool:
    return (folder / "val" / _ANNOTATIONS).is_file()


def _annotated(folder: Path) -> dict[str, str]:
    """Return the class of every image in val of TinyImageNet, by file name."""
    path = folder / "val" / _ANNOTATIONS
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, *rest = line.split("\t")
        if not name or "/" in name or not rest or not rest[0]:
            raise RobustCliError(f"{path}: line {number}: found '{line}'; expected FILE, CLASS and a box, with tabs")
        found[name] = rest[0]
    return found


def _tiny_val(folder: Path, names: Sequence[str], size: int) -> EncodedSplit:
    """The part val of TinyImageNet, which has labels."""
    classes = _annotated(folder)
    images = folder / "val" / _INNER
    if not images.is_dir():
        raise RobustCliError(f"{images}: no such folder; expected the images that {_ANNOTATIONS} lists")
    paths = _images(images)
    unknown = next((path for path in paths if classes.get(os.path.basename(path)) not in names), None)
    if unknown is not None:
        label = classes.get(os.path.basename(unknown))
        found = "is not listed" if label is None else f"has the class '{label}', which is not in train,"
        raise RobustCliError(f"{unknown}: {found} in {folder / 'val' / _ANNOTATIONS}; expected a class of train")
    by_class: dict[str, list[str]] = {}
    for path in paths:
        by_class.setdefault(classes[os.path.basename(path)], []).append(path)
    return _mixed(_split(folder / "val", by_class, names, size))


def _part(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    if not folder.is_dir():
        raise RobustCliError(f"data.root: there is no folder {folder}; set data.root to the folder of the images")
    raise RobustCliError(
        f"data.root: {folder} has no folder {' or '.join(names)}; "
        "expected train/<class>/<image> and test/<class>/<image> in it"
    )


def _classes(folder: Path, *, may_be_empty: bool = False) -> dict[str, Path]:
    """Folders of the classes by name, in order; a name in another Unicode form, in another part, is the same class."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        known = found.setdefault(unicodedata.normalize("NFC", path.name), path)
        if known != path:
            raise RobustCliError(
                f"data.root: {folder} has two folders named {path.name}, as different Unicode characters "
                f"({known.name!a} and {path.name!a}); expected one folder for each class: merge them"
            )
    if not found and not may_be_empty:
        raise RobustCliError(f"data.root: {folder} has no subfolders; expected one for each class")
    return {name: found[name] for name in sorted(found)}


def _by_class(classes: Mapping[str, Path], inner: str = "", *, may_lack_images: bool = False) -> dict[str, list[str]]:
    """Paths of the images of every class.

    Args:
        inner: subfolder of a class that contains its images.
        may_lack_images: a class may have no images.
    """
    found = {}
    for name, path in classes.items():
        images = path / inner
        if not images.is_dir():
            raise RobustCliError(f"{images}: no such folder; expected the images of this class")
        found[name] = _images(images)
        if not found[name] and not may_lack_images:
            raise RobustCliError(f"{images}: has no images; add some, or delete this class in all parts")
    return found


def _images(folder: Path) -> list[str]:
    """Paths of the images in a folder, sorted; other files are refused."""
    entries = sorted((entry for entry in os.scandir(folder) if not _is_litter(entry.name)), key=lambda one: one.path)
    paths = [entry.path for entry in entries]
    for path in paths:
        if not path.lower().endswith(_SUFFIXES):
            raise RobustCliError(
                f"{path}: is not a supported image; expected files ending in {', '.join(_SUFFIXES)}, "
                "directly in the folder of their class"
            )
    for entry in entries:
        # For example a folder, a broken link, or a pipe, which would block.
        if not entry.is_file():
            raise RobustCliError(f"{entry.path}: is not a file; expected only images in the folder of their class")
    return paths


def _split(folder: Path, by_class: Mapping[str, Sequence[str]], names: Sequence[str], size: int) -> EncodedSplit:
    """Return a part, class by class in the order of `names`."""
    paths = [path for name in names for path in by_class.get(name, ())]
    labels = [label for label, name in enumerate(names) for _ in by_class.get(name, ())]
    if not paths:
        raise RobustCliError(f"data.root: {folder} has no images; expected images in the folders of its classes")
    return EncodedSplit(PathFiles(folder, paths), torch.tensor(labels, dtype=torch.int64), size)


def _mixed(split: EncodedSplit) -> EncodedSplit:
    return split.reordered(fixed_order(len(split.labels)))


def _is_litter(name: str) -> bool:
    """Return True for files that file managers create."""
    return name.startswith(".") or name.lower() in _LITTER


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
