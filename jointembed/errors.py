"""The errors a user can meet: each message names the file, record or key at fault."""


class JointEmbedError(Exception):
    """Base of every error raised on purpose. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 1
    shared = False  # raised by all ranks with the same message: the main one alone prints it


class RecipeError(JointEmbedError):
    """A recipe that cannot be run as written; the message holds the dotted path of the key."""

    exit_code = 2


class DataError(JointEmbedError):
    """A picture, caption, annotation or archive that cannot be used; the message names the file and record."""


class WeightsError(JointEmbedError):
    """A weights file or model folder that does not fit; the message names the file and the keys."""


class CheckpointError(JointEmbedError):
    """A checkpoint or run folder that is incomplete, altered, or of another run."""


class EvaluationError(JointEmbedError):
    """Embeddings or a ground truth that no honest number can be computed from."""


class EmbeddingsError(JointEmbedError):
    """A folder of embeddings or an index that is incomplete, altered, of a newer version, or of another model."""


class RankError(JointEmbedError):
    """Another process of this run has ended, or does not answer."""


class MemoryLimitError(JointEmbedError):
    """A step that does not fit in memory; the message holds the keys to set."""


class Interrupted(JointEmbedError):
    """A run that a signal stopped between two steps; its checkpoint is saved, and the exit code is 128 + the signal."""

    shared = True

    def __init__(self, message: str, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(message)
        self.exit_code = 128 + number
