"""Arrays that are larger than memory, written row by row into an .npz file and read back some rows at a time."""

import math
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class GrowingArray:
    """An array whose rows are collected in an unnamed temporary file, within a `with` block.

    Args:
        folder: folder on the disk for the rows.
        row: shape of one row.
        dtype: type of the array if no row is ever added.
    """

    def __init__(self, folder: Path, row: tuple[int, ...], dtype: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        self._row, self._dtype, self._rows = row, np.dtype(dtype), 0

    def __enter__(self) -> "GrowingArray":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (n, ...), which all have one type."""
        assert rows.shape[1:] == self._row
        self._dtype = rows.dtype
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def write(self, file: Any) -> None:
        """Write the array in the format of numpy.save."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row),
        }
        np.lib.format.write_array_header_1_0(file, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, 1 << 20)


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any] | GrowingArray]) -> None:
    """Write arrays as numpy.savez_compressed does."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, GrowingArray):
                    array.write(member)
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def read_rows(archive: zipfile.ZipFile, name: str, size: int) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array in an .npz file, at most `size` at a time; yields at least one part, possibly empty.

    Raises:
        Exception: one of `UNREADABLE`, if the file is damaged or the array is of another kind.
    """
    with archive.open(f"{name}.npy") as file:
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = reader[np.lib.format.read_magic(file)](file)
        if is_fortran or dtype.hasobject or not shape:
            raise ValueError(f"{name} is not a plain array of rows")
        count, row = shape[0], shape[1:]
        for start in range(0, max(count, 1), size):
            rows = min(size, count - start)
            data = file.read(rows * math.prod(row) * dtype.itemsize)
            yield np.frombuffer(bytearray(data), dtype).reshape(rows, *row)
        if file.read(1):
            raise ValueError(f"{name} has more bytes than its shape says")
