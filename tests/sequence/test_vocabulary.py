"""The ids of a vocabulary made for training from scratch."""

import pytest

from lumos.sequence.vocabulary import small_vocabulary


@pytest.mark.parametrize(("codes", "code_rows"), [(50, 50), (1000**2, 2000)])
def test_every_id_of_a_small_vocabulary_means_one_thing(codes: int, code_rows: int) -> None:
    found = small_vocabulary(100, codes, numbers=16)
    special = [found.begin, found.separator, found.video_start, found.video_end, found.frame_start, found.frame_end]
    numbers, rows = range(found.number_zero, found.number_zero + found.numbers), range(found.first_code, found.size)
    assert [*range(100), *special, found.newline, found.mask, *numbers, *rows] == list(range(found.size))
    assert (len(numbers), len(rows), found.codes, found.text_size) == (16, code_rows, codes, 100)
