"""Write an image folder into a few files that are mapped into memory."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustcli.architectures import ImageShape
from robustcli.data.datasets.channel_statistics import LevelCounts
from robustcli.data.datasets.encoded import EncodedSplit, decoder
from robustcli.data.datasets.folder_layout import both_parts, has_train_part, test_part
from robustcli.data.datasets.packed import MANIFEST, Manifest, PackedFile, PackedPart, PartName
from robustcli.errors import RobustCliError
from robustcli.store.files import file_digest, replacing, write_json
from robustcli.store.runs import LOCK, locked

# Maximum bytes of a shard; a single image may be larger.
SHARD_BYTES = 2 << 30
# Names of shards and indices, whole or half-written; other files named train or test are those of a user.
_OWN = re.compile(r"(train|test)(-[0-9]{5,}\.bin|\.npz)(\.writing)?")
# Number of images to read at once.
_CHUNK = 256

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int], None]


def pack(
    root: str, out: Path, size: int | None, *, shard_bytes: int = SHARD_BYTES, progress: Progress = lambda _, __: None
) -> Manifest:
    """Write an image folder into `out`, which is new, empty or left by an interrupted run.

    Files are written atomically, and the manifest is written last.

    Args:
        root: image folder with train/<class>/ and test/<class>/ or val/<class>/, or only the test part.
        out: folder to write.
        size: height and width of the pixels to store; None stores the original files.
        shard_bytes: maximum bytes in a shard.
        progress: called with the number of images written so far and the total.

    Raises:
        RobustCliError: the folder cannot be read, or `out` contains other files.
    """
    parts: dict[PartName, EncodedSplit] = {}
    # Stored files have no size; it is not used.
    if has_train_part(root):
        parts["train"], parts["test"], classes = both_parts(root, size or 1)
    else:
        parts["test"], classes = test_part(root, size or 1)
    _require_free(out)
    with locked(out):
        return _write(parts, classes, out, size, shard_bytes, progress)


def _write(
    parts: Mapping[PartName, EncodedSplit],
    classes: Sequence[str],
    out: Path,
    size: int | None,
    shard_bytes: int,
    progress: Progress,
) -> Manifest:
    for path in out.iterdir():
        # Files of an interrupted run, which may have had more shards.
        if _OWN.fullmatch(path.name):
            path.unlink()
    total, done = sum(len(part.labels) for part in parts.values()), 0
    digest = hashlib.sha256(str(ImageShape(3, size or 1, size or 1, len(classes))).encode())
    levels = LevelCounts(3)

    def images_of(name: PartName, part: EncodedSplit) -> Iterator[Array]:
        nonlocal done
        digest.update(part.labels.numpy().tobytes())
        for images in _chunks(part, as_pixels=size is not None):
            if size is not None:
                pixels = np.stack(images)
                digest.update(pixels.tobytes())
                if name == "train":
                    levels.add(torch.from_numpy(pixels))
            yield from images
            done += len(images)
            progress(done, total)

    written = {name: _write_part(out, name, part, images_of(name, part), shard_bytes) for name, part in parts.items()}
    has_statistics = size is not None and "train" in parts
    mean, std = levels.mean_and_std() if has_statistics else (None, None)
    names = [name for part in parts.values() for name in part.files.names]
    manifest = Manifest(
        kind="files" if size is None else "pixels",
        size=size,
        classes=tuple(classes),
        decode=decoder(names),
        mean=mean,
        std=std,
        digest=digest.hexdigest() if has_statistics else None,
        parts=written,
    )
    write_json(out / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def check(folder: Path, manifest: Manifest) -> None:
    """Compare the contents of a packed folder with its digests.

    Raises:
        RobustCliError: a file has changed.
    """
    for part in manifest.parts.values():
        for stated in (part.index, *part.shards):
            found = file_digest(folder / stated.file)
            if found != stated.sha256:
                raise RobustCliError(
                    f"{folder / stated.file}: the contents have changed (SHA-256 {found[:12]}, {MANIFEST} states "
                    f"{stated.sha256[:12]}); pack the folder again"
                )


def _require_free(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RobustCliError(f"{out}: is a file; expected a new or empty folder")
    if (out / MANIFEST).exists():
        raise RobustCliError(
            f"{out}: holds packed images already; name a new folder, or `robust pack {out} --check` to check them"
        )
    others = (path.name for path in sorted(out.iterdir()) if not _OWN.fullmatch(path.name))
    other = next((name for name in others if name != LOCK and not name.startswith(MANIFEST)), None)
    if other is not None:
        raise RobustCliError(f"{out}: holds other files, such as {other}; name a new or empty folder")


def _chunks(part: EncodedSplit, *, as_pixels: bool) -> Iterator[Sequence[Array]]:
    """Yield contents of the images of a part, a few at a time, as bytes."""
    for start in range(0, len(part.labels), _CHUNK):
        numbers = range(start, min(start + _CHUNK, len(part.labels)))
        if as_pixels:
            yield list(part.read(torch.tensor(numbers)).numpy())
        else:
            yield [np.frombuffer(part.files.read(number), dtype=np.uint8) for number in numbers]


def _write_part(out: Path, name: PartName, part: EncodedSplit, images: Iterator[Array], most: int) -> PackedPart:
    """Write the shards and the index of a part; a shard has at most `most` bytes, or a single image."""
    shards: list[PackedFile] = []
    where: list[tuple[int, int]] = []
    image = next(images, None)
    while image is not None:
        path = out / f"{name}-{len(shards):05d}.bin"
        size, sha256 = 0, hashlib.sha256()
        with replacing(path) as file:
            while image is not None and (not size or size + image.nbytes <= most):
                where.append((len(shards), size))
                data = np.ascontiguousarray(image).data
                file.write(data)
                sha256.update(data)
                size += image.nbytes
                image = next(images, None)
        shards.append(PackedFile(file=path.name, bytes=size, sha256=sha256.hexdigest()))
    names = "".join(f"{file}\0" for file in part.files.names).encode("utf-8", "surrogateescape")
    shard, start = np.array(where, dtype=np.int64).reshape(-1, 2).T
    arrays = {
        "labels": part.labels.numpy(),
        "names": np.frombuffer(names, dtype=np.uint8),
        "shard": shard.astype(np.int32),
        "start": start,
        "length": np.array([part.files.length(number) for number in range(len(part.labels))], dtype=np.int64),
    }
    path = out / f"{name}.npz"
    with replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    index = PackedFile(file=path.name, bytes=path.stat().st_size, sha256=file_digest(path))
    return PackedPart(images=len(part.labels), index=index, shards=tuple(shards))
