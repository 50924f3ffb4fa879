"""A released checkpoint becomes a model folder with the same numbers; anything else is refused and nothing is written."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from lumos.cli.main import main
from lumos.diffusion.sampler import SamplerConfig
from lumos.model.transformer import ModelConfig
from lumos.model_folder import load_decoder, load_model
from lumos.published import import_weights as importing
from lumos.published.import_weights import import_weights
from lumos.published.official import config_to_official, from_official, official_shapes, to_official
from lumos.sequence.prompt_template import TEMPLATE
from lumos.sequence.vocabulary import LUMOS, SENTENCE
from lumos.weights import load_folder, save_folder

CONFIG = ModelConfig(LUMOS.size, layers=2, width=16, heads=2, kv_heads=1, head_width=32, ffn=24, rope_theta=5e5, norm_eps=1e-6)
SHARDS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
INDEX = "model.safetensors.index.json"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = official_shapes(CONFIG)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def written(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in two shards, with a tokenizer beside the decoder, as released ones may have."""
    folder = tmp_path_factory.mktemp("released")
    extra = {"model.vqmodel.encoder.conv.weight": torch.zeros(2, 2), "model.vqmodel.steps": torch.zeros(1, dtype=torch.int64)}
    names = [*tensors, *extra]
    places = {name: SHARDS[number % 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        save_file({name: (tensors | extra)[name] for name in names if places[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({**config_to_official(CONFIG), "model_type": "any", "vq_config": {"x": 1}}))
    return folder


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text_file(path: Path, wrong: bool = False) -> Path:
    """A file that writes the published sentence with the published ids, and knows a few words more."""
    pieces = [("Gener", "ate", " a", " video", " with", " a", " resolution", " of", " "), (",", " consisting", " of", " ", None)]
    pieces += [(" frames", " at", " ", None, " frames", " per", " second", ",")]
    pieces += [(" according", " to", " the", " following", " prompt", ":", "\n")]
    ids = [SENTENCE[:9], SENTENCE[16:21], SENTENCE[21:29], SENTENCE[29:]]
    words = {word: i for row, numbers in zip(pieces, ids, strict=True) for word, i in zip(row, numbers, strict=True) if word}
    words |= {"x": 16471, " A": 500, " star": 501, "?": 502, **{str(digit): 16399 + digit + wrong for digit in range(10)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    split = Regex(r"\d|x(?=\d)|Gener|ate| (?=\d)| ?[A-Za-z]+|[,:\n]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(split, "isolated")
    tokenizer.save(str(path))
    return path


def test_the_imported_model_has_the_released_numbers(checkpoint: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    document = import_weights(checkpoint, tmp_path / "out")
    assert document["parameters"] == sum(tensor.numel() for tensor in tensors.values()) and document["dtype"] == "bfloat16"
    assert names_in(tmp_path / "out") == ["config.json", "model.safetensors"] and names_in(tmp_path) == ["checkpoint", "out"]
    _, found = load_folder(tmp_path / "out", "model")
    expected = dict(from_official(CONFIG, tensors.__getitem__))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], tensor), name
    config, model = load_decoder(tmp_path / "out")
    assert config.model == CONFIG and config.vocabulary == LUMOS and config.video.template == TEMPLATE
    assert (config.video.width, config.video.height, config.video.frames, config.video.fps) == (672, 384, 25, 12)
    assert config.sampler == SamplerConfig(sampler="released", steps=50, guidance=15.0, history=0.7)
    assert (config.video.window, config.video.latest) == (22, 21)
    assert torch.equal(model.head, expected["head"].float())


def test_one_file_keeps_its_type(tensors: dict[str, Tensor], checkpoint: Path, tmp_path: Path) -> None:
    for path in checkpoint.glob("model*"):
        path.unlink()
    full = {name: tensor.float() + 2**-14 for name, tensor in tensors.items()}
    save_file(full, checkpoint / "model.safetensors")
    assert import_weights(checkpoint, tmp_path / "out", size=(448, 256))["dtype"] == "float32"
    assert torch.equal(load_folder(tmp_path / "out", "model")[1]["norm"], full["model.norm.weight"])
    video = json.loads((tmp_path / "out" / "config.json").read_text())["config"]["video"]
    assert (video["width"], video["height"]) == (448, 256)


def test_export_is_the_way_back(written: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    import_weights(written, tmp_path / "once")
    config, model = load_decoder(tmp_path / "once")
    tensors_again = to_official(config.model, model.state_dict().__getitem__)
    save_folder(tmp_path / "exported", config_to_official(config.model), tensors_again)
    exported = load_file(tmp_path / "exported" / "model.safetensors")
    assert exported.keys() == tensors.keys() and all(torch.equal(exported[name], tensors[name]) for name in tensors)
    import_weights(tmp_path / "exported", tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_no_more_than_one_parameter_is_held(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, held, most = importing._read_tensor, list[weakref.ref[Tensor]](), 0

    def counted(name: str, path: Path) -> Tensor:
        nonlocal most
        tensor = read(name, path)
        held.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in held))
        return tensor

    monkeypatch.setattr(importing, "_read_tensor", counted)
    progress: list[tuple[int, int]] = []
    import_weights(written, tmp_path / "out", progress=lambda done, total: progress.append((done, total)))
    assert most == 3, "query, key and value, which are joined"
    assert progress == [(done, 29) for done in range(1, 30)]


def test_prompts_need_the_published_text_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    import_weights(checkpoint, tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"needs the text tokenizer file .*text_tokenizer\.json, which is missing"):
        load_model(tmp_path / "bare")
    with pytest.raises(FileNotFoundError, match=r"no\.json, which is missing"):
        import_weights(checkpoint, tmp_path / "out", text=tmp_path / "no.json")
    wrong = text_file(tmp_path / "wrong.json", wrong=True)
    with pytest.raises(ValueError, match="must be the published models' own"):
        import_weights(checkpoint, tmp_path / "out", text=wrong)
    assert not (tmp_path / "out").exists()
    file = text_file(checkpoint / "text_tokenizer.json")
    assert import_weights(checkpoint, tmp_path / "out")["has"] == ["decoder", "text_tokenizer"]
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    file.unlink()
    with pytest.raises(FileExistsError, match="would delete text_tokenizer"):
        import_weights(checkpoint, tmp_path / "out")


def test_the_cosmos_tokenizer_comes_along_or_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {"kind": "tokenizer", "format": 1, "config": {}}
    monkeypatch.setattr(importing, "import_cosmos", lambda _, out: save_folder(out, header, {"x": torch.ones(3)}))
    (tmp_path / "cosmos").mkdir()
    (tmp_path / "cosmos" / "encoder.jit").touch()
    cosmos, alone, out, again = (str(tmp_path / name) for name in ("cosmos", "alone", "out", "again"))
    assert main(["import-weights", cosmos, alone, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"weights": alone, "kind": "tokenizer"}
    assert main(["import-weights", cosmos, out, "--cosmos", alone]) == 2
    assert "leave it out" in capsys.readouterr().err
    for given, made in ((cosmos, out), (alone, again)):
        assert main(["import-weights", str(checkpoint), made, "--size", "448x256", "--json", "--cosmos", given]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["has"] == ["decoder", "tokenizer"] and document["size"] == "448x256"
        config, tensors = load_folder(Path(made) / "tokenizer", "tokenizer")
        assert config == {} and torch.equal(tensors["x"], torch.ones(3))


def config(**values: Any) -> Change:
    return lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | values)
    )


def index(**places: Any) -> Change:
    def change(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps({"weight_map": values["weight_map"] | places}))

    return change


def shards(change: Callable[[dict[str, Tensor]], Any]) -> Change:
    """Rewrite all tensors as one file."""

    def apply(folder: Path) -> None:
        values = load_file(folder / SHARDS[0]) | load_file(folder / SHARDS[1])
        change(values)
        save_file(values, folder / "model.safetensors")

    return apply


def llama(values: dict[str, Tensor]) -> None:
    for name in [name for name in values if "q_norm" in name or "k_norm" in name]:
        del values[name]


def wrapped(values: dict[str, Tensor]) -> None:
    for name in list(values):
        values[f"module.{name}"] = values.pop(name)


def halve(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_a_pickle(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()


def write(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (config(vocab_size=65_536), ["config.json: vocab_size must be 129536", "got 65536"]),
        (config(num_hidden_layers=16), ["lacks model.layers.2.input_layernorm.weight"]),
        (config(hidden_size=32), ["model.embed_tokens.weight must have shape [129536, 32] by config.json, got [129536, 16]"]),
        (config(num_key_value_heads=2), ["k_proj.weight must have shape [64, 16]"]),
        (config(rope_scaling={"rope_type": "llama3"}), ["rope_scaling", "another model"]),
        (lambda folder: (folder / "config.json").unlink(), ["config.json is missing"]),
        (write("config.json", "{"), ["config.json is not readable JSON"]),
        (shards(llama), ["no whole Lumos-1 checkpoint", "lacks model.layers.0.self_attn.q_norm.weight", "and 5 more"]),
        (shards(lambda values: values.update(odd=torch.ones(1))), ["has the unknown odd"]),
        (shards(lambda values: values.update({NORM: torch.ones(16, dtype=torch.int8)})), ["norm", "got I8"]),
        (shards(lambda values: values.update({UP: torch.ones(24, 16)})), [f"{UP} must be of one type", "got BF16 and F32"]),
        (shards(lambda values: values[NORM].view(-1)[3:4].fill_(float("nan"))), [f"{NORM} holds NaN"]),
        (shards(wrapped), ["names that begin with 'module.'", "remove that prefix"]),
        (lambda folder: (folder / SHARDS[1]).unlink(), [SHARDS[1], "is missing", "copy the whole folder"]),
        (halve, [SHARDS[1], "truncated"]),
        (write(SHARDS[1], "version https://git-lfs.github.com/spec/v1"), [SHARDS[1], "is a Git LFS pointer", "run git lfs pull"]),
        (lambda folder: (folder / INDEX).unlink(), ["must hold model.safetensors, or"]),
        (only_a_pickle, ["got pytorch_model.bin, which could run code"]),
        (write(INDEX, "{}"), ["weight_map"]),
        (index(a=3), ["beside it, got '3'"]),
        (index(a="../other.safetensors"), ["files beside it", "'../other"]),
        (index(lost=SHARDS[0]), ["index.json", "lacks lost"]),
    ],
)
def test_anything_but_a_whole_checkpoint_is_refused(
    spoil: Change, words: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoint)
    assert main(["import-weights", str(checkpoint), str(tmp_path / "out")]) == 2
    out, line = capsys.readouterr()
    assert out == "" and line.startswith("lumos: ") and line.count("\n") == 1, line
    assert all(word in line for word in words), line
    assert names_in(tmp_path) == ["checkpoint"], "nothing is written"


def test_a_file_that_changes_while_it_is_read_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = importing._read_tensor

    def cut_and_read(name: str, path: Path) -> Tensor:
        if path.name == SHARDS[1]:
            halve(checkpoint)
        return read(name, path)

    monkeypatch.setattr(importing, "_read_tensor", cut_and_read)
    with pytest.raises(ValueError, match=f"{SHARDS[1]} is truncated"):
        import_weights(checkpoint, tmp_path / "out")
    assert names_in(tmp_path) == ["checkpoint"]


def test_folders_and_sizes_that_cannot_be_meant_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    before = (checkpoint / "config.json").read_bytes()
    with pytest.raises(ValueError, match="must be another one than the checkpoint"):
        import_weights(checkpoint, tmp_path / "out" / ".." / "checkpoint")
    with pytest.raises(ValueError, match="got 1024x1024; use 448x256 or 672x384"):
        import_weights(checkpoint, tmp_path / "out", size=(1024, 1024))
    assert (checkpoint / "config.json").read_bytes() == before and names_in(tmp_path) == ["checkpoint"]
