"""BOOT, the one constant that is run on a machine, and the bundle it asks for when it is new there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Tuple

__all__ = ["BOOT", "bundle", "one_line"]

# Kept tiny: it travels with every opening. It must parse on any Python 3, so that one that is too
# old can be told so; and it reads the hello byte-exactly, since what follows belongs to the server.
BOOT = r"""
import os, sys
def say(s): os.write(1, s.encode())
def no(n, code, what, mend):
    import json
    error = {"code": code, "what": what, "mend": mend}
    say("\n" + n + " " + json.dumps({"ok": False, "error": error}) + "\n")
    sys.exit(0)
buf = b""
def more():
    global buf
    got = os.read(0, 1 << 16)
    if not got: sys.exit(0)
    buf += got
def line():
    global buf
    while b"\n" not in buf:
        if len(buf) > 65536: sys.exit(64)
        more()
    got, _, buf = buf.partition(b"\n")
    return got
def main():
    global buf
    import json
    try:
        hello = json.loads(line().decode())
        n, d, root = str(hello["nonce"]), str(hello["digest"]), str(hello["root"])
        if hello["route"] != 1 or set(n + d) - set("0123456789abcdef"): raise ValueError
        if len(n) != 32 or len(d) != 64: raise ValueError
    except (ValueError, KeyError, TypeError, RuntimeError): sys.exit(64)
    if sys.version_info < (3, 8):
        what = "python3 here is %d.%d" % sys.version_info[:2]
        no(n, "OLD_PYTHON", what, "put Python 3.8 or later first on the PATH")
    try:
        if "\0" in root: raise OSError("its name holds a NUL")
        root = hello["root"] = os.path.expanduser(root)
        if not os.path.isabs(root):
            no(n, "BAD_ROOT", "root %r is not absolute" % root, "write /path or ~/path")
        home = os.path.join(root, "bin", d)
        if not os.path.isdir(home):
            say("\n" + n + " want\n")
            try: size = json.loads(line().decode())["size"]
            except (ValueError, KeyError, TypeError): sys.exit(64)
            if type(size) is not int or not 0 < size <= 1 << 24: sys.exit(64)
            while len(buf) < size: more()
            text, buf = buf[:size], buf[size:]
            import hashlib
            if hashlib.sha256(text).hexdigest() != d:
                no(n, "BAD_BUNDLE", "the supervisor arrived damaged", "try again")
            os.makedirs(os.path.join(root, "bin"), 0o700, exist_ok=True)
            part = os.path.join(root, "bin", "." + d + "." + n)
            os.mkdir(part, 0o700)
            for name, body in json.loads(text.decode()).items():
                path = os.path.join(part, *name.split("/"))
                os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
                with open(path, "wb") as f:
                    f.write(body.encode()); f.flush(); os.fsync(f.fileno())
            try: os.rename(part, home)
            except OSError:
                if not os.path.isdir(home): raise
                import shutil
                shutil.rmtree(part, ignore_errors=True)
    except (OSError, ValueError) as e:
        what = "root %s cannot be used: %s" % (root, getattr(e, "strerror", None) or e)
        no(n, "BAD_ROOT", what, "free space, or give another root")
    sys.path.insert(0, home)
    from route_supervisor.server import main
    main(hello, buf)
main()
"""


def one_line() -> str:
    """BOOT as one line that every shell takes as it stands between single quotes."""
    import binascii

    text = binascii.b2a_base64(BOOT.encode(), newline=False).decode()
    return 'import binascii;exec(binascii.a2b_base64("%s"))' % text


def bundle() -> Tuple[str, bytes]:
    """The supervisor as one JSON object `{relative path: text}`: its sha256 in hex, and its bytes.

    The same files give the same bytes. May be repeated; reads some forty small files.
    """
    import hashlib
    import json
    import os

    here = os.path.dirname(os.path.abspath(__file__))
    files = {}
    for folder, below, names in os.walk(here):
        below[:] = [name for name in below if name != "__pycache__"]
        inside = os.path.relpath(folder, here).replace(os.sep, "/")
        at = "" if inside == "." else inside + "/"
        for name in names:
            if name.endswith(".py") and at + name != "report/__init__.py":
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    # What stands below `report/` is put on the work's path, apart from the supervisor.
                    where = at + name if at.startswith("report/") else "route_supervisor/" + at + name
                    files[where] = f.read()
    data = json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest(), data
