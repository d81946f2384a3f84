"""Lets route look into the Python processes of a run, then hands over to the sitecustomize behind it."""

import os
import sys

if os.environ.get("ROUTE_INSIDE") and os.environ.get("ROUTE_OBSERVE") != "0":
    try:
        __import__("route_inside").begin()  # it stands beside us
    except Exception:
        pass  # nothing of ours may cost the work anything


def _behind():  # type: ignore[no-untyped-def]  # parsed by whatever Python the work has
    """The spec of the sitecustomize that would have been found were ours not there, or None.

    Only what stands behind us on the path is looked at: in a run inside a run there are two of us.
    """
    from _frozen_importlib_external import PathFinder

    here = os.path.dirname(os.path.abspath(__file__))
    at = [number for number, path in enumerate(sys.path) if os.path.abspath(path) == here]
    rest = sys.path[at[0] + 1 :] if at else []
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find("sitecustomize", rest if finder is PathFinder else None) if find else None
        if spec is not None and spec.loader is not None:
            return spec
    return None


_spec = _behind()  # type: ignore[no-untyped-call]
if _spec is not None:
    from _frozen_importlib import module_from_spec

    _module = module_from_spec(_spec)
    # The import system hands out whatever stands here once we are through: the other one.
    sys.modules["sitecustomize"] = _module
    _spec.loader.exec_module(_module)
