"""Merges on sample images, where a sweep kept any: a picture per method."""

from __future__ import annotations

import io
from dataclasses import dataclass

from tokenmerge_bench.figures import fig2, style
from tokenmerge_bench.results import Results
from tokenmerge_bench.summary import label

DPI = 160
IMAGES = 2
"""At most so many of each method."""


@dataclass(frozen=True)
class Sample:
    """What a method merged: `picture` is a WebP file, `text` says what is on it."""

    method: str
    text: str
    picture: bytes


def samples(results: Results) -> list[Sample]:
    """A picture for every method that has examples, at its strongest setting; none if the sweep kept none."""
    rows = results.table[results.table["status"] == "ok"].to_dict("records")
    held = dict.fromkeys(label(row["method"], row["options"]) for row in rows if _merges(results, row))
    return [_sample(results, name) for name in held]


def _merges(results: Results, row: dict[object, object]) -> bool:
    examples = results.examples(row)
    return bool(examples) and all(example.sites for example in examples)


def _sample(results: Results, name: str) -> Sample:
    run = fig2.shown(results, name)
    examples = results.examples(run)[:IMAGES]
    tokens = [site.tokens for site in examples[0].sites]
    text = (
        f"{name} at {run['budget']} on {run['model']}: {len(examples)} images as the model gets them, and after each "
        f"reduction, down to {tokens[-1]} tokens."
    )
    buffer = io.BytesIO()
    with style.paper():
        fig2.draw(results, [name], IMAGES).savefig(buffer, format="webp", dpi=DPI, pil_kwargs={"quality": 80})
    return Sample(name, text, buffer.getvalue())
