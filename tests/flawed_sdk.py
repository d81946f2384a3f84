"""A flawed plugin in a module of its own: it imports what it should import late."""

from __future__ import annotations

import sqlite3  # the stand-in for an SDK that is slow to import

from flawed import Flawed


class ImportsItsSdk(Flawed):
    """Its SDK comes with every `route`."""

    caught, says = "test_importing_the_plugin_imports_no_sdk", "sqlite3"
    sdk = sqlite3
