"""jointembed: joint embeddings of any two views, trained without a line of plumbing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jointembed.errors import JointEmbedError
    from jointembed.evaluation.retrieval import retrieval_metrics, retrieval_ranks
    from jointembed.model import JointEmbedding
    from jointembed.objectives.barlow_twins import barlow_twins_loss
    from jointembed.objectives.clip import clip_loss
    from jointembed.objectives.siglip import siglip_loss
    from jointembed.objectives.simclr import nt_xent_loss
    from jointembed.objectives.vicreg import vicreg_loss
    from jointembed.objectives.vse import vse_loss
    from jointembed.objectives.wmse import w_mse_loss

__version__ = "0.1.0"

_HOME = {
    "JointEmbedError": "jointembed.errors",
    "JointEmbedding": "jointembed.model",
    "barlow_twins_loss": "jointembed.objectives.barlow_twins",
    "clip_loss": "jointembed.objectives.clip",
    "nt_xent_loss": "jointembed.objectives.simclr",
    "retrieval_metrics": "jointembed.evaluation.retrieval",
    "retrieval_ranks": "jointembed.evaluation.retrieval",
    "siglip_loss": "jointembed.objectives.siglip",
    "vicreg_loss": "jointembed.objectives.vicreg",
    "vse_loss": "jointembed.objectives.vse",
    "w_mse_loss": "jointembed.objectives.wmse",
}

__all__ = [
    "JointEmbedError",
    "JointEmbedding",
    "__version__",
    "barlow_twins_loss",
    "clip_loss",
    "nt_xent_loss",
    "retrieval_metrics",
    "retrieval_ranks",
    "siglip_loss",
    "vicreg_loss",
    "vse_loss",
    "w_mse_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import jointembed` does not load torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jointembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names."""
    return __all__
