"""The report: one self-contained HTML file of a comparison, readable without a network."""

from __future__ import annotations

from compute_router.report.document import is_page, page

__all__ = ["is_page", "page"]
