"""Model folders: found on disk, downloaded from the Hugging Face hub, and shared there."""

import json
import re
from pathlib import Path
from typing import Any

from jointembed.errors import WeightsError

FORMAT = 1


def model_folder(path: Path | str) -> Path:
    """The folder that holds `config.json`: a model folder, that of a run, or what the hub gave. Raises WeightsError."""
    folder = Path(path)
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    if folder.exists():
        raise WeightsError(f"{folder}: no config.json there, nor in its folder model/")
    if str(path).count("/") != 1 or str(path).startswith((".", "/")):
        raise WeightsError(f"{folder}: no such model folder")
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:
        raise WeightsError(f"{path}: no such folder, and the hub did not give it ({type(error).__name__})") from None


def read_config(path: Path) -> dict[str, Any]:
    """The content of a model's `config.json`. Raises WeightsError where it is none, or of a newer version."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise WeightsError(f"{path}: not the config of a jointembed model")
    if config["format"] > FORMAT:
        raise WeightsError(f"{path}: format {config['format']} is of a newer version; this one reads up to {FORMAT}")
    for key in ("views", "branches"):
        if not isinstance(config.get(key), dict):
            raise WeightsError(f"{path}: key {key!r} is missing")
    return config


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a jointembed model",
    create_pr: bool = False,
) -> str:
    """Upload a model folder, its card naming the hub id; the repository is made where it is missing.

    Args:
        folder: written by `JointEmbedding.save_pretrained`.
        repo_id: `owner/name`.
        private: of a repository that is made; None leaves it to the owner's settings.
        token: None takes the one of `hf auth login` or `HF_TOKEN`.
        revision: branch.
        commit_message: of the one commit.
        create_pr: open a pull request instead.

    Returns:
        Address of the commit.

    Raises:
        WeightsError: what the hub or the network refused.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        _name_in_card(folder / "README.md", made.repo_id)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    except (errors.HTTPError, errors.HFValidationError, OSError) as error:  # no token is an OSError
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(f"{repo_id}: the hub did not take the model ({reason})") from None
    return commit.commit_url


def _name_in_card(card: Path, repo_id: str) -> None:
    """Let the card load the model from where it will be found."""
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        card.write_text(re.sub(r'from_pretrained\("[^"]*"\)', lambda _: f'from_pretrained("{repo_id}")', text), "utf-8")
