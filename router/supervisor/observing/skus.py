"""Names of accelerators as data, and the one rule that says whether what was seen is what was asked for."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

    Part = NamedTuple(
        "Part",
        [("model", str), ("form", str), ("memory", str), ("rest", FrozenSet[str]), ("mig", str)],
    )

ORDER = ("T4", "L4", "A10", "A10G", "L40", "L40S", "A100", "H100", "H200", "B200", "B300")
"""From less to more, for saying whether another model is better or worse; no ranking of speed."""
USUAL: Dict[str, str] = dict.fromkeys(("A100", "H100", "H200", "H800", "B200", "B300"), "SXM")
"""The form that is meant where a class is asked for by name alone. Others come in one form."""
_PCI = """
SXM   20b0 20b2 2324 2329 2330 2335 2901 1db1 1db5
PCIE  20b5 20b7 20f1 2322 2331 1db4 1db6 1eb8 2236 2237 26b5 26b9 27b8
NVL   2321 233b
"""
PCI: Dict[str, str] = {
    "10de:" + id: row.split()[0] for row in _PCI.strip().splitlines() for id in row.split()[1:]
}
"""The form of a board by its PCI device, from the PCI ID Repository (pci-ids.ucw.cz)."""
SILENT: Dict[str, str] = {
    **dict.fromkeys(("H200", "B200", "B300", "H100 80GB HBM3", "H800 80GB HBM3"), "SXM"),
    **dict.fromkeys(("T4", "L4", "L40", "L40S", "A10", "A10G", "A30", "A40"), "PCIE"),
}
"""Names that leave the form out and are given to one form only. `NVIDIA H200` is the SXM board: the
other is `NVIDIA H200 NVL`; of the H100 only SXM has 80 GB of HBM3 (`H100 PCIe` has HBM2e)."""
_NOISE = frozenset(
    ["NVIDIA", "TESLA", "GEFORCE", "QUADRO", "GPU", "GENERATION", "EDITION", "HBM2", "HBM2E", "HBM3", "HBM3E"]
)
_FAMILIES = ("RTX", "GTX", "TITAN", "PRO")


def _words(name: str) -> List[str]:
    return [word for word in re.split(r"[^A-Z0-9.]+", name.upper()) if word]


def parse(name: str) -> Part:
    """The parts of a driver's name or of an asked one: `NVIDIA A100-SXM4-80GB`, `H100-PCIE`."""
    from collections import namedtuple

    words = [word for word in _words(name) if word not in _NOISE]
    model, form, memory, mig = "", "", "", ""
    rest = []
    while words:
        word = words.pop(0)
        if word == "MIG":
            mig = words.pop(0) if words and re.match(r"\d+G\.", words[0]) else "on"
        elif not model:
            model = word
            while word in _FAMILIES and words:  # RTX 4090, RTX PRO 6000
                word = words.pop(0)
                model += "-" + word
        elif re.match(r"SXM\d?\Z", word):
            form = "SXM"
        elif word in ("PCIE", "NVL"):
            form = word
        elif re.match(r"\d+GB?\Z", word):
            memory = word.rstrip("B") + "B"
        else:
            rest.append(word)
    made = namedtuple("made", ("model", "form", "memory", "rest", "mig"))
    return made(model, form, memory, frozenset(rest), mig)  # type: ignore[return-value]


def known(name: str, pci: str = "", mig: str = "") -> Tuple[str, str, str]:
    """The SKU of a board, its form, and what told the form: `name`, `pci`, `table` or nothing.

    One text for one kind of board, whatever driver names it: `H200-SXM`, `H100-SXM-80GB`, `A100-PCIE-40GB`,
    `L4-PCIE`, `RTX-4090`. A board that is cut up says so: `A100-SXM-40GB-MIG`.
    """
    part = parse(name)
    form, how = part.form, "name" if part.form else ""
    if not form and pci in PCI:
        form, how = PCI[pci], "pci"
    if not form:
        bare = " ".join(word for word in _words(name) if word != "NVIDIA" and word != "TESLA")
        form = SILENT.get(bare.partition(" MIG")[0], "")
        how = "table" if form else ""
    cut = part.mig or ("on" if mig == "on" else "")
    words = [part.model, form, part.memory, *sorted(part.rest)]
    words += ["MIG"] if cut == "on" else ["MIG", cut.lower()] if cut else []
    return "-".join(word for word in words if word), form, how


def short(sku: str) -> str:
    """What to ask for to get such a board, and none of another form: `H200`, `H100-PCIE`, `RTX-4090`."""
    part = parse(sku)
    words = [
        part.model,
        "" if part.form == USUAL.get(part.model, part.form) else part.form,
        *sorted(part.rest),
    ]
    words += ["MIG"] if part.mig == "on" else ["MIG", part.mig.lower()] if part.mig else []
    return "-".join(word for word in words if word)


def same(asked: str, got: str) -> str:
    """`exact`, `variant` (same class, other form, memory or cut) or nothing.

    Who asks for a class alone gets any memory and the usual form; who names more gets that.
    """
    a, g = parse(asked), parse(got)
    if not a.model or a.model != g.model:
        return ""
    form = a.form or USUAL.get(a.model, "")
    fits = (
        (not form or not g.form or form == g.form)
        and (not a.memory or not g.memory or a.memory == g.memory)
        and a.rest == g.rest
        and a.mig == g.mig
    )
    return "exact" if fits else "variant"


def judge(
    requested: Mapping[str, Any],
    substitutes: Sequence[Mapping[str, Any]],
    sku: Optional[str],
    count: Optional[int],
    others: Optional[int] = None,
) -> str:
    """The word of the enumeration `match`, from what was asked for and what was seen.

    `requested` and `substitutes` have `family`, `sku` and `count`; `others` are processes of others
    on the same devices, None if nobody knows. Pure.
    """
    family, wanted = requested.get("family"), str(requested.get("sku") or "")
    if family == "cpu":
        return "exact"
    if not isinstance(sku, str) or type(count) is not int:
        return "unobserved"
    if others:
        return "shared"
    if sku.lower() == "cpu" or count == 0:
        return "cpu_fallback"
    if family == "any" or not wanted:
        return "exact" if count == (requested.get("count") or 1) else "count_mismatch"
    found = same(wanted, sku)
    # A slice's name counts chips or cores in its maker's way; only GPUs are counted by us.
    if family == "tpu" and _words(wanted)[:1] == _words(sku)[:1]:
        return "exact"
    if found == "exact" and count == requested.get("count"):
        return "exact"
    for other in substitutes:
        if same(str(other.get("sku") or ""), sku) == "exact" and count == other.get("count"):
            return "declared"
    if found:
        return "count_mismatch" if found == "exact" else "variant"
    a, g = parse(wanted).model, parse(sku).model
    if a in ORDER and g in ORDER:
        return "upgraded" if ORDER.index(g) > ORDER.index(a) else "downgraded"
    return "variant"


MEANS = {
    "upgraded": "a better model",
    "downgraded": "a lesser model",
    "variant": "another form of it, or another model",
    "count_mismatch": "another number of them",
    "cpu_fallback": "no accelerator at all",
    "shared": "in use by others",
}
"""What each mismatch means, in words for an error."""


def several(skus: Sequence[str]) -> str:
    """One text for the boards of a run, equal for equal sets: mixed ones are named with their number."""
    counts: Dict[str, int] = {}
    for sku in skus:
        counts[sku] = counts.get(sku, 0) + 1
    if len(counts) == 1:
        return skus[0]
    return "+".join("%dx%s" % (counts[sku], sku) for sku in sorted(counts))
