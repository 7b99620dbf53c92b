"""What starts a run on several machines: configurations and the SLURM script, as far as one machine can check."""

import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))  # refuses a key that it does not know
    machines = 2 if "2nodes" in path.stem else 1
    assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
    assert config.mixed_precision == "no"  # the recipe decides
    assert str(config.distributed_type).endswith("FSDP" if "fsdp" in path.stem else "MULTI_GPU")
    if "fsdp" in path.stem:
        assert config.fsdp_config["fsdp_version"] == 2
        options = {action.dest for action in launch_command_parser()._actions}
        assert set(config.fsdp_config) <= options
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"recipes/accelerate/{path.name}" in line for line in header)
    assert "Not run" in " ".join(header)


def script(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The SLURM script, with stand-ins that print what they are told."""
    for name, text in (("srun", 'printf "%s\\n" srun "$@"'), ("scontrol", "echo node7; echo node8")):
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    command = ["bash", str(ROOT / "scripts" / "slurm_train.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_slurm_script_puts_one_torchrun_a_machine_together(tmp_path: Path) -> None:
    slurm = {
        "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "41234",
    }  # fmt: skip
    done = script(tmp_path, "a recipe.yaml", "runs/x", "seed=3", "name=two words", **slurm)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:2] == ["srun", "--kill-on-bad-exit=1"]
    for option, value in (("--nnodes", "2"), ("--nproc-per-node", "8"), ("--rdzv-endpoint", "node7:21234")):
        assert words[words.index(option) + 1] == value
    start = words.index("jointembed")
    assert words[start:] == [
        "jointembed",
        "train",
        "a recipe.yaml",
        "seed=3",
        "name=two words",
        "--out",
        "runs/x",
        "--resume",
    ]


def test_the_slurm_script_says_how_it_is_called(tmp_path: Path) -> None:
    done = script(tmp_path, "recipe.yaml")
    assert done.returncode == 2 and "usage" in done.stderr
