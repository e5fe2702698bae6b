"""Blockwright fits a language model to a piece of hardware."""

__version__ = "0.1.0"
