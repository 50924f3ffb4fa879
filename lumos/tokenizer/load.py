"""A weights folder -> the tokenizer in it: ours (`VideoTokenizer`) or Cosmos."""

from pathlib import Path

from lumos.tokenizer.cosmos import CosmosConfig, CosmosTokenizer
from lumos.tokenizer.model import VideoTokenizer, load_tokenizer
from lumos.weights import check_names, load_folder, read_config


def load_any_tokenizer(folder: Path) -> VideoTokenizer | CosmosTokenizer:
    """Read a tokenizer's weights folder of either kind: float32 on the CPU, in eval mode. Raises ValueError for a damaged one."""
    header, tensors = load_folder(folder, "tokenizer")
    if "cosmos" not in header["config"]:
        return load_tokenizer(folder)  # read twice, but small
    where = f"{folder}/config.json"
    if set(header["config"]) != {"cosmos"}:
        raise ValueError(
            f"{where} must hold nothing but cosmos in its config, got {', '.join(header['config'])}; remove the rest"
        )
    tokenizer = CosmosTokenizer(read_config(CosmosConfig, header["config"]["cosmos"], where))
    check_names(tensors, tokenizer.state_dict(), folder)
    tokenizer.load_state_dict(tensors)
    return tokenizer.eval()
