"""One call of `route`: where it prints, what was asked of all verbs, and the router once it is needed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from compute_router.cli.output import Output

if TYPE_CHECKING:
    from compute_router.router import Router
    from compute_router.store import RunFolder

__all__ = ["Cli"]


class Cli:
    """One call of `route`: where it prints, and the router once it is needed."""

    def __init__(self, out: Output, *, plugins: bool = True, debug: bool = False) -> None:
        self.out = out
        self.plugins = plugins
        self.debug = debug
        self.plugin_verb = ""
        """The verb that is run, if a plugin brought it."""
        out.before_done = self.tell_warnings

    @functools.cached_property
    def router(self) -> Router:
        from compute_router.router import Router

        return Router(plugins=self.plugins)

    def folder(self, ref: str) -> RunFolder:
        """The run that `ref` names: an id, the start of one, `latest`, a workload's name, a key. One that
        this store does not know is sought at all places by its id or key, and adopted."""
        from compute_router.errors import NotFound

        try:
            return self.router.store.open(ref)
        except NotFound:
            from compute_router.adopting import found

            self.out.busy("asking the places for it")
            run = found(self.router, ref)
            self.out.stage("adopted", f"run {run.id}, found at {run.about['adopted']['place']}")
            return run

    def tell_warnings(self) -> None:
        """Print what could not be loaded, each thing once; loads nothing by itself."""
        router = self.__dict__.get("router")
        made = router.__dict__ if router is not None else {}
        for warning in [
            *(made["registry"].warnings if "registry" in made else ()),
            *(made["store"].problems if "store" in made else ()),
        ]:
            self.out.warn(warning)
