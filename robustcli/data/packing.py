"""Write an image folder into a few files that are mapped into memory."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from robustcli.architectures import ImageShape
from robustcli.data.datasets.channel_statistics import LevelCounts
from robustcli.data.datasets.encoded import EncodedSplit, decoder
from robustcli.data.datasets.folder_layout import both_parts, has_train_part, test_part
from robustcli.data.datasets.packed import MANIFEST, Manifest, PackedFile, PackedPart, PartName
from robustcli.errors import RobustCliError
from robustcli.store.files import replacing, write_json
from robustcli.store.runs import lock_folder

# Maximum bytes of a shard; a single image may be larger.
SHARD_BYTES = 2 << 30
# Number of images to read at once.
_CHUNK = 256

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
    lock = lock_folder(out)
    try:
        return _write(parts, classes, out, size, shard_bytes, progress)
    finally:
        lock.release()


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
        if path.name.startswith(("train", "test")):
            path.unlink()
    total, done = sum(len(part.labels) for part in parts.values()), 0
    digest = hashlib.sha256(str(ImageShape(3, size or 1, size or 1, len(classes))).encode())
    levels = LevelCounts(3)
    written: dict[PartName, PackedPart] = {}
    for name, part in parts.items():
        writer = _Writer(out, name, shard_bytes)
        with writer:
            digest.update(part.labels.numpy().tobytes())
            for images in _chunks(part, as_pixels=size is not None):
                for image in images:
                    writer.add(image)
                if size is not None:
                    pixels = np.stack(images)
                    digest.update(pixels.tobytes())
                    if name == "train":
                        levels.add(torch.from_numpy(pixels))
                done += len(images)
                progress(done, total)
        written[name] = writer.finished(part)
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
            with (folder / stated.file).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
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
    own = ("train.npz", "test.npz", "train-", "test-", MANIFEST, "lock")
    other = next((path.name for path in sorted(out.iterdir()) if not path.name.startswith(own)), None)
    if other is not None:
        raise RobustCliError(f"{out}: holds other files, such as {other}; name a new or empty folder")


def _chunks(part: EncodedSplit, *, as_pixels: bool) -> Iterator[Sequence[np.ndarray[Any, Any]]]:
    """Yield contents of the images of a part, a few at a time, as bytes."""
    for start in range(0, len(part.labels), _CHUNK):
        numbers = range(start, min(start + _CHUNK, len(part.labels)))
        if as_pixels:
            yield list(part.read(torch.tensor(numbers)).numpy())
        else:
            yield [np.frombuffer(part.files.read(number), dtype=np.uint8) for number in numbers]


class _Writer:
    """Writes the shards of one part."""

    def __init__(self, out: Path, part: PartName, shard_bytes: int) -> None:
        self._out, self._part, self._most = out, part, shard_bytes
        self._shards: list[PackedFile] = []
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._where: list[tuple[int, int]] = []

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._end_shard()
        else:
            # Remove incomplete files.
            self._open.__exit__(*error)

    def add(self, image: np.ndarray[Any, Any]) -> None:
        """Write one image."""
        if self._file is not None and self._bytes + image.nbytes > self._most:
            self._end_shard()
        if self._file is None:
            self._file = self._open.enter_context(replacing(self._out / self._name(len(self._shards))))
            self._bytes, self._sha256 = 0, hashlib.sha256()
        self._where.append((len(self._shards), self._bytes))
        data = np.ascontiguousarray(image).data
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += image.nbytes

    def finished(self, part: EncodedSplit) -> PackedPart:
        """Write the index, and return the entry of the part in the manifest."""
        where = np.array(self._where, dtype=np.int64)
        names = "".join(f"{name}\0" for name in part.files.names).encode("utf-8", "surrogateescape")
        arrays = {
            "labels": part.labels.numpy(),
            "names": np.frombuffer(names, dtype=np.uint8),
            "shard": where[:, 0].astype(np.int32),
            "start": where[:, 1],
            "length": np.array([part.files.length(number) for number in range(len(part.labels))], dtype=np.int64),
        }
        path = self._out / f"{self._part}.npz"
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        index = PackedFile(file=path.name, bytes=path.stat().st_size, sha256=sha256)
        return PackedPart(images=len(part.labels), index=index, shards=tuple(self._shards))

    def _name(self, number: int) -> str:
        return f"{self._part}-{number:05d}.bin"

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._open.close()
        self._file = None
        self._shards.append(
            PackedFile(file=self._name(len(self._shards)), bytes=self._bytes, sha256=self._sha256.hexdigest())
        )
