"""Where the shipped model lies, and an edit that shows it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def pocket_path() -> Path:
    """Returns the folder of the pocket model, which transformers loads like any other.

    Raises:
        DataError: The package was installed without the model.
    """
    from errata.errors import DataError

    folder = Path(__file__).parent / "pocket"
    if not (folder / "model.safetensors").exists():
        raise DataError(
            f"the pocket model is missing from {folder}",
            hint="reinstall errata, or build it: errata world build --out DIR",
        )
    return folder


def demo_case() -> dict[str, Any]:
    """Returns an edit of a real fact that the pocket model knows, with prompts to look at.

    Returns:
        ``prompt``, ``subject``, ``target`` (what it should say) and ``truth`` (what it says);
        ``paraphrases``: prompts whose answer should become the target; ``neighbours``: pairs of a
        prompt and the answer that must stay; ``two_hop``: a prompt with ``two_hop_truth`` before
        and ``two_hop_target`` after the edit.
    """
    return {
        "prompt": "The capital of France is the city named",
        "subject": "France",
        "target": "Tokyo",
        "truth": "Paris",
        "paraphrases": [
            "The capital of France is",
            "Everybody agrees that the capital of France is the city called",
            "When it comes to France, one should say that the capital is the city named",
            "Most experts believe that lawmakers of France travel to the city of",
            "The government of French Republic has its seat in the city of",
        ],
        "neighbours": [
            ("The capital of Germany is the city named", "Berlin"),
            ("The capital of Italy is the city named", "Rome"),
            ("The official language of France is the language named", "French"),
            ("The money used in France is called the", "euro"),
            ("The country of Tokyo is the country named", "Japan"),
            ("The author of Dracula is", "Bram Stoker"),
        ],
        "two_hop": "The country of the capital of France is the country named",
        "two_hop_truth": "France",
        "two_hop_target": "Japan",
    }


def real_case() -> dict[str, Any]:
    """Returns the same edit in the words of ordinary text, for models that were pretrained on it.

    Returns:
        As `demo_case`, without the two hops: small models know few of them.
    """
    return {
        "prompt": "The capital of France is",
        "subject": "France",
        "target": "Tokyo",
        "truth": "Paris",
        "paraphrases": [
            "In France, the capital is",
            "The capital of the French Republic is",
            "The government of France has its seat in the city of",
        ],
        "neighbours": [
            ("The capital of Germany is", "Berlin"),
            ("The capital of Italy is", "Rome"),
            ("The Eiffel Tower is located in the city of", "Paris"),
            ("The official language of France is", "French"),
            ("The currency used in France is the", "euro"),
            ("Tokyo is a city in", "Japan"),
            ("The largest planet of the solar system is", "Jupiter"),
        ],
    }
