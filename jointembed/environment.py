"""What a bug report needs: versions, hardware, threads and the variables that matter, without secrets."""

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jointembed import __version__

# the distributions that numbers depend on, and those that extras bring
PACKAGES = (
    "torch", "torchvision", "transformers", "datasets", "accelerate", "huggingface-hub", "tokenizers", "safetensors",
    "pydantic", "PyYAML", "typer", "numpy", "pillow", "pycocotools", "scikit-learn", "matplotlib", "pyarrow",
    "faiss-cpu", "onnx", "onnxscript", "onnxruntime", "ray", "sentence-transformers", "starlette", "tensorboard",
    "lightly",
)  # fmt: skip
# variables that change what the package does; nothing else of the environment is looked at
VARIABLES = re.compile(
    r"(JOINTEMBED|OMP|MKL|KMP|GOMP|OPENBLAS|TORCH|PYTORCH|CUDA|NCCL|GLOO|ACCELERATE|FSDP|HF|TRANSFORMERS)_\w+"
    r"|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_PORT|SLURM_(PROCID|NTASKS|JOB_NUM_NODES|CPUS_PER_TASK)"
    r"|LD_PRELOAD|XDG_CACHE_HOME|PYTHONHASHSEED"
)
SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)


def report(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Versions, hardware, threads and variables, as JSON values.

    Args:
        environment: `os.environ` if None.
    """
    environment = os.environ if environment is None else environment
    return {
        "jointembed": __version__,
        "python": platform.python_version(),
        "executable": shortened(sys.executable),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "hardware": _hardware(),
        "torch": _torch(),
        "variables": variables(environment),
    }


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter, those with a secret's name left out, home folders and passwords of URLs shortened."""
    return {
        name: shortened(re.sub(r"//[^/@\s]*@", "//...@", value))
        for name, value in sorted(environment.items())
        if VARIABLES.fullmatch(name) and not SECRET.search(name)
    }


def shortened(text: str) -> str:
    """A text whose home folders, whoever's, say nothing about who they belong to."""
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without one
        home = ""
    text = text.replace(home, "~") if len(home) > 1 else text
    return re.sub(r"(/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\:]+", "~", text)


def processor() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    found: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count()}
    if hasattr(os, "sched_getaffinity"):
        found["usable_cores"] = len(os.sched_getaffinity(0))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    return found


def _torch() -> dict[str, Any]:
    import torch

    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_in_hardware": torch.cpu._is_avx512_bf16_supported(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "accelerators": [
            {
                "name": torch.cuda.get_device_name(number),
                "memory_gb": round(torch.cuda.get_device_properties(number).total_memory / 1e9, 1),
            }
            for number in range(torch.cuda.device_count())
        ],
    }
