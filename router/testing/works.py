"""The small works that the kit runs, as sources of scripts: standard library only, any Python from 3.8 on."""

from __future__ import annotations

__all__ = ["BYTES", "COUNTED", "HELLO", "KEPT", "LEAVES", "READER", "SEES", "SLEEPS", "TREE", "UNTIL"]

HELLO = "print('hello')\n"

COUNTED = """
import os, sys, uuid
where, code = sys.argv[1], int(sys.argv[2])
line = ("executed " + uuid.uuid4().hex + "\\n").encode()
sys.stdout.write(line.decode())
sys.stdout.flush()
if where.startswith("volume:"):
    where = os.path.join(os.environ["ROUTE_VOLUME_DATA"], where[7:])
if where != "log":
    file = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, line)
    os.close(file)
sys.exit(code)
"""
"""Leaves one line at its witness for each time it is executed, and ends with the code given."""

READER = """
import os, sys
try:
    sys.stdout.write(open(os.path.join(os.environ["ROUTE_VOLUME_DATA"], sys.argv[1])).read())
except FileNotFoundError:
    pass
"""

KEPT = """
import os
at = os.path.join(os.environ["ROUTE_VOLUME_DATA"], "kept")
print(open(at).read() if os.path.exists(at) else "nothing")
open(at, "a").write("x")
"""

SLEEPS = "import time\nprint('sleeping', flush=True)\ntime.sleep(600)\n"

UNTIL = """
import os, sys, time
print("first", flush=True)
until = time.monotonic() + float(sys.argv[2])
while not os.path.exists(sys.argv[1]) and time.monotonic() < until:
    time.sleep(0.02)
print("last", flush=True)
"""

TREE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write("%d %d" % (os.getpid(), child.pid))
os.rename(sys.argv[1] + ".part", sys.argv[1])
print("sleeping", flush=True)
time.sleep(600)
"""
"""Has a child of its own and writes both process ids to the file given."""

BYTES = """
import os
data = bytes(range(256)) * 300
at = 0
while at < len(data):
    at += os.write(1, data[at:at + 7000])
"""

SEES = """
import json, os, sys
tree = {}
for folder, folders, files in os.walk("."):
    for name in files + [f for f in folders if os.path.islink(os.path.join(folder, f))]:
        path = os.path.relpath(os.path.join(folder, name))
        if os.path.islink(path):
            tree[path] = "-> " + os.readlink(path)
        elif not path.endswith(".pyc"):
            tree[path] = ("x " if os.access(path, os.X_OK) else "- ") + open(path, "rb").read().hex()
print("SEES" + json.dumps({"args": sys.argv[1:], "env": dict(os.environ), "tree": tree}))
"""

LEAVES = """
import hashlib, json, os, sys
names = json.loads(sys.argv[1])
data = {}
for number, name in enumerate(names):
    data[name] = os.urandom((0, int(sys.argv[2]), 777)[min(number, 2)])
told = {}
for base, prefix in ((os.environ["ROUTE_OUTPUTS"], ""), ("results", "results/")):
    for name in names:
        path = os.path.join(base, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data[name])
        told["outputs/" + prefix + name] = hashlib.sha256(data[name]).hexdigest()
print("LEFT" + json.dumps(told))
sys.exit(int(sys.argv[3]))
"""
"""Leaves files of these names in $ROUTE_OUTPUTS and in results/, and prints their digests."""
