"""Wootz: the whole life of a language model in one Python system."""

__version__ = "0.1.0"
