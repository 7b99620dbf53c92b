"""The model card that is saved with a model."""

import json
from pathlib import Path

from jinja2 import Environment

_CARD = """---
library_name: jointembed
tags: [joint-embedding, image-text-retrieval]
---
# {{ name }}

{{ description or "An image-text joint embedding." }}

## Use

```python
from jointembed import JointEmbedding

model = JointEmbedding.from_pretrained("{{ run }}/model")
images = model.encode_image(["photo.jpg"])
texts = model.encode_text(["a dog runs"])
print(model.similarity(images, texts))
```

## Measured
{% for entry in measured %}
`{{ entry.split }}`, protocol `{{ entry.protocol }}`, {{ entry.data }}, {{ entry.date }}:
`{{ entry.command }}`

| number | value | 95% interval | chance |
|---|---|---|---|
{% for name, value in entry.metrics.items() -%}
| {{ name }} | {{ "%.2f" | format(value) }} | {{ interval(entry, name) }} | {{ chance(entry, name) }} |
{% endfor %}
{%- else %}
Nothing was measured yet; `jointembed evaluate {{ run }} --split test` does it.
{% endfor %}
## Intended use and limits

Ranking pictures by words and words by pictures, of the kind the model was trained on (see the recipe). A score is a
cosine between embeddings: it orders answers, it is no probability. What the training captions never named, the model
does not know; their errors and prejudices it has learnt.

## Recipe

```yaml
{{ recipe }}```
"""


def model_card(name: str, description: str, recipe: str, run: Path) -> str:
    """Markdown of a model card, with the numbers of every evaluation that stands in the run folder."""
    measured = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "evaluation").glob("*/metrics.json"))
    ]

    def interval(entry: dict, number: str) -> str:
        low_high = entry.get("intervals", {}).get(number)
        return f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""

    def chance(entry: dict, number: str) -> str:
        value = entry.get("chance", {}).get(number)
        return "" if value is None else f"{value:.2f}"

    template = Environment(autoescape=False).from_string(_CARD)  # Markdown, not HTML
    return template.render(
        name=name,
        description=description,
        recipe=recipe,
        run=run.as_posix(),
        measured=measured,
        interval=interval,
        chance=chance,
    )
