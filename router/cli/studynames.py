"""How a study, its file and its arms are named on the command line; what the shell completes them with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from compute_router.cli.options import Words

if TYPE_CHECKING:
    from compute_router.studies.folder import StudyFolder

__all__ = ["ARM", "FILE", "STUDY", "known"]


class StudyRef(Words):
    """A study: its id, the first characters of it, its name (the newest), or `latest`."""

    name = "study"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            found = {"latest": "the newest study"} | {f.id: f.plan.order for f in known()}
        except Exception:
            # Completion never complains; the verb itself will.
            return []
        return [CompletionItem(n, help=t) for n, t in found.items() if n.startswith(incomplete)]


class StudyFile(Words):
    """A study.toml (completed by file name), or the name of a ready-made study."""

    name = "file"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from compute_router.studies.reading import ready

        named = [CompletionItem(name, help="ready-made") for name in ready() if name.startswith(incomplete)]
        return [*named, CompletionItem(incomplete, type="file")]


class ArmRef(Words):
    """An arm of the study that is named before it, else of the newest."""

    name = "arm"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from compute_router.home import default_home
        from compute_router.studies.folder import StudyFolder

        try:
            arms = StudyFolder.open(default_home(), ctx.params.get("id") or "latest").plan.arms
        except Exception:
            # Completion never complains; the verb itself will.
            return []
        return [CompletionItem(arm.name) for arm in arms if arm.name.startswith(incomplete)]


STUDY, FILE, ARM = StudyRef(), StudyFile(), ArmRef()


def known() -> list[StudyFolder]:
    """The studies there are, newest first."""
    from compute_router.home import default_home
    from compute_router.studies.folder import studies

    return studies(default_home())
