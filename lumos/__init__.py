"""Lumos-1: text, images and video in one autoregressive model with discrete diffusion inside every frame."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`from lumos import Generator` loads torch only then."""
    if name == "Generator":
        from lumos.generate import Generator

        return Generator
    raise AttributeError(f"module 'lumos' has no attribute {name!r}")
