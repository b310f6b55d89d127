"""Compiled decoder layers, and how often something was compiled."""

from torch._dynamo.utils import counters

from torchtune_speech.models import SpeechLLM


def compile_layers(model: SpeechLLM) -> None:
    """Compile each decoder layer by itself, in place.

    Layers are alike, so that the code of one serves all. Not the last one, which goes on with the
    supervised positions alone: their number differs from step to step, and it would be compiled
    again and again. Nor the projector, which takes utterances of any length, and has one
    hundredth of the work at 8B.

    Args:
        model: its batches must all have one shape.
    """
    for layer in list(model.decoder.layers)[:-1]:
        layer.compile()


def compiled_graphs() -> int:
    """Graphs that torch has compiled in this process so far.

    Returns:
        Their number; once it has settled, a rise means that something is compiled anew.
    """
    return counters["stats"]["unique_graphs"]
