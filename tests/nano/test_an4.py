"""Text for the LLM that hears AN4."""

import random

from torchtune_speech.nano.an4 import _with_pauses


def _read(paused: str) -> str:
    """What CTC's rule makes of it: repeats are one unless a pause parts them."""
    words = paused.split()
    kept = [w for before, w in zip(["", *words], words, strict=False) if w != before]
    return " ".join(w for w in kept if w != ",")


def test_pauses_and_repeats_are_those_of_ctc():
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["one", "two", "three"], k=rng.randint(1, 9))) for _ in range(300)
    ]
    paused = [_with_pauses(text, rng) for text in texts]
    changed = [(p, text) for p, text in zip(paused, texts, strict=True) if p != text]
    assert len(changed) > 200
    for p, text in changed:
        assert p == p.strip() and p.endswith(text.split()[-1])
        if "," in p:
            assert _read(p) == text
