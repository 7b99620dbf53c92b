"""Prints the lower bound of every dependency beside the version that is installed; ends non-zero where they differ."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

EXTRAS = (
    "tensorboard",
    "faiss",
    "ray",
    "onnx",
    "interop",
    "serve",
    "bench",
    "tune",
)  # those with code of the package behind them


def main() -> int:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = list(project["dependencies"])
    for extra in EXTRAS:
        named += project["optional-dependencies"][extra]
    higher = 0
    for text in named:
        wanted = Requirement(text)
        bound = next(one.version for one in wanted.specifier if one.operator == ">=")
        found = importlib.metadata.version(wanted.name)
        same = Version(found).release[: len(Version(bound).release)] == Version(bound).release
        higher += not same
        print(f"{wanted.name:24} >={bound:10} installed {found}{'' if same else '   NOT THE LOWEST'}")
    return 1 if higher else 0


if __name__ == "__main__":
    sys.exit(main())
