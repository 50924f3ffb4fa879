"""Pickles read as data: Python's own machine, limited to the instructions and the names that the caller lists.

All instructions are checked before the first one runs, because the machine would also reserve memory for made-up sizes.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Set
from typing import Any

MOST_TUPLES = 20_000  # a tuple inside a tuple, and so on, would overflow Python's own stack when it becomes a key
ERRORS = (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, ValueError)


class RefusedPickle(ValueError):
    """A pickle that is more than data."""


def read_pickle(
    content: bytes,
    instructions: Set[str],
    find: Callable[[str], Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of a pickle. `find`: dotted name -> what stands for it, or RefusedPickle; `persistent`: what an outside
    reference stands for; both only matter when `instructions` has GLOBAL and BINPERSID.

    Raises RefusedPickle, or a plain ValueError for a pickle that is damaged.
    """
    try:
        tuples, texts = 0, ["", ""]
        for instruction, argument, _ in pickletools.genops(content):
            if instruction.name not in instructions:
                if instruction.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                    name = ".".join(texts) if argument is None else argument.replace(" ", ".")
                    raise RefusedPickle(f"names {name:.80}, which could run code")
                raise RefusedPickle(f"holds the pickle instruction {instruction.name}")
            texts = [texts[1], argument] if isinstance(argument, str) else texts
            tuples += instruction.name.startswith("TUPLE")
            if tuples > MOST_TUPLES or (instruction.name.endswith("PUT") and int(argument or 0) > len(content)):
                raise ValueError("made-up sizes")
        return _Machine(content, find, persistent).load()
    except RefusedPickle:
        raise
    except ERRORS as error:
        raise ValueError(f"the pickle is damaged ({error or type(error).__name__})") from error


class _Machine(pickle.Unpickler):
    def __init__(self, content: bytes, find: Callable[[str], Any] | None, persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(io.BytesIO(content))
        self.find, self.persistent = find, persistent

    def find_class(self, module: str, name: str) -> Any:
        assert self.find is not None
        return self.find(f"{module}.{name}")

    def persistent_load(self, reference: Any) -> Any:
        assert self.persistent is not None
        return self.persistent(reference)
