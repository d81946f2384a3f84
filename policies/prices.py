"""Prices without floats: decimal strings as integers of a billionth, per hour and for a whole run."""

from __future__ import annotations

import re
from typing import NamedTuple

from compute_router.backend import Offer, Quote
from compute_router.workload import Workload

__all__ = ["CURRENCY", "Price", "amount", "price", "written"]

CURRENCY = "USD"
"""The currency of price limits, and the one compared when offers are quoted in several."""
_ONE = 10**9
_HOUR_US = 3_600_000_000
_DECIMAL = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9})0*)?", re.ASCII)


def amount(text: str) -> int | None:
    """A plain decimal (`4.54`) as billionths; None for anything else, a sign or an exponent included."""
    match = _DECIMAL.fullmatch(text)
    return None if match is None else int(match[1]) * _ONE + int((match[2] or "").ljust(9, "0"))


def written(billionths: int) -> str:
    """Billionths as a decimal with at least two places, rounded to four."""
    whole, rest = divmod((billionths + 50_000) // 100_000, 10_000)
    text = f"{rest:04d}"
    return f"{whole}.{text[:2]}{text[2:].rstrip('0')}"


class Price(NamedTuple):
    """What an offer costs, in billionths of `currency`: per hour if quoted so, and the most that
    one run can cost (up to its timeout, start and staging included as far as their time is known)."""

    currency: str
    per_hour: int | None
    at_most: int
    quote: Quote

    @property
    def text(self) -> str:
        """`at most 18.40 USD (4.60 USD an hour)`, or the price of a run that is quoted as a whole."""
        if self.per_hour is None:
            return f"{written(self.at_most)} {self.currency} a run"
        each = f"{written(self.per_hour)} {self.currency} an hour"
        return f"at most {written(self.at_most)} {self.currency} a run ({each})"


def price(workload: Workload, offer: Offer, before_us: int = 0) -> Price | None:
    """The price of `offer`, from its own quote; None where there is none that can be read.

    `before_us`: microseconds of start and staging that are paid for besides the timeout.
    """
    quote = offer.quote
    figure = None if quote is None else amount(quote.amount)
    if quote is None or figure is None:
        return None
    if quote.unit == "hour":
        most = figure * (workload.timeout_us + before_us) // _HOUR_US
        return Price(quote.currency, figure, most, quote)
    return Price(quote.currency, None, figure, quote) if quote.unit == "run" else None
