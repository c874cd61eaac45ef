"""The web pages: sign in, chat, models, keys, requests."""

from wootz.console.routes import install

__all__ = ["install"]
