"""Submissions that attack the grader. Each is the cell of one answer, put into an otherwise empty submission.

``{tmp}`` is a folder outside of the sandbox that holds a file ``secret``; ``{course}`` holds the gradebook.
A cell prints CONTAINED when its attack was refused, and LEAKED when it was not; what ends the process prints neither.
"""

ATTACKS: dict[str, str] = {
    "reads solutions, gradebook, password hashes and a secret": """
import glob, os, pathlib
wanted = ["{tmp}/secret", "{course}/grading/gradebook.db", "/etc/shadow", "/etc/passwd"]
wanted += ["{root}/solutions", "{root}/.git"]
found = [path for path in wanted if os.path.exists(path)]
import mlcomp
package = pathlib.Path(mlcomp.__file__).parent
found += glob.glob(str(package / "grading" / "solutions" / "*" / "*"))
found += glob.glob(str(package.parent / "solutions" / "*" / "*"))
found += glob.glob("/home/*")
print("LEAKED " + str(found) if found else "CONTAINED")
""",
    "uses the network": """
import socket
try:
    socket.create_connection(("{host}", {port}), timeout=2)
    print("LEAKED")
except OSError as error:
    print("CONTAINED", error)
""",
    "writes outside of its scratch folder": """
import pathlib, mlcomp, torch
done = []
for target in ["{tmp}/written", "{course}/written", "/written", "/usr/written", "/dev/shm/x/../../../written",
               pathlib.Path(mlcomp.__file__).parent / "written", pathlib.Path(torch.__file__).parent / "written"]:
    try:
        pathlib.Path(target).write_text("x")
        done.append(str(target))
    except OSError:
        pass
print("LEAKED " + str(done) if done else "CONTAINED")
""",
    "forges the database": """
import sqlite3
try:
    with sqlite3.connect("{course}/grading/gradebook.db") as db:
        db.execute("update grade set auto_score = 400")
    print("LEAKED")
except sqlite3.Error as error:
    print("CONTAINED", error)
""",
    "signals and traces other processes": """
import os, signal
done = []
for pid in range(2, 3000):
    try:
        if pid != os.getpid():
            os.kill(pid, 0)
            done.append(pid)
    except OSError:
        pass
others = [pid for pid in done if pid != os.getppid()]
print("LEAKED " + str(others) if len(others) > 3 else "CONTAINED")
""",
    "becomes root again": """
import os
try:
    os.setuid(0)
    print("LEAKED" if os.getuid() == 0 and os.access("/etc/shadow", os.R_OK) else "CONTAINED")
except OSError as error:
    print("CONTAINED", error)
""",
    "infinite loop": "while True:\n    pass\n",
    "sleeps for ever": "import time\ntime.sleep(1e6)\n",
    "allocates 10 GB": """
try:
    block = bytearray(10 * 2**30)
    print("LEAKED")
except MemoryError:
    print("CONTAINED")
""",
    "allocates 10 GB in forty processes": """
import os, time
for _ in range(40):
    if os.fork() == 0:
        block = bytearray(2**28)
        for i in range(0, len(block), 4096):
            block[i] = 1
        time.sleep(1e6)
time.sleep(1e6)
""",
    "fills the disk": """
import os, tempfile
try:
    with open(os.path.join(tempfile.gettempdir(), "big"), "wb") as file:
        for _ in range(2000):
            file.write(bytes(2**20))
    print("LEAKED")
except OSError as error:
    print("CONTAINED", error)
""",
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "ignores every signal and hangs": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
""",
    "floods the output": "while True:\n    print('x' * 100_000)\n",
    "floods the output below Python": "import os\nwhile True:\n    os.write(1, b'x' * 100_000)\n",
    "kills its own process": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "exits": "import os\nos._exit(0)\n",
    "crashes the interpreter": "import ctypes\nctypes.string_at(0)\n",
    "replies for the grader": """
import os, struct
for fd in range(3, 60):
    try:
        os.write(fd, struct.pack(">II", 2, 0) + b"{{}}")
    except OSError:
        pass
""",
    "sends a frame of 4 GB": """
import os, struct
for fd in range(3, 60):
    try:
        os.write(fd, struct.pack(">II", 2**32 - 1, 2**32 - 1))
    except OSError:
        pass
""",
    "leaves a process behind": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(54321)
    os._exit(0)
print("CONTAINED")
""",
}

# These aim at the points: an honest grader gives none for any of them.
FORGERIES: dict[str, str] = {
    "patches torch so that comparisons hold": """
import torch
for name in ("equal", "allclose", "isclose", "isin"):
    setattr(torch, name, lambda *a, **k: torch.ones((), dtype=torch.bool))
torch.Tensor.__eq__ = lambda *a: torch.ones((), dtype=torch.bool)
torch.Tensor.__le__ = lambda *a: torch.ones((), dtype=torch.bool)
torch.Tensor.norm = lambda self, *a, **k: torch.zeros(())
def obd_saliency(weight, hessian):
    return weight
""",
    "patches numpy so that comparisons hold": """
import numpy as np
np.testing.assert_allclose = lambda *a, **k: None
np.allclose = np.array_equal = lambda *a, **k: True
def obd_saliency(weight, hessian):
    return weight
""",
    "patches the notebook's own helpers": """
expect_close = expect_tensor = lambda *a, **k: None
is_close = lambda *a, **k: False
refit = lambda weight, *a, **k: weight
loss = lambda *a, **k: 0.0
random_layer = lambda *a, **k: (torch.zeros(1), torch.zeros(1), torch.zeros(1))
def obd_saliency(weight, hessian):
    return weight
""",
    "patches mlcomp's helpers and the worker": """
import sys, builtins
import mlcomp.grading.notebook as notebook, mlcomp.grading.wire as wire
notebook.Points.earned = lambda *a: None
wire.MAX_FRAME = 0
builtins.AssertionError = SystemExit
for question in points.questions:
    points.earned(question)
def obd_saliency(weight, hessian):
    return weight
""",
    "returns an object that equals everything": """
class Same(torch.Tensor):
    def __eq__(self, other): return True
    def __torch_function__(self, *a, **k): return True
def obd_saliency(weight, hessian):
    return weight.as_subclass(Same)
""",
    "looks for the truth in the caller's frames": """
import gc, inspect, torch
def obd_saliency(weight, hessian):
    seen = [f.frame.f_locals.get("truth") for f in inspect.stack()]
    tensors = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    seen += [o for o in tensors if o.shape == weight.shape and o is not weight]
    seen = [o for o in seen if isinstance(o, torch.Tensor)]
    return seen[0] if seen else weight
""",
    "changes the argument so that the truth fits": """
def obd_saliency(weight, hessian):
    weight.zero_()
    return torch.zeros_like(weight)
""",
    "prints a score": """
print("Passed: 2 of 2 points.")
22
""",
}
