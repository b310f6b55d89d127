"""Where does dropping pads break? Noise, long audio, unheard words, spelled letters, real people.

    python studies/dropping_pads.py                   # some three minutes on one core
    python studies/dropping_pads.py --utterances 16 --out /tmp/dropping_pads

The LLM with stage B's LoRA answers through a stage-1 projector that it has never met: reading all
speech vectors, those that `torchtune-speech keep` keeps, those that it ought to keep (as many of
the first as the transcript has tokens), and, without any speech, the transcript. The second and
third table say where errors arise: in the choice of pads, in CTC, or in the vectors.

Needs the nano world with stage B, and stage 1 (`make demo-2026` makes both). Writes manifests,
features, predictions, `results.json`, `table.md` and `plot.svg`. Steps that are done are skipped.
"""

import argparse
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import soundfile
import torch
from omegaconf import OmegaConf

from torchtune_speech import config, training
from torchtune_speech.config import one_line_errors
from torchtune_speech.data import (
    KeptPositions,
    chat_format,
    ctc_labels,
    load_manifest,
    resolve_token,
    sample_to_row,
    spread,
    text_token_rows,
    write_kept,
    write_manifest,
)
from torchtune_speech.datasets import an4_manifests
from torchtune_speech.errors import InputError
from torchtune_speech.evaluation import normalizer, score, split_words, wer
from torchtune_speech.features import FeatureStore
from torchtune_speech.files import atomic_write, read_json, read_jsonl, write_json
from torchtune_speech.modules import ctc_greedy, nearest_tokens, read_as_pads
from torchtune_speech.nano import TEST_VOICES, Utterance, synthesize
from torchtune_speech.nano._grammar import draw_sentence, spoken_words
from torchtune_speech.nano._pipeline import PipelineStep, command, run_pipeline, tune
from torchtune_speech.study import Panel, draw_panels

RATE = 16_000
NORMALIZER = "basic"
PAUSE_S = 0.3
SNR_DB = (20, 10, 5, 0)
# What the grammar has no word for.
PEOPLE = ("lawyer", "pilot", "plumber", "goblin", "captain", "magician", "widow", "sheriff")
THINGS = ("melons", "trumpets", "anchors", "violins", "magnets", "pumpkins", "feathers", "ovens")
PLACES = ("in the barn", "at the circus", "near the windmill", "behind the pharmacy", "on the farm")
LETTERS = "BCDEFGHJKLMNOPQRSTUVWXYZ"  # "a" is read as a word
PLACES_OF_VECTORS = (slice(0, 4), slice(4, 8), slice(8, None))
SYSTEMS = {"all": "all vectors", "kept": "kept", "exact": "right number", "read": "transcript"}
TRANSCRIBE = "Transcribe the English content."

Rows = list[dict[str, Any]]
Recording = tuple[np.ndarray, Rows]


def main() -> None:
    """Make what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="(%(default)s)")
    parser.add_argument("--lora", type=Path, help="stage B (default: B in --run)")
    parser.add_argument(
        "--stage-1",
        type=Path,
        default=Path("runs/nano-2026/v2/stage_1"),
        help="run of recipe speechmapper, version 2 (%(default)s)",
    )
    parser.add_argument(
        "--people",
        type=Path,
        default=Path("../shared/data/speech"),
        help="folder with AN4's manifest.jsonl and audio; left out if absent (%(default)s)",
    )
    parser.add_argument("--utterances", type=int, default=104, help="a condition (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies/nano/dropping_pads"), help="(%(default)s)"
    )
    options = parser.parse_args()
    options.lora = options.lora or options.run / "B"
    with one_line_errors():
        run_study(options)


def run_study(options: argparse.Namespace) -> None:
    """Data, features, kept positions, predictions; then scores, tables and the plot."""
    out = options.out
    check_settings(options)
    features, manifest = out / "features", out / "data" / "test.jsonl"
    steps = [
        PipelineStep("data", manifest, lambda: write_data(options)),
        PipelineStep(
            "features",
            features / "index.parquet",
            tune("nano", "extract_features", f"manifest={manifest}", f"output_dir={features}"),
        ),
        PipelineStep("keep", out / "kept.parquet", lambda: keep(options)),
        PipelineStep("vectors", out / "vectors.json", lambda: look_at_vectors(options)),
    ]
    for system in SYSTEMS:
        file = out / f"predictions-{system}.jsonl"
        steps.append(PipelineStep(f"predict {system}", file, answer(options, system, file)))
    run_pipeline(steps, out / "seconds.json")
    predictions = {name: read_jsonl(out / f"predictions-{name}.jsonl") for name in SYSTEMS}
    results = collect(predictions, read_json(out / "vectors.json"))
    tables = format_scores(results) + "\n\n" + format_causes(results) + "\n"
    write_json(out / "results.json", results)
    for name, text in (("table.md", tables), ("plot.svg", draw(results))):
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print("\n" + tables)


def check_settings(options: argparse.Namespace) -> None:
    """Refuse what cannot go on to the end, and a folder made with other settings or models."""
    if options.utterances < 1:
        raise InputError(f"--utterances: {options.utterances}; give 1 or more")
    training.find_checkpoint(options.lora)
    stage = training.read_stage(options.stage_1)
    if stage["config"].get("dataset", {}).get("ctc") != "tokens":
        raise InputError(
            f"{options.stage_1}: no projector with CTC on the LLM's tokens; give a run of recipe "
            "speechmapper with dataset.ctc=tokens"
        )
    names = ("run", "lora", "stage_1", "people", "utterances")
    settings = {name: str(getattr(options, name)) for name in names}
    # What was trained again in the same place is something else.
    settings["digests"] = {
        "projector": training.projector_digest(options.stage_1),
        "lora": training.adapter_digest(options.lora),
        "llm": training.llm_fingerprint(options.run / "llm"),
    }
    file = options.out / "settings.json"
    if file.is_file() and read_json(file) != settings:
        raise InputError(
            f"{file}: other settings or checkpoints than these; remove the folder or name another"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


# ---- data ---------------------------------------------------------------------------------------


def write_data(options: argparse.Namespace) -> None:
    """Recordings of all conditions, in one manifest; `domain` names the condition."""
    folder = options.out / "data"
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows, transcripts = [], []
    for condition, recordings in conditions(options):
        for number, (samples, answers) in enumerate(recordings):
            name = f"{condition.replace(' ', '_')}-{number:03}"
            soundfile.write(folder / "audio" / f"{name}.flac", samples, RATE)
            shared = {"audio": f"audio/{name}.flac", "domain": condition}
            for answer_row in answers:
                suffix = f"{answer_row['task']}-{answer_row['target_lang']}"
                rows.append(answer_row | shared | {"id": f"{name}-{suffix}"})
            # As a translation into English: recognition has no text twin.
            twin = {"id": name, "task": "mt", "instruction": TRANSCRIBE, "domain": condition}
            columns = ("source_lang", "target_lang", "source_text", "target")
            transcripts.append(twin | {column: answers[0][column] for column in columns})
    write_manifest(folder / "transcripts.jsonl", transcripts)
    write_manifest(folder / "test.jsonl", rows)  # last: then the data are whole


def conditions(options: argparse.Namespace) -> Iterator[tuple[str, list[Recording]]]:
    """Each condition with its recordings."""
    count, rng = options.utterances, np.random.default_rng(0)
    test = read_test_set(options.run / "data" / "test.jsonl")
    chosen = some(test, count)
    yield "clean", chosen
    for snr_db in SNR_DB:
        noisy = [(add_noise(samples, snr_db, rng), rows) for samples, rows in chosen]
        yield f"noise {snr_db} dB", noisy
    for size in (2, 3):
        groups = [test[i : i + size] for i in range(0, len(test) - size + 1, size)]
        yield f"{size} sentences", [join(group, rng) for group in some(groups, count)]
    yield "unheard words", list(islice(speak(unheard_sentences), count))
    yield "spelled letters", list(islice(speak(spelled_words), count))
    if (options.people / "manifest.jsonl").is_file():
        yield "real people", read_people(options.people, options.out / "data" / "an4", count)
    else:
        print(f"{options.people}: no manifest.jsonl, so the real people are left out")


def some(items: Sequence[Any], count: int) -> list[Any]:
    """So many items, evenly spread."""
    return [items[i] for i in spread(count, len(items))]


def read_test_set(manifest: Path) -> list[Recording]:
    """Recordings with their rows, transcription first."""
    rows_of: dict[str, Rows] = {}
    for sample in load_manifest(manifest):
        rows_of.setdefault(sample.audio[0].path, []).append(sample_to_row(sample))
    return [(soundfile.read(manifest.parent / path)[0], rows) for path, rows in rows_of.items()]


def add_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """White noise at a signal-to-noise ratio, over the mean power of the whole recording."""
    noise = rng.normal(size=len(samples))
    scale = np.sqrt(np.mean(samples**2) / np.mean(noise**2) / 10 ** (snr_db / 10))
    noisy = samples + scale * noise
    return noisy / max(1.0, np.abs(noisy).max())


def join(group: Sequence[Recording], rng: np.random.Generator) -> Recording:
    """Recordings one after the other, to be transcribed, and the first one's questions."""
    pieces = []
    for samples, _ in group:
        pieces += [samples, 1e-4 * rng.normal(size=int(PAUSE_S * RATE))]
    first, texts = group[0][1], [rows[0]["source_text"] for _, rows in group]
    # In lines: the small vocabulary has "The" at the beginning of a line only.
    text = {"source_text": "\n".join(texts)}
    questions = [row | text for row in first if row["task"] == "sqa" and row.get("answerable")]
    rows = [transcribe_row(" ".join(texts)) | text, *questions]
    return np.concatenate(pieces), rows


def speak(texts: Callable[[], Iterator[str]]) -> Iterator[Recording]:
    """Texts in the test voices, to be transcribed."""
    rng = random.Random(0)
    for number, text in enumerate(texts()):
        voice = TEST_VOICES[number % len(TEST_VOICES)]
        utterance = Utterance(
            text, voice=voice, speed=rng.randint(150, 200), pitch=rng.randint(35, 65)
        )
        yield synthesize(utterance) / 2**15, [transcribe_row(text)]


def transcribe_row(text: str) -> dict[str, Any]:
    """A row that wants the transcript."""
    languages = {"source_lang": "en", "target_lang": "en"}
    return {"task": "asr", "source_text": text, "target": text} | languages


def unheard_sentences() -> Iterator[str]:
    """The grammar's sentences about other people, things and places."""
    rng = random.Random(0)
    while True:
        sentence = draw_sentence(rng)
        parts = {"subject": PEOPLE, "thing": THINGS, "place": PLACES}
        others = {
            part: dataclasses.replace(getattr(sentence, part), en=rng.choice(words))
            for part, words in parts.items()
            if getattr(sentence, part) is not None
        }
        yield dataclasses.replace(sentence, **others).text("en")


def spelled_words() -> Iterator[str]:
    """Three to six letters."""
    rng = random.Random(0)
    while True:
        yield " ".join(rng.choices(LETTERS, k=rng.randint(3, 6)))


def read_people(source: Path, folder: Path, count: int) -> list[Recording]:
    """Utterances of AN4's dev speakers."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = an4_manifests(source, folder)["dev"]
    return [
        (soundfile.read(manifest.parent / s.audio[0].path)[0], [transcribe_row(s.target)])
        for s in some(load_manifest(manifest), count)
    ]


# ---- models -------------------------------------------------------------------------------------


def keep(options: argparse.Namespace) -> None:
    """Which vectors are no pads, by the command that a user calls."""
    out = options.out
    words = {"checkpoint": options.stage_1, "features": out / "features"}
    words |= {"output": out / "kept.parquet"}
    command("torchtune-speech", "keep", *(w for k, v in words.items() for w in (f"--{k}", str(v))))


def answer(options: argparse.Namespace, system: str, file: Path) -> Callable[[], None]:
    """The LLM's answers in one of the four ways."""
    out = options.out
    words = [f"output={file}", f"adapter_checkpoint={options.lora}", "max_new_tokens=80"]
    words += [f"llm_dir={options.run}/llm"]
    if system == "read":
        manifests = f"[{out}/data/test.jsonl,{out}/data/transcripts.jsonl]"
        words += ["projector=null", "dataset.features=null", "dataset.text_twins=true"]
        words += [f"dataset.manifest={manifests}"]
    else:
        words += [f"projector_checkpoint={options.stage_1}", f"dataset.features={out}/features"]
        words += [f"dataset.manifest={out}/data/test.jsonl"]
    if system in ("kept", "exact"):
        words.append(f"dataset.kept={out}/{system}.parquet")
    return tune("nano-2026", "speech_generate", *words)


@torch.no_grad()
def look_at_vectors(options: argparse.Namespace) -> None:
    """Write what each recording's vectors are read as, and the positions that ought to be kept."""
    out = options.out
    cfg = OmegaConf.create(training.read_stage(options.stage_1)["config"])
    chat = chat_format(config.instantiate(cfg.tokenizer))
    pad_token, labels = resolve_token(cfg.pad_token, chat), ctc_labels(cfg.dataset.ctc, chat)
    store, kept = FeatureStore(out / "features"), KeptPositions(out / "kept.parquet")
    model = training.build_projector_with_table(
        llm_dir=options.run / "llm",
        projector=config.instantiate(cfg.projector),
        projector_checkpoint=training.find_checkpoint(options.stage_1),
        process=training.start_process("cpu"),
    ).eval()
    rows, exact, is_text_v = [], {}, text_token_rows(chat, len(model.table))
    for sample in load_manifest(out / "data" / "test.jsonl", tasks=["asr"]):
        key = sample.audio[0].key
        lengths_u = torch.tensor([store.num_frames(key)])
        vectors_nd, logits = model.projector(store[key].float(), lengths_u, return_ctc=True)
        heard = ctc_greedy(logits, model.projector.ctc_length(lengths_u))[0]
        nearest_n = nearest_tokens(vectors_nd, model.table)
        is_pad = read_as_pads(nearest_n, model.table, pad_token, is_text_v).tolist()
        nearest = nearest_n.tolist()
        positions = kept.positions(key, len(nearest)).tolist()
        num_tokens = sum(len(chat.encode(line)) for line in sample.source_text.splitlines())
        exact[key] = (len(nearest), range(min(num_tokens, len(nearest))))
        labels_heard = [label - 1 for label in heard]
        rows.append(
            {"id": sample.id, "domain": sample.domain, "text": sample.target}
            | count_pads(num_tokens, len(nearest), positions)
            | {"ctc": labels.decode(heard), "ctc_tokens": len(heard)}
            | {"nearest": chat.decode([nearest[i] for i in positions if not is_pad[i]])}
            | {"beside_ctc": count_pads(len(heard), len(nearest), positions)}
            | {"as_ctc": [a == b for a, b in zip(labels_heard, nearest, strict=False)]}
        )
    write_kept(
        out / "exact.parquet",
        exact,
        fingerprint=kept.fingerprint,
        store_fingerprint=kept.store_fingerprint,
        checksums={key: store.checksum(key) for key in exact},
    )
    write_json(out / "vectors.json", rows)


def count_pads(num_tokens: int, num_vectors: int, kept: Sequence[int]) -> dict[str, int]:
    """What of an utterance's vectors is kept, beside what its transcript says.

    Args:
        num_tokens: of the transcript: the first vectors stand for them, the others for pads.
        num_vectors: of the utterance.
        kept: positions that are kept.

    Returns:
        ``tokens``, ``vectors``, ``kept``; ``lost`` (tokens whose vector is taken for a pad),
        ``extra`` (pads that are kept) and ``no_room`` (tokens behind the last vector).
    """
    room = min(num_tokens, num_vectors)
    right = sum(position < num_tokens for position in kept)
    return {
        "tokens": num_tokens,
        "vectors": num_vectors,
        "kept": len(kept),
        "lost": room - right,
        "extra": len(kept) - right,
        "no_room": num_tokens - room,
    }


# ---- results ------------------------------------------------------------------------------------


def collect(predictions: Mapping[str, Rows], vectors: Rows) -> dict[str, Any]:
    """Scores and causes of all conditions.

    Args:
        predictions: system to its rows; `domain` is the condition.
        vectors: from :func:`look_at_vectors`.

    Returns:
        Condition to ``scores`` (by system), ``causes`` and ``examples``.
    """
    results = {}
    for condition in dict.fromkeys(row["domain"] for row in vectors):
        of = {
            system: [as_recognition(row) for row in rows if row["domain"] == condition]
            for system, rows in predictions.items()
        }
        looked = [row for row in vectors if row["domain"] == condition]
        results[condition] = {
            "scores": {system: summarize(rows) for system, rows in of.items()},
            "causes": causes(looked),
            "examples": examples(looked, of),
        }
    return results


def as_recognition(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the reading LLM that was asked for a transcript, as the same of speech."""
    is_twin = row["task"] == "mt" and row["target_lang"] == "en"
    return dict(row) | ({"task": "asr", "id": f"{row['id']}-asr-en"} if is_twin else {})


def summarize(rows: Rows) -> dict[str, Any]:
    """WER with its interval, BLEU by language, accuracy, and unheard words that are found."""
    report = score(rows, normalizer=NORMALIZER, by=(), ter=False)
    translations = report.get("st") or report.get("mt") or {}
    answers = report.get("sqa") or report.get("qa") or {}
    return {
        "wer": report["asr"]["wer"],
        "interval": report["asr"]["intervals"].get("wer"),  # none for one sample
        "bleu": {lang: part["bleu"] for lang, part in translations.items()},
        "qa": answers.get("accuracy"),
        "unheard_found": unheard_found(
            [(row["target"], row["prediction"]) for row in rows if row["task"] == "asr"]
        ),
        "n": report["n"],
    }


def unheard_found(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Share of the spoken words outside the grammar that are written; None without any."""
    clean, known = normalizer(NORMALIZER), spoken_words()
    found = [
        word in split_words(clean(written))
        for said, written in pairs
        for word in split_words(clean(said))
        if word not in known
    ]
    return sum(found) / len(found) if found else None


def causes(rows: Rows) -> dict[str, float]:
    """Means for an utterance, shares of tokens and pads, and error rates before the LLM."""
    texts = [row["text"] for row in rows]
    return {
        "tokens": mean(row["tokens"] for row in rows),
        "ctc_tokens": mean(row["ctc_tokens"] for row in rows),
        "vectors": mean(row["vectors"] for row in rows),
        "kept": mean(row["kept"] for row in rows),
        "right_number": mean(row["kept"] == row["tokens"] for row in rows),
        "transcript": pad_shares(rows),
        "beside_ctc": pad_shares([row["beside_ctc"] for row in rows]),
        "as_ctc": share_at(rows, slice(None)),
        "as_ctc_at": [share_at(rows, part) for part in PLACES_OF_VECTORS],
        "ctc_wer": wer(texts, [row["ctc"] for row in rows], NORMALIZER)["wer"],
        "nearest_wer": wer(texts, [row["nearest"] for row in rows], NORMALIZER)["wer"],
    }


def share_at(rows: Rows, part: slice) -> float | None:
    """Share of the vectors at some places that are read as what CTC hears there."""
    same = [value for row in rows for value in row["as_ctc"][part]]
    return sum(same) / len(same) if same else None


def pad_shares(rows: Rows) -> dict[str, float]:
    """Tokens taken for pads or without room, of all tokens; pads that are kept, of all pads.

    Args:
        rows: from :func:`count_pads`.

    Returns:
        ``lost``, ``no_room`` and ``extra``, each 0 to 1.
    """
    names = ("tokens", "vectors", "lost", "extra", "no_room")
    tokens, vectors, lost, extra, no_room = (sum(row[name] for row in rows) for name in names)
    pads = vectors - (tokens - no_room)
    return {
        "lost": lost / max(tokens, 1),
        "no_room": no_room / max(tokens, 1),
        "extra": extra / max(pads, 1),
    }


def examples(looked: Rows, predictions: Mapping[str, Rows], count: int = 4) -> Rows:
    """Some utterances with everything that is known of them."""
    written = {
        system: {row["id"]: row["prediction"] for row in rows if row["task"] == "asr"}
        for system, rows in predictions.items()
    }
    return [
        row | {system: texts.get(row["id"]) for system, texts in written.items()}
        for row in some(looked, count)
    ]


def format_scores(results: Mapping[str, Any]) -> str:
    """What the LLM makes of it, in Markdown."""
    ways = " / ".join(SYSTEMS)
    lines = [
        "`all`: all vectors; `kept`: without pads; `exact`: as many of the first vectors as the "
        "transcript has tokens;",
        f"`read`: the transcript instead of speech. Normaliser of WER: {NORMALIZER}.\n",
        f"| condition | WER {ways} | BLEU de | it | zh | questions |",
        "|---|---|---|---|---|---|",
    ]
    for condition, result in results.items():
        scores = [result["scores"][system] for system in SYSTEMS]
        cells = [cell([s["wer"] for s in scores], 3)]
        cells += [cell([s["bleu"].get(lang) for s in scores], 1) for lang in ("de", "it", "zh")]
        cells.append(cell([s["qa"] for s in scores], 2))
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_causes(results: Mapping[str, Any]) -> str:
    """Where errors arise, in Markdown: vectors and pads, then words."""
    pads = [
        "Vectors an utterance; shares of tokens taken for pads and of pads kept, by the number of "
        "tokens of the transcript, and of those that CTC hears; tokens for which there is no "
        "vector.\n",
        "| condition | tokens | CTC's | all | kept | right number kept | tokens lost, pads kept | "
        "the same beside CTC | no room |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    words = [
        "WER before and behind the LLM; share of the tokens that CTC hears whose vector is read as "
        "the same; unheard words that the LLM writes.\n",
        "| condition | CTC | kept vectors | LLM, kept | vectors as CTC | 1st to 4th / to 8th / "
        "later | unheard words |",
        "|---|---|---|---|---|---|---|",
    ]
    for condition, result in results.items():
        c, llm = result["causes"], result["scores"]["kept"]
        cells = [f"{c[name]:.1f}" for name in ("tokens", "ctc_tokens", "vectors", "kept")]
        cells.append(f"{c['right_number']:.2f}")
        for share in (c["transcript"], c["beside_ctc"]):
            cells.append(f"{share['lost']:.3f}, {share['extra']:.3f}")
        cells.append(f"{c['transcript']['no_room']:.3f}")
        pads.append(f"| {condition} | {' | '.join(cells)} |")
        rates = (c["ctc_wer"], c["nearest_wer"], llm["wer"], c["as_ctc"])
        cells = [cell([rate], 3) for rate in rates]
        cells += [cell(c["as_ctc_at"], 3), cell([llm["unheard_found"]], 2)]
        words.append(f"| {condition} | {' | '.join(cells)} |")
    return "\n".join([*pads, "", *words])


def cell(values: Sequence[float | None], digits: int) -> str:
    """Values of the systems beside each other; a dash if there is none."""
    if all(value is None for value in values):
        return "-"
    return " / ".join("-" if value is None else f"{value:.{digits}f}" for value in values)


def draw(results: Mapping[str, Any]) -> str:
    """WER of the ways that hear, and what is wrong about pads, as SVG."""
    names = list(results)
    panels = []
    for system in ("all", "kept", "exact"):
        scores = [result["scores"][system] for result in results.values()]
        label, values = f"WER, {SYSTEMS[system]}", [s["wer"] for s in scores]
        panels.append(panel(label, names, values, [s["interval"] for s in scores]))
    causes_of = [result["causes"] for result in results.values()]
    shares = {
        "WER of CTC": [c["ctc_wer"] for c in causes_of],
        "WER of the kept vectors": [c["nearest_wer"] for c in causes_of],
        "CTC's tokens taken for pads (share)": [c["beside_ctc"]["lost"] for c in causes_of],
    }
    for label, values in shares.items():
        panels.append(panel(label, names, values, [None] * len(names)))
    return draw_panels(panels, "Where dropping pads breaks")


def panel(
    label: str,
    names: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
) -> Panel:
    """One value a condition."""
    return Panel("condition", label, names, [[v] for v in values], values, intervals)


if __name__ == "__main__":
    main()
