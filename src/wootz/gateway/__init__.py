"""The HTTP service: keys, limits, OpenAI's endpoints, streaming, and the path that every request takes."""

from wootz.gateway.application import Application
from wootz.gateway.gateway import Gateway
from wootz.gateway.keys import SCOPES, Key, KeyStore
from wootz.gateway.routes import add_routes, install
from wootz.gateway.surfaces import working

__all__ = ["SCOPES", "Application", "Gateway", "Key", "KeyStore", "add_routes", "install", "working"]
