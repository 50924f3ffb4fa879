"""TorchScript archives are read as data: the same tensors as torch.jit.load, and nothing else gets through."""

import pickle
import warnings
import zipfile
from collections.abc import Callable
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


OUTER = Outer()


@pytest.fixture(
    scope="module", params=[torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(3))], ids=["script", "trace"]
)
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "outer.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates making such archives
        torch.jit.save(request.param(OUTER), path)
    return path


def test_reads_what_torch_reads(archive: Path) -> None:
    tensors = read_archive(archive)
    expected = {**dict(OUTER.named_parameters()), **dict(OUTER.named_buffers())}
    assert set(tensors) == set(expected) and len(tensors) == 9
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_every_cut_and_no_file_are_refused(archive: Path, tmp_path: Path) -> None:
    content, path = archive.read_bytes(), tmp_path / "short.jit"
    with pytest.raises(FileNotFoundError, match="is missing; download it"):
        read_archive(path)
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"short.jit is truncated.*download it again"):
            read_archive(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        read_archive(path)


def test_no_damaged_byte_gives_anything_but_an_error_or_tensors(archive: Path, tmp_path: Path) -> None:
    content, path = archive.read_bytes(), tmp_path / "a.jit"
    start = content.index(b"data.pkl") + len(b"data.pkl")
    refused = 0
    for place in range(start, len(content), 61):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert read_archive(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 10


def unchanged(name: str, content: bytes) -> bytes:
    return content


def edited(
    archive: Path,
    edit: Callable[[str, bytes], bytes] = unchanged,
    compression: int = zipfile.ZIP_STORED,
    claimed: int = 0,  # bytes that its first numbers say to have
) -> Path:
    """A copy beside the archive, well-formed as a zip, its entries edited."""
    out = archive.with_name("edited.jit")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
        if claimed:
            new.getinfo("outer/data/0").file_size = claimed
    return out


def with_pickle(archive: Path, data: bytes) -> Path:
    return edited(archive, lambda name, content: data if name.endswith("/data.pkl") else content)


class Shell:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("exit 3",)


def named(name: str) -> bytes:
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n)R."


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((pickle.dumps(Shell(), protocol), "posix.system") for protocol in (0, 2, 4)),
        (named("builtins eval"), "builtins.eval"),
        (named("torch._utils _rebuild_tensor"), "torch._utils._rebuild_tensor"),
    ],
)
def test_other_names_are_refused_by_name_and_not_run(archive: Path, data: bytes, name: str) -> None:
    with pytest.raises(ValueError, match=f"edited.jit .*but names {name}, which could run code; do not use it"):
        read_archive(with_pickle(archive, data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02c__torch__\nA\n)R.",  # calls a class
        b"\x80\x02c__torch__\nA\n}(X\x01\x00\x00\x00aK\x01ub.",  # sets attributes of a class
        b"\x80\x02c__torch__\nA\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub.",  # a module that contains itself
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.",  # a tensor without numbers
        b"\x80\x02h\x07.",  # a value that was never stored
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a place in memory that a whole table would be made for
        b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.",  # a key whose hash would overflow the stack
        b"\x80\x02ctorch\ndevice\n}X\x03\x00\x00\x00runK\x01sb.",  # changes what the reader itself calls
        b"\x80\x02ctorch\ndevice\nN}X\x03\x00\x00\x00runK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\n)RK\x01)b.",
        b"\x80\x02]}s.",
        b"\x80\x02K\x01",  # no end
        b"\x80\x02\xff.",
        b"",
    ],
)
def test_nonsense_is_refused(archive: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"edited.jit is truncated, damaged or no TorchScript archive"):
        read_archive(with_pickle(archive, data))
    assert len(read_archive(archive)) == 9, "the reader itself is as it was"


def test_numbers_are_stored_once_uncompressed_little_end_first_and_reach_no_further(archive: Path) -> None:
    size = b"(K\x02K\x03K\x01K\x02t"  # of inner.0.weight
    for options, words in (
        ({"edit": lambda _, content: content.replace(size, b"(K\x02K\x07K\x01K\x02t")}, "out of bounds for storage"),
        (
            {"edit": lambda _, content: content.replace(b"ctorch\nFloatStorage\n", b"K\x01")},
            "no description of a tensor's numbers",
        ),
        ({"compression": zipfile.ZIP_DEFLATED}, "numbers uncompressed and once"),
        ({"claimed": 10**6}, "numbers uncompressed and once"),  # as entries that overlap do
        ({"edit": lambda name, content: b"big" if name.endswith("/byteorder") else content}, "little-endian"),
        ({"edit": lambda name, content: content[:-1] if "/data/" in name else content}, r"data/\d+ has"),
    ):
        with pytest.raises(ValueError, match=words):
            read_archive(edited(archive, **options))


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="must hold a module, got dict"):
        read_archive(tmp_path / "state.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a/readme", "words")
    with pytest.raises(ValueError, match=r"must hold one data.pkl, got 0"):
        read_archive(tmp_path / "other.zip")
