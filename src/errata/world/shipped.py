"""The shipped model: where it lies, which models know its world, and an edit that shows it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from errata.untrusted import read_object

POCKET = "pocket"
"""Name under which the shipped model is loaded."""
CARD = "card.json"
"""What a model that was trained on the world says about itself."""


def is_shipped(model: str) -> bool:
    """Returns whether a name is that of the model that comes with errata."""
    return model == POCKET


def knows_world(model: str) -> bool:
    """Returns whether a model was taught the built-in world, the same one as the shipped model.

    Args:
        model: The name that it was loaded by: its folder holds a card that says so.
    """
    folder = Path(__file__).parent / POCKET if is_shipped(model) else Path(model).expanduser()
    try:
        card = read_object(folder / CARD)
        return (card["scale"], card["seed"]) == ("pocket", 0)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pocket_path() -> Path:
    """Returns the folder of the pocket model, which transformers loads like any other.

    Raises:
        DataError: The package was installed without the model.
    """
    from errata.errors import DataError

    folder = Path(__file__).parent / POCKET
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
