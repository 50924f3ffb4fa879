"""Lumos-1: text, images and video in one autoregressive model with discrete diffusion inside every frame."""

__version__ = "0.1.0"
