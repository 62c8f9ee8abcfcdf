"""Files: reading what others wrote (only regular files, only what they can hold, only pictures of known formats), and
writing whole ones."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import secrets
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np

PICTURES = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
"""Pillow's names of the formats that are decoded: those that its own code and plain image libraries read. Pillow knows
more, and goes by content: an EPS file, called x.png or not, would be given to Ghostscript, which runs it as a program.
"""

MOST_PIXELS = 178_956_970
"""Pixels of a picture that are decoded, unless said otherwise: where Pillow, too, suspects a decompression bomb."""

MOST_TEXT = 2**24
"""Bytes of a text file that are read: far beyond any list of names or settings."""


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The file, open for reading. Raises OSError for what is not a regular file: a pipe or a device might never end."""
    kind = os.stat(path).st_mode
    if stat.S_ISREG(kind):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        kind = os.fstat(descriptor).st_mode  # of what was opened, whatever has this name by now
        if stat.S_ISREG(kind):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
    raise OSError(f"{os.fspath(path)} is {'a folder' if stat.S_ISDIR(kind) else 'not a regular file'}")


def read_bytes(path: str | os.PathLike[str], most: int = MOST_TEXT) -> bytes:
    """The contents. Raises ValueError for more than `most` bytes, OSError for what is not a regular file."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{os.fspath(path)} is larger than {size_of(most)}, which no such file is")
    return content


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> str:
    """The contents as UTF-8. Raises ValueError for other bytes or too many, OSError for what is not a regular file."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """`write(temporary)`, then put it in the place of `path`: a crash leaves the old file or the new, never a part.

    A `path` that is a link is replaced, and what it points to left alone.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    temporary = temporary_beside(path)
    try:
        write_durably(temporary, write)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder, `.NAME.RANDOM.tmp`, that nobody can guess and so nobody can have planted a link at.

    Make it exclusively, as `write_durably`, `mkdir` and `link` do.
    """
    name = path.name if len(os.fsencode(path.name)) <= 200 else path.name[:40]  # most systems take 255 bytes
    return path.with_name(f".{name}.{secrets.token_hex(8)}.tmp")


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """`write(path)` to a new file, readable by whom the user's mask lets, and on the disk when this returns.

    Raises:
        FileExistsError: If anything has this name, a link to nowhere included.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    write(path)
    path.chmod(stat.S_IMODE(mode))  # safetensors makes files that only their owner may read
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder, too, must reach the disk: new files and renames."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(count: float) -> str:
    """A number of bytes, to be read."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"


# ---- pictures


@functools.cache
def formats() -> tuple[str, ...]:
    """Of `PICTURES`, those that this Pillow can decode."""
    from PIL import Image

    Image.init()
    return tuple(name for name in PICTURES if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """What names of such pictures end in: ".png", …"""
    from PIL import Image

    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def open_picture(file: IO[bytes] | str | os.PathLike[str], most_pixels: int = MOST_PIXELS) -> Any:
    """A PIL image of one of the known formats, not yet decoded, to be closed by the caller.

    Raises PIL.UnidentifiedImageError for anything else, ValueError for more pixels than that, OSError for a path of no
    regular file.
    """
    from PIL import Image

    if isinstance(file, (str, os.PathLike)):
        open_regular(file).close()
    with unlimited_pixels():
        picture = Image.open(file, formats=list(formats()))
    width, height = picture.size
    if width * height > most_pixels:
        picture.close()
        raise ValueError(f"is {width}×{height} pixels, more than the {most_pixels} that are allowed (data.most_pixels)")
    return picture


@contextlib.contextmanager
def unlimited_pixels() -> Iterator[None]:
    """Pillow's own limit, which it has only for the whole process and first only warns of, left out meanwhile."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# ---- arrays


class ArrayFile(Mapping[str, np.ndarray]):
    """The arrays of an .npz file by name, or the one of an .npy file under the name "images", read when asked for.

    Args:
        most: bytes of an array that may be unpacked into memory; larger ones are mapped, as .npy files always are,
            and refused where they are compressed

    Raises:
        ValueError: Naming the file, for any other file, and for arrays of other lengths than their headers say,
            of objects or too large.
    """

    def __init__(self, path: str | os.PathLike[str], most: float) -> None:
        self.path, self.most = Path(path), most
        with open_regular(path) as file:
            start = file.read(8)
            self.packed = start.startswith(b"PK")
            self._members: dict[str, zipfile.ZipInfo] = {}
            if self.packed:
                try:
                    with zipfile.ZipFile(file) as packed:
                        infos = packed.infolist()
                except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error) as error:
                    raise ValueError(self._fault(f"as a zip file it is damaged: {error}")) from error
                self._members = {
                    info.filename.removesuffix(".npy"): info for info in infos if info.filename.endswith(".npy")
                }
                if not self._members:
                    raise ValueError(self._fault("it is a zip file without arrays"))
            elif start[:6] != b"\x93NUMPY":
                raise ValueError(self._fault(f"it begins with {start!r}, as neither of them does"))

    def _fault(self, why: str) -> str:
        return (
            f"{self.path} is not a readable .npz or .npy file of images ({why}); save one with "
            "numpy.savez(file, images=array)"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._members if self.packed else ("images",))

    def __len__(self) -> int:
        return len(self._members) if self.packed else 1

    def __getitem__(self, name: str) -> np.ndarray:
        if not self.packed:
            if name != "images":
                raise KeyError(name)
            with open_regular(self.path) as file:
                return self._mapped(file, 0, os.fstat(file.fileno()).st_size, name)
        member = self._members[name]
        with open_regular(self.path) as file:
            if member.file_size <= self.most:
                return self._unpacked(file, member, name)
            if member.compress_type == zipfile.ZIP_STORED:
                return self._mapped(file, _start_of(file, member), member.file_size, name)
        raise ValueError(
            f"{self.path}: its array {name!r} takes {size_of(member.file_size)} unpacked, more than the "
            f"{size_of(self.most)} that data.memory_gib allows: save it with numpy.savez or numpy.save, uncompressed, "
            "which is read in place, or raise data.memory_gib"
        )

    def _unpacked(self, file: BinaryIO, member: zipfile.ZipInfo, name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(file) as packed, packed.open(member) as stream:
                shape, columns_first, dtype, length = self._header(cast(BinaryIO, stream), name)
                self._check_length(shape, dtype, member.file_size - length, name)
                content = stream.read()
        except ValueError:
            raise
        except Exception as error:  # what zlib, zip files and numpy's headers raise on damage
            raise ValueError(self._fault(f"its array {name!r} is damaged: {error}")) from error
        self._check_length(shape, dtype, len(content), name)
        return np.frombuffer(content, dtype).reshape(shape, order="F" if columns_first else "C")

    def _mapped(self, file: BinaryIO, start: int, size: int, name: str) -> np.ndarray:
        file.seek(start)
        shape, columns_first, dtype, length = self._header(file, name)
        self._check_length(shape, dtype, size - length, name)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", start + length, shape, "F" if columns_first else "C")

    def _header(self, file: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """Shape, whether columns come first, dtype, and the header's length."""
        npy = np.lib.format
        try:
            version = npy.read_magic(file)
            readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"of version {version}")
            start = file.tell()
            shape, columns_first, dtype = readers[version](file)
        except Exception as error:  # numpy parses a Python literal there
            raise ValueError(self._fault(f"the header of its array {name!r} is damaged")) from error
        if dtype.hasobject:
            raise ValueError(
                self._fault(f"its array {name!r} holds Python objects, which are not read: they could run code")
            )
        return shape, columns_first, dtype, file.tell() - start + npy.MAGIC_LEN

    def _check_length(self, shape: tuple[int, ...], dtype: np.dtype[Any], there: int, name: str) -> None:
        wanted = dtype.itemsize
        for n in shape:
            wanted *= n
        if dtype.itemsize < 1 or any(n < 0 for n in shape) or wanted > there:  # some numpy let an item's size overflow
            raise ValueError(
                self._fault(
                    f"its array {name!r} is cut short: {shape} {dtype} would take {wanted} bytes, and {there} are there"
                )
            )


def _start_of(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, a name and an extra field."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{file.name}: as a zip file it is damaged")
    name, extra = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + name + extra


def only_images(arrays: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The names of the images and of their labels, or None, in an .npz: "images" and "labels", else guided-diffusion's
    "arr_0" and "arr_1", else the only array. Raises ValueError where neither is there."""
    names = list(arrays)
    if "images" in names:
        return "images", "labels" if "labels" in names else None
    if "arr_0" in names:
        return "arr_0", "labels" if "labels" in names else "arr_1" if "arr_1" in names else None
    if len(names) == 1:
        return names[0], None
    shown = ", ".join(repr(name) for name in sorted(names)[:8])
    raise ValueError(f"{os.fspath(path)} holds {shown}: expected an array named 'images', or only one array")
