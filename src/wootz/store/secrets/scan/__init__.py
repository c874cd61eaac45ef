"""Finding secrets where they must not be. See ``docs/secrets.md``."""

from wootz.store.secrets.scan.finding import Finding
from wootz.store.secrets.scan.scanning import scan_history, scan_paths, scan_texts

__all__ = ["Finding", "scan_history", "scan_paths", "scan_texts"]
