"""`python -m compute_router.testing` prints the tables of docs/writing-a-backend.md."""

from __future__ import annotations

from compute_router.testing import BackendConformance, PolicyConformance

__all__ = ["table"]


def table(conformance: type) -> str:
    """The tests of a conformance class in their order, each with what it needs and what it promises."""
    lines = ["| test | needs | promise |", "|---|---|---|"]
    for part in (conformance, *conformance.__bases__):
        for name, test in vars(part).items():
            if name.startswith("test_"):
                needs = [f"`{power.name}`" for power in getattr(test, "powers", ())]
                needs += ["`here`"] if getattr(test, "here", "") else []
                promise = " ".join((test.__doc__ or "").split())
                lines.append(f"| `{name.removeprefix('test_')}` | {', '.join(needs)} | {promise} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(BackendConformance))
    print(table(PolicyConformance), end="")
