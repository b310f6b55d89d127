"""Real people speaking: `python -m torchtune_speech.nano.an4`.

Names, numbers and commands of AN4, spoken by 74 people, are learnt through a small frozen LLM that
has read texts of the same kind; dev speakers are strangers. Besides the recordings, espeak-ng
speaks made-up sentences of the same kind, for a first acquaintance with the words. Everything but
the text and the voices is done by the recipes, with configs/an4.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torchtune_speech.config import one_line_errors
from torchtune_speech.data import load_manifest, write_manifest
from torchtune_speech.datasets import an4_manifests
from torchtune_speech.files import write_jsonl
from torchtune_speech.nano._pipeline import PipelineStep, run_pipeline, training_step, tune
from torchtune_speech.nano._voices import TRAIN_VOICES, Utterance, write_speech

INSTRUCTION = "Transcribe the English content."
OUT = Path("runs/an4")  # as in configs/an4


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line.

    Args:
        arguments: words of the command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torchtune_speech.nano.an4",
        description="Train a small speech LLM on AN4, about 40 minutes of real speech, on a CPU.",
        epilog="Steps that are done are skipped; start again from nothing by removing runs/an4.",
    )
    parser.add_argument(
        "source",
        nargs="?",
        default="../shared/data/speech",
        help="folder with AN4's manifest.jsonl and audio (default: ../shared/data/speech)",
    )
    options = parser.parse_args(arguments)
    with one_line_errors():
        run_an4(Path(options.source))


def run_an4(source: Path) -> None:
    """Make what is missing: data, LLM, features, projector, predictions and scores.

    Args:
        source: see :func:`an4_manifests`.
    """
    steps = [
        PipelineStep(
            "data", OUT / "data" / "lm_text.jsonl", lambda: build_an4_world(source, OUT / "data")
        ),
        PipelineStep("llm", OUT / "llm" / "config.json", _pretrain),
        PipelineStep(
            "features", OUT / "features" / "index.parquet", tune("an4", "extract_features")
        ),
        training_step("an4", "projector", "A"),
        PipelineStep("predict A", OUT / "predictions.jsonl", tune("an4", "speech_generate")),
    ]
    seconds = run_pipeline(steps, OUT / "seconds.json")
    tune("an4", "speech_eval")()
    print(f"{sum(seconds.values()) / 60:.1f} minutes in all")


def _pretrain() -> None:
    from torchtune_speech.nano._llm import pretrain_llm

    pretrain_llm(OUT / "data", OUT / "llm", own_tokenizer=True)


def build_an4_world(source: Path, data: Path, *, num_spoken: int = 3000, seed: int = 0) -> None:
    """Manifests of the recordings, sentences spoken by espeak-ng, and text for the LLM.

    Args:
        source: see :func:`an4_manifests`.
        data: folder for `train.jsonl`, `dev.jsonl`, `spoken.jsonl`, `audio/`, `lm_text.jsonl`.
        num_spoken: sentences for espeak-ng.
        seed: of sentences and voices.
    """
    manifests = an4_manifests(source, data)
    transcripts = [s.target for s in load_manifest(manifests["train"])]
    rng = random.Random(seed)
    sentences = _sentences(transcripts, rng)
    (data / "audio").mkdir(exist_ok=True)
    rows, jobs = [], []
    for i in range(num_spoken):
        text, voice = next(sentences), rng.choice(TRAIN_VOICES)
        utterance = Utterance(
            text.upper(), voice=voice, speed=rng.randint(120, 200), pitch=rng.randint(25, 75)
        )
        jobs.append((data / "audio" / f"spoken-{i:05d}.flac", utterance))
        rows.append(
            {
                "id": f"spoken-{i:05d}",
                "task": "asr",
                "audio": f"audio/spoken-{i:05d}.flac",
                "source_text": text,
                "target": text,
                "domain": "espeak",
                "speaker": voice,
            }
        )
    write_speech(jobs)
    write_manifest(data / "spoken.jsonl", rows)
    write_jsonl(data / "lm_text.jsonl", _lm_rows(transcripts, sentences, rng, 40_000))


def _sentences(transcripts: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Endless sentences of the same kind: a chain of words that follow each other in AN4."""
    following = defaultdict(list)
    for text in transcripts:
        words = ["", *text.split(), ""]
        for a, b in zip(words, words[1:], strict=False):
            following[a].append(b)
    while True:
        words, word = [], rng.choice(following[""])
        while word and len(words) < 12:
            words.append(word)
            word = rng.choice(following[word])
        yield " ".join(words)


def _lm_rows(
    transcripts: Sequence[str], sentences: Iterator[str], rng: random.Random, count: int
) -> Iterator[dict[str, Any]]:
    """Pretraining text: repeating what was said, pauses left out, and running on."""
    words = sorted({w for text in transcripts for w in text.split()})
    for _ in range(count):
        kind = rng.random()
        if kind < 0.4:
            text = " ".join(rng.choices(words, k=rng.randint(1, 10)))
        else:
            text = rng.choice(transcripts) if kind < 0.6 else next(sentences)
        prompt = "" if kind > 0.85 else f"{_with_pauses(text, rng)}\n{INSTRUCTION}"
        yield {"kind": "repeat" if prompt else "text", "turns": [(prompt, text)]}


def _with_pauses(text: str, rng: random.Random) -> str:
    """A text as CTC would write it down, so that the LLM can read what a projector hears.

    `` ,`` stands for a twelfth of a second without news, and a word that takes longer comes twice;
    a pause parts words that were said twice.
    """
    if rng.random() < 0.2:
        return text
    most = rng.choice((2, 4, 8))
    words = text.split()
    parts = [", " * rng.randint(0, 2 * most)]
    for word, after in zip(words, [*words[1:], ""], strict=True):
        parts.append(f"{word} {word} " if rng.random() < 0.15 else f"{word} ")
        parts.append(", " * rng.randint(int(word == after), most) if after else "")
    return "".join(parts).rstrip()


if __name__ == "__main__":
    main()
