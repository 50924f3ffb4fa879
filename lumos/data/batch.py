"""What every data source yields and the objective takes: prompts and codes."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Right-aligned prompt ids text_BS with their lengths, codes_BTHW."""

    text_BS: Tensor
    length_B: Tensor
    codes_BTHW: Tensor
