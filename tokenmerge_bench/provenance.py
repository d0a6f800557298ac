"""Where a result comes from: versions, hardware, command, source revision."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # which takes seconds to import; who asks for the version need not wait

PACKAGES = ("torch", "torchvision", "timm", "fvcore", "numpy", "scipy", "pandas", "safetensors")


def provenance(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to judge or repeat a run, as plain JSON values."""
    import torch

    return {
        "tokenmerge_bench": version(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device_name(device),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "command": shlex.join(["tmbench", *sys.argv[1:]]),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def version() -> str:
    """The installed version of this package."""
    return importlib.metadata.version("tokenmerge-bench")


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def hardware_name(device: torch.device) -> str:
    """What runs the networks, for tables and figures: the name of the GPU, or the CPU's model and torch's threads."""
    if device.type == "cuda":
        return device_name(device)
    import torch

    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def git_revision() -> str | None:
    """Commit of the checkout this package runs from, with `-dirty` if it was changed; None without checkout or git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def processor() -> str:
    """Model name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
