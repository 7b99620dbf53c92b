"""The model card that is saved with a detector."""

from collections.abc import Mapping, Sequence

from jinja2 import Environment

_CARD = """---
library_name: jointembed
tags: [object-detection]
---
# {{ name }}

{{ description or "An object detector." }}

## Use

```python
from jointembed.data.pictures import PictureFolder
from jointembed.inference.detect import detect, load_detector

detector, config = load_detector("{{ run }}/model")
found = detect(detector, PictureFolder("photos", ["one.jpg"]), size=config["size"], max_size=config["max_size"])
for label, score, box in zip(found[0].labels, found[0].scores, found[0].xyxy):
    print(config["categories"][label - 1], score, box)
```

Categories: {{ categories | join(", ") }}.

## Measured
{% for split, numbers in measured.items() %}
{{ split }}:
{% for name, value in numbers.items() %}
- {{ name }} {{ "%.4g" | format(value) }}
{%- endfor %}
{% else %}
Nothing was measured yet; `jointembed detect {{ run }}` does it.
{% endfor %}
## Intended use and limits

Finding objects of these categories in pictures like those it was trained on (see the recipe). A score orders
detections, it is no probability. What the training pictures never showed, the model does not know.

## Recipe

```yaml
{{ recipe }}```
"""


def detector_card(
    name: str,
    description: str,
    recipe: str,
    run: str,
    categories: Sequence[str],
    measured: Mapping[str, Mapping[str, float]],
) -> str:
    """Markdown of a detector's card; `measured` holds the numbers of each split that was evaluated."""
    template = Environment(autoescape=False).from_string(_CARD)  # Markdown, not HTML
    return template.render(
        name=name, description=description, recipe=recipe, run=run, categories=categories, measured=measured
    )
