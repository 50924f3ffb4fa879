"""What the tests of training runs share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.toys import save_toy_tokenizer, use_few_captions


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")


@pytest.fixture(scope="package", autouse=True)
def few_captions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_few_captions(patch)
        yield
