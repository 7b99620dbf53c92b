"""Encoders and expanders by the names that recipes give them."""

from torch import nn

from jointembed.branches.audio import WaveformResNet
from jointembed.branches.image import TorchvisionEncoder
from jointembed.branches.text import GRU, BagOfWords, TextTransformer
from jointembed.branches.transformer import TransformersText, TransformersVision
from jointembed.layers import MLP

ENCODERS: dict[str, type[nn.Module]] = {
    "torchvision": TorchvisionEncoder,
    "transformers_vision": TransformersVision,
    "gru": GRU,
    "bag_of_words": BagOfWords,
    "text_transformer": TextTransformer,
    "transformers_text": TransformersText,
    "waveform_resnet": WaveformResNet,
}
EXPANDERS: dict[str, type[nn.Module]] = {"mlp": MLP}
