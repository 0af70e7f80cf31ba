"""The card of a bundle: what it is, in words, with the header by which the Hugging Face hub files it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from resnext.data.preprocessing import Preprocessing

LICENCES = ("apache-2.0", "bsd-3-clause", "cc-by-nc-4.0", "mit")
"""Licences that the hub knows by these names."""


def text(
    network: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    results: Mapping[str, Any],
    licence: str,
    identity: str,
) -> str:
    """Return the card in Markdown."""
    lines = [
        *_header(licence),
        f"# {network}: {len(classes)} classes",
        "",
        f"Identity `{identity[:16]}`. Input: {preprocessing.channels} channels, "
        f"{preprocessing.image_size}×{preprocessing.image_size} pixels.",
        "",
        "## Use",
        "",
        "```",
        "resnext predict . photo.jpg",
        "```",
        "",
        "```python",
        "import resnext",
        "",
        'classifier = resnext.load(".")',
        'print(classifier("photo.jpg").label)',
        "```",
        "",
        "## Results",
        "",
    ]
    if "top1" in results:
        low, high = results["top1_interval"]
        lines.append(
            f"Top-1 {results['top1']:.4f} (95 % interval {low:.4f} to {high:.4f}) on {results['images']} images: "
            f"{results.get('data', 'data not named')}."
        )
    else:
        lines.append("Not measured.")
    lines += ["", "## Classes", "", ", ".join(classes), "", "## Licence", "", licence, ""]
    return "\n".join(lines)


def _header(licence: str) -> list[str]:
    """Return the YAML that the hub reads: library, task, and the licence where it has a name for it."""
    known = [name for name in LICENCES if re.search(rf"\b{re.escape(name)}\b", licence)]
    named = [f"license: {known[0]}"] if known else []
    return [
        "---",
        "library_name: resnext",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- resnext",
        *named,
        "---",
        "",
    ]
