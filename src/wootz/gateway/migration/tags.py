"""What the requests of a migration are tagged with; `wootz cost report --by tag:migration_arm` groups by it too."""

MIGRATION = "migration"
"""Its id."""
ARM = "migration_arm"
"""The model that a request is meant for: ``old``, ``new``, ``shadow`` (a copy); ``fallback``: the new one did not
answer, so the old one was asked."""
