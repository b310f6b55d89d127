"""The nano world on disk: speech, manifests and text, in the formats of the real thing."""

import os
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from torchtune_speech.errors import InputError
from torchtune_speech.files import atomic_write, read_json, write_json, write_jsonl
from torchtune_speech.nano._grammar import (
    LANGUAGES,
    UNANSWERABLE,
    Question,
    Sentence,
    draw_question,
    draw_sentences,
    spoken_words,
)
from torchtune_speech.nano._lm_text import lm_rows
from torchtune_speech.nano._voices import (
    DEV_VOICES,
    TEST_VOICES,
    TRAIN_VOICES,
    Utterance,
    write_speech,
)

FORMAT_VERSION = 1
DOMAIN = "nano"
TARGET_LANGUAGES = ("de", "it", "zh")
# Every third question in training, so that saying so is learnt; every fifth in dev and test.
_UNANSWERABLE_EVERY = {"train": 3, "dev": 5, "test": 5}


def build_world(
    out_dir: str | os.PathLike[str],
    *,
    num_train: int = 6000,
    num_dev: int = 64,
    num_test: int = 208,
    num_text: int = 16000,
    num_lm: int = 60000,
    seed: int = 0,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Builds speech, manifests and text; does nothing when they are there already.

    The folder holds `audio/` (16 kHz mono FLAC), the manifests `train.jsonl`, `dev.jsonl`,
    `test.jsonl` (rows asr, st, sqa) and `text.jsonl` (rows mt, qa), `lm_text.jsonl` for
    `pretrain_llm`, and `world.json`, which says how it was made. No sentence of dev or test is in
    training, speech or text, and dev and test have voices of their own.

    Args:
        out_dir: The folder to make; it appears when everything in it is complete.
        num_train: Spoken training sentences, each with its three translations and one question.
        num_dev: Spoken dev sentences, each with two questions.
        num_test: Spoken test sentences, each with two questions.
        num_text: Sentences of `text.jsonl`, each one translation and one question.
        num_lm: Rows of `lm_text.jsonl`.
        seed: Seed of all chance.
        num_workers: Processes that speak; None takes one a core, at most two.

    Returns:
        What `world.json` holds.

    Raises:
        InputError: When the folder holds something else, or a world made otherwise.

    Example:
        >>> build_world("runs/nano/data")["seconds"]["train"]
    """
    settings = {
        "num_train": num_train,
        "num_dev": num_dev,
        "num_test": num_test,
        "num_text": num_text,
        "num_lm": num_lm,
        "seed": seed,
    }
    out_dir = Path(out_dir)
    if (out_dir / "world.json").exists():
        return _existing_world(out_dir, settings)
    if out_dir.exists() and any(out_dir.iterdir()):
        raise InputError(f"{out_dir}: not empty and no nano world; name another folder")
    with atomic_write(out_dir) as folder:
        (folder / "audio").mkdir(parents=True)
        world = _write_world(folder, settings, num_workers)
        write_json(folder / "world.json", world)
    return world


def _existing_world(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    world = read_json(folder / "world.json")
    if world.get("format_version") != FORMAT_VERSION or world.get("settings") != settings:
        raise InputError(
            f"{folder / 'world.json'}: made with {world.get('settings')} and not {settings}; "
            "remove the folder or name another"
        )
    return world


def _write_world(folder: Path, settings: dict[str, int], num_workers: int | None) -> dict[str, Any]:
    rng = random.Random(settings["seed"])
    # Test and dev are drawn first and everything after avoids them, so nothing of them leaks.
    sentences = draw_sentences(rng, seen=set())
    splits = {
        split: list(islice(sentences, settings[f"num_{split}"]))
        for split in ("test", "dev", "train")
    }
    seconds, rows = {}, {}
    for split, drawn in splits.items():
        utterances = _utterances(drawn, split, rng)
        rows[split] = list(_speech_rows(drawn, utterances, split, rng))
        write_jsonl(folder / f"{split}.jsonl", rows[split])
        paths = [folder / _audio_path(split, index) for index in range(len(drawn))]
        jobs = list(zip(paths, utterances, strict=True))
        spoken_s = write_speech(jobs, num_workers=num_workers, description=f"speaking {split}")
        seconds[split] = round(spoken_s, 1)
    text = list(text_rows(islice(sentences, settings["num_text"]), rng))
    write_jsonl(folder / "text.jsonl", text)
    write_jsonl(folder / "lm_text.jsonl", lm_rows(rng, lambda: next(sentences), settings["num_lm"]))
    return {
        "format_version": FORMAT_VERSION,
        "settings": settings,
        "voices": {"train": TRAIN_VOICES, "dev": DEV_VOICES, "test": TEST_VOICES},
        "rows": {**{split: len(rows[split]) for split in rows}, "text": len(text)},
        "seconds": seconds,
        "num_words": len(spoken_words()),
        "unanswerable": UNANSWERABLE,
    }


def _utterances(sentences: list[Sentence], split: str, rng: random.Random) -> list[Utterance]:
    """Gives each sentence a voice, a speed and a pitch; dev and test voices take turns."""
    voices = {"train": TRAIN_VOICES, "dev": DEV_VOICES, "test": TEST_VOICES}[split]
    return [
        Utterance(
            text=sentence.text("en"),
            # In pairs: two sentences hold questions in all four languages.
            voice=rng.choice(voices) if split == "train" else voices[index // 2 % len(voices)],
            speed=rng.randint(150, 200),
            pitch=rng.randint(35, 65),
        )
        for index, sentence in enumerate(sentences)
    ]


def _audio_path(split: str, index: int) -> str:
    return f"audio/{split}-{index:05d}.flac"


def _question(
    sentence: Sentence, index: int, split: str, rng: random.Random
) -> tuple[str, Question]:
    """Draws question `index` of a manifest: languages in turn, in each some unanswerable."""
    lang = LANGUAGES[index % len(LANGUAGES)]
    answerable = (index // len(LANGUAGES) + 1) % _UNANSWERABLE_EVERY[split] != 0
    return lang, draw_question(sentence, lang, rng, answerable=answerable)


def _question_columns(lang: str, question: Question) -> dict[str, Any]:
    return {
        "target_lang": lang,
        "question": question.text,
        "target": question.answer,
        "question_kind": question.kind,
        "answerable": question.answerable,
    }


def _speech_rows(
    sentences: list[Sentence], utterances: list[Utterance], split: str, rng: random.Random
) -> Iterator[dict[str, Any]]:
    questions_each = 1 if split == "train" else 2
    for index, (sentence, utterance) in enumerate(zip(sentences, utterances, strict=True)):
        answers = [("asr", "asr", {"target_lang": "en", "target": utterance.text})]
        for lang in TARGET_LANGUAGES:
            columns = {"target_lang": lang, "target": sentence.text(lang)}
            answers.append(("st", f"st-{lang}", columns))
        for turn in range(questions_each):
            lang, question = _question(sentence, index * questions_each + turn, split, rng)
            answers.append(("sqa", f"sqa-{lang}", _question_columns(lang, question)))
        for task, suffix, columns in answers:
            yield {
                "id": f"{split}-{index:05d}-{suffix}",
                "task": task,
                "audio": _audio_path(split, index),
                "source_lang": "en",
                "source_text": utterance.text,
                **columns,
                "domain": DOMAIN,
                "speaker": utterance.voice,
            }


def text_rows(sentences: Iterable[Sentence], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Writes the text-only training rows: of each sentence one translation and one question.

    Args:
        sentences: What the rows speak of.
        rng: The source of chance for the questions.

    Yields:
        Manifest rows of the tasks mt and qa.
    """
    for index, sentence in enumerate(sentences):
        common = {"source_lang": "en", "source_text": sentence.text("en"), "domain": DOMAIN}
        target_lang = TARGET_LANGUAGES[index % len(TARGET_LANGUAGES)]
        yield {
            "id": f"text-{index:05d}-mt-{target_lang}",
            "task": "mt",
            **common,
            "target_lang": target_lang,
            "target": sentence.text(target_lang),
        }
        lang, question = _question(sentence, index, "train", rng)
        yield {
            "id": f"text-{index:05d}-qa-{lang}",
            "task": "qa",
            **common,
            **_question_columns(lang, question),
        }
