"""Make torchvision import in this virtual environment where its build does not match PyTorch's; else do nothing.

A torchvision built for CUDA beside a CPU-only torch stops at ``operator torchvision::nms does not exist``: its compiled
library does not load, and its Python code then registers kernels for operators that nobody defined. Declaring the two
operators first is enough for everything but ``torchvision.ops.nms`` itself and torchvision's own image decoders.

Only if the import fails in just that way, this writes a module and a ``.pth`` file into the environment's site-packages
that declare them right before torchvision is imported, and checks that it then imports. They do nothing once another version
of either package is installed, and running this script again removes them where they are not needed any more.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

MODULE = "_declare_torchvision_ops"
SOURCE = '''\
"""Declares torchvision's operators before it is imported (written by scripts/cure_torchvision.py)."""

import sys
from importlib import metadata
from importlib.abc import MetaPathFinder

VERSIONS = {versions!r}


class _BeforeTorchvision(MetaPathFinder):
    library = None

    def find_spec(self, name, path, target=None):
        if name == "torchvision" and self.library is None and VERSIONS == (
            metadata.version("torch"), metadata.version("torchvision")
        ):
            import torch

            _BeforeTorchvision.library = torch.library.Library("torchvision", "FRAGMENT")
            self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
'''


def import_error() -> str:
    """What importing torchvision in a fresh interpreter prints, or nothing if it succeeds."""
    run = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    return "" if run.returncode == 0 else run.stderr


def main() -> int:
    """Cure the import if it needs it; the exit status says whether torchvision imports (or is not installed)."""
    folder = Path(sysconfig.get_paths()["purelib"])
    for suffix in (".pth", ".py"):
        (folder / f"{MODULE}{suffix}").unlink(missing_ok=True)
    error = import_error()
    if not error or "No module named 'torchvision'" in error:
        return 0
    if "torchvision::nms does not exist" not in error:
        print(error, file=sys.stderr)
        return 1
    if sys.prefix == sys.base_prefix:
        print("cure_torchvision: not in a virtual environment; nothing was changed.", file=sys.stderr)
        return 1
    versions = metadata.version("torch"), metadata.version("torchvision")
    (folder / f"{MODULE}.py").write_text(SOURCE.replace("{versions!r}", repr(versions)), encoding="utf-8")
    (folder / f"{MODULE}.pth").write_text(f"import {MODULE}\n", encoding="utf-8")
    error = import_error()
    if error:
        print(error, file=sys.stderr)
        return 1
    print("cure_torchvision: torchvision's operators are declared in this environment before it is imported.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
