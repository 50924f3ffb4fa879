"""TorchScript archives are read as data: the same tensors as torch.jit.load, and nothing else gets through."""

import pickle
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lumos.published.archive import read_archive


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 1, 2, generator=torch.Generator().manual_seed(0)))
        self.register_buffer("_steps", torch.arange(5), persistent=False)
        self.sizes, self.names, self.ratio, self.nothing = [1, 2], {"a": 1}, 0.5, None
        self.device, self.many = torch.device("cpu"), [torch.ones(1)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight.sum() * self.ratio + self._steps.sum()


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Inner(), nn.Linear(4, 4, dtype=torch.float64))
        self.register_buffer("brain", torch.arange(6, dtype=torch.bfloat16) / 3)
        self.register_buffer("part", torch.arange(12.0).view(3, 4).t()[1:, :2])
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("scalar", torch.tensor(7, dtype=torch.int16))
        self.register_buffer("empty", torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "outer.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates making such archives
        torch.jit.save(torch.jit.script(Outer()), path)
    return path


def test_reads_what_torch_reads(archive: Path) -> None:
    tensors = read_archive(archive)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(archive)
    expected = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert set(tensors) == set(expected) and len(tensors) == 9
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_reads_a_traced_archive(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Outer(), torch.ones(3)), tmp_path / "a.jit")
    assert torch.equal(read_archive(tmp_path / "a.jit")["inner.0.weight"], Outer().inner[0].weight)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(archive: Path, tmp_path: Path, share: float) -> None:
    content = archive.read_bytes()
    path = tmp_path / "short.jit"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"short.jit is truncated.*download it again"):
        read_archive(path)


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is missing; download it"):
        read_archive(tmp_path / "a.jit")


def test_no_damaged_byte_gives_anything_but_an_error_or_tensors(archive: Path, tmp_path: Path) -> None:
    content, path = archive.read_bytes(), tmp_path / "a.jit"
    start = content.index(b"data.pkl") + len(b"data.pkl")
    refused = 0
    for place in range(start, len(content), 61):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            assert read_archive(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 10


def rewritten(archive: Path, out: Path, data: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of the archive, well-formed as a zip, with another data.pkl."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, data if data is not None and name.endswith("/data.pkl") else old.read(name))
    return out


def data_of(archive: Path) -> bytes:
    with zipfile.ZipFile(archive) as file:
        return next(file.read(name) for name in file.namelist() if name.endswith("/data.pkl"))


class Shell:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("exit 3",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_command_is_refused_by_name_and_not_run(archive: Path, tmp_path: Path, protocol: int) -> None:
    path = rewritten(archive, tmp_path / "a.jit", pickle.dumps(Shell(), protocol))
    words = "names posix.system, which could run code" if protocol == 2 else "holds the pickle instruction FRAME"
    with pytest.raises(ValueError, match=f"a.jit .*but {words}; do not use it"):
        read_archive(path)


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch load", "collections Counter", "torch._utils _rebuild_tensor", "torch ClassType"]
)
def test_other_names_are_refused_by_name(archive: Path, tmp_path: Path, name: str) -> None:
    path = rewritten(archive, tmp_path / "a.jit", b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n)R.")
    with pytest.raises(ValueError, match=f"but names {name.replace(' ', '.')}, which could run code; do not use it"):
        read_archive(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02c__torch__\nA\n)R.",  # calls a class
        b"\x80\x02c__torch__\nA\n}(X\x01\x00\x00\x00aK\x01ub.",  # sets attributes of a class
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",  # a tensor without numbers
        b"\x80\x02h\x07.",  # a value that was never stored
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in memory that a whole table would be made for
        b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",  # a key whose hash would overflow the stack
        b"\x80\x02ctorch\ndevice\n}X\x03\x00\x00\x00runK\x01sb.",  # changes what the reader itself calls
        b"\x80\x02ctorch\ndevice\nN}X\x03\x00\x00\x00runK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n)RK\x01)b.",
        b"\x80\x02]}s.",
        b"\x80\x02K\x01",  # no end
        b"\x80\x02\xff.",
        b"",
    ],
)
def test_nonsense_is_refused(archive: Path, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a.jit is truncated, damaged or no TorchScript archive"):
        read_archive(rewritten(archive, tmp_path / "a.jit", data))


def test_a_tensor_cannot_reach_beyond_its_numbers(archive: Path, tmp_path: Path) -> None:
    data = data_of(archive)
    size = b"(K\x02K\x03K\x01K\x02t"  # of inner.0.weight
    assert data.count(size) == 1
    path = rewritten(archive, tmp_path / "a.jit", data.replace(size, b"(K\x02K\x07K\x01K\x02t"))
    with pytest.raises(ValueError, match="out of bounds for storage of size 48"):
        read_archive(path)


def test_a_module_that_contains_itself_ends(archive: Path, tmp_path: Path) -> None:
    record = b"\x80\x02c__torch__\nA\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub."
    with pytest.raises(ValueError, match="holds no tensors with names"):
        read_archive(rewritten(archive, tmp_path / "a.jit", record))


def test_compressed_numbers_are_refused(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="uncompressed"):
        read_archive(rewritten(archive, tmp_path / "a.jit", compression=zipfile.ZIP_DEFLATED))


def archive_of_bytes(path: Path, sizes: list[int]) -> Path:
    """A well-formed archive of uint8 tensors whose entries claim so many bytes, from where they start."""

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    data = b"\x80\x02c__torch__\nA\n)\x81}("
    for number, size in enumerate(sizes):
        count = b"J" + size.to_bytes(4, "little")
        storage = b"(" + text("storage") + b"ctorch\nByteStorage\n" + text(str(number)) + text("cpu") + count + b"tQ"
        view = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + count + b"\x85K\x01\x85tR"
        data += text(f"t{number}") + view
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data + b"ub.")
        for number in range(len(sizes)):
            file.writestr(f"a/data/{number}", bytes(100))
        end = file.fp.tell()
        for entry, size in zip(file.filelist[1:], sizes, strict=True):
            file.fp.seek(entry.header_offset + 30 + len(entry.filename))
            content = file.fp.read(size)
            entry.file_size, entry.compress_size, entry.CRC = len(content), len(content), zlib.crc32(content)
        file.fp.seek(end)
    return path


def test_entries_that_overlap_are_refused(tmp_path: Path) -> None:
    """Each may claim all that follows it: a small file would fill the memory."""
    assert {len(tensor) for tensor in read_archive(archive_of_bytes(tmp_path / "a.jit", [100, 100])).values()} == {100}
    with pytest.raises(ValueError, match=r"must store data/\d+ uncompressed and once|Overlapped"):
        read_archive(archive_of_bytes(tmp_path / "a.jit", [2000 - 110 * number for number in range(16)]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="must hold a module, got dict"):
        read_archive(tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a/readme", "words")
    with pytest.raises(ValueError, match=r"must hold one data.pkl, got 0"):
        read_archive(tmp_path / "other.zip")


def test_numbers_of_another_byte_order_are_refused(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jit"
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("/byteorder") else old.read(name))
    with pytest.raises(ValueError, match="little-endian"):
        read_archive(out)
