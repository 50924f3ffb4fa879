"""Pickles read as data: Python's own machine, limited to containers, numbers, text and the names that the caller knows.

All instructions are checked before the first one runs, because the machine would also reserve memory for made-up sizes.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

INSTRUCTIONS = """
PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS
MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 GLOBAL STACK_GLOBAL BINPERSID NEWOBJ REDUCE BUILD"""
MOST_TUPLES = 20_000  # a tuple inside a tuple, and so on, would overflow Python's own stack when it becomes a key
ERRORS = (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, OverflowError, ValueError)


class RefusedPickle(ValueError):
    """A pickle that is more than data."""


class DataUnpickler(pickle.Unpickler):
    """Knows no names and no references to the outside; a format that has some says what stands for them."""

    def find_class(self, module: str, name: str) -> Any:
        raise RefusedPickle(f"names {f'{module}.{name}':.80}, which could run code")

    def persistent_load(self, reference: Any) -> Any:
        raise RefusedPickle("refers to something outside")


def read_pickle(content: bytes, unpickler: Callable[[io.BytesIO], pickle.Unpickler] = DataUnpickler) -> Any:
    """The value of a pickle. Raises RefusedPickle, or a plain ValueError for one that is damaged."""
    try:
        tuples, allowed = 0, set(INSTRUCTIONS.split())
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name not in allowed:
                raise RefusedPickle(f"holds the pickle instruction {instruction.name}")
            tuples += instruction.name.startswith("TUPLE")
            if tuples > MOST_TUPLES or (instruction.name.endswith("PUT") and int(argument or 0) > len(content)):
                raise ValueError("made-up sizes")
        return unpickler(io.BytesIO(content)).load()
    except RefusedPickle:
        raise
    except ERRORS as error:
        raise ValueError(f"the pickle is damaged ({error or type(error).__name__})") from error
