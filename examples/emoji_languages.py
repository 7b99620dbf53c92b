"""R@10 of a model of emoji, one language after the other: python examples/emoji_languages.py RUN [val|test]."""

import sys
from typing import Any

import numpy as np

from jointembed import JointEmbedding, retrieval_ranks
from jointembed.data.emoji import emoji, emoji_languages
from jointembed.evaluation.retrieval import summarize

run, split = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "val"
model = JointEmbedding.from_pretrained(run)
chosen: Any = split
pictures = emoji(split=chosen).pictures
image = model.encode_image([pictures.open(number) for number in range(len(pictures))])
found = []
for language in emoji_languages():
    data = emoji(split=chosen, languages=[language])  # one caption a concept, which two pictures show
    pairs = np.stack([np.arange(len(data.item)), data.item], axis=1)
    numbers = summarize(retrieval_ranks(image, model.encode_text(list(data.texts)), pairs))
    found.append((numbers["i2t_R@10"], numbers["t2i_R@10"]))
    print(f"{language:<8} pictures {found[-1][0]:5.1f}  words {found[-1][1]:5.1f}")
print(f"{'mean':<8} pictures {np.mean(found, axis=0)[0]:5.1f}  words {np.mean(found, axis=0)[1]:5.1f}")
