"""Repetition loops: are they found, are they cured, is anything else changed, what does it cost?

    python studies/loops.py texts MCIF_OUTPUTS     # loops in real systems' outputs
    python studies/loops.py policies --run runs/nano              # the policies, on provoked loops

The first command reads official output files and prints what the two detectors flag: the one over
words that scores use, and the one over tokens that watches while decoding. The second one answers
the same prompts three times, under the policies none, cut and forbid, with models and audio that
provoke loops. It needs the nano world of `make demo`.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm

from torchtune_speech import config, training
from torchtune_speech.data import (
    ChatFormat,
    PromptTemplates,
    chat_format,
    load_manifest,
    read_mcif_output,
    spread,
)
from torchtune_speech.encoders import filter_bank_encoder, load_audio
from torchtune_speech.evaluation import normalizer, repetition_loop, split_words, wer
from torchtune_speech.features import average_frames
from torchtune_speech.files import write_json
from torchtune_speech.generation import (
    LOOP_POLICIES,
    CycleDetector,
    Decoding,
    LoopDetector,
    Prompt,
    TokenKinds,
    audio_prompt,
    generate,
)
from torchtune_speech.models import SpeechLLM

RATE = 16_000
INSTRUCTIONS = (
    "Transcribe the English content.",
    "Übersetze den englischem Inhalt nach Deutsch.",
    "Traduci il contenuto inglese in italiano.",
    "将英文内容翻译成中文。",
)


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("texts", help="loops in the outputs of published systems")
    command.add_argument("folder", type=Path, help="official output files (.xml)")
    command.set_defaults(study=study_texts)
    command = commands.add_parser("policies", help="what each policy does to provoked loops")
    command.add_argument("--run", type=Path, default=Path("runs/nano"), help="(%(default)s)")
    command.add_argument("--checkpoint", default="C", help="trained model in it (%(default)s)")
    command.add_argument(
        "--weak", nargs="*", default=[], help="checkpoints of under-trained projectors"
    )
    command.add_argument("--human", type=Path, help="manifest of real speech, for the model unseen")
    command.add_argument("--samples", type=int, default=60, help="recordings (%(default)s)")
    command.add_argument("--max-new-tokens", type=int, default=200, help="(%(default)s)")
    command.add_argument("--beams", type=int, default=1, help="(%(default)s)")
    command.add_argument("--out", type=Path, help="also write the table as JSON")
    command.set_defaults(study=study_policies)
    options = parser.parse_args()
    options.study(options)


# ---- loops in real outputs ----------------------------------------------------------------------


def study_texts(options: argparse.Namespace) -> None:
    """Print what the detectors flag among the texts of official output files."""
    texts = [
        (file.stem, id_, text)
        for file in sorted(options.folder.glob("*.xml"))
        for id_, text in read_mcif_output(file).texts.items()
    ]
    by_words = {(f, i): repetition_loop(text) for f, i, text in tqdm(texts, desc="words")}
    # A tokenizer that has not seen the loops, or it would make long tokens of them.
    tokenizer = train_tokenizer([t[:3000] for f, i, t in texts if by_words[f, i] is None])
    tokenizer.decoder = decoders.ByteLevel()
    texts_of = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    kinds = TokenKinds.from_texts(texts_of)
    found = {"words": 0, "tokens": 0, "both": 0}
    for file, id_, text in texts:
        words = by_words[file, id_]
        at = first_loop(tokenizer.encode(text).ids, kinds)
        found["words"] += words is not None
        found["tokens"] += at is not None
        found["both"] += words is not None and at is not None
        if words is not None or at is not None:
            unit = " ".join(map(str, words.unit)) if words else "-"
            print(
                f"{file} {id_}: {len(text)} characters, {words.repeats if words else 0} cycles of "
                f"{unit[:60]!r}, noticed at token {at}"
            )
    print(f"{len(texts)} texts; flagged by words, by tokens, by both: {list(found.values())}")


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of 16,000 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def first_loop(tokens: Sequence[int], kinds: TokenKinds) -> int | None:
    """Number of tokens after which the loop is noticed."""
    detector = LoopDetector(kinds)
    return next((n for n, t in enumerate(tokens, start=1) if detector.add(t) is not None), None)


# ---- policies -----------------------------------------------------------------------------------


def study_policies(options: argparse.Namespace) -> None:
    """Answer provoking prompts under each policy, and print a table."""
    run = options.run
    cfg = OmegaConf.load(config.config_path("nano/speech_generate"))
    cfg.llm_dir = str(run / "llm")
    tokenizer = config.instantiate(cfg.tokenizer)
    chat, templates = chat_format(tokenizer), PromptTemplates.from_yaml(cfg.templates)
    recordings, texts = read_recordings(run / "data" / "test.jsonl", options.samples)
    table = []
    for name, checkpoint, waveforms, references in conditions(options, recordings, texts):
        model = load_model(cfg, checkpoint)
        prompts = make_prompts(model, chat, templates, waveforms, cfg.frame_average)
        answer(model, chat, prompts[:32], LOOP_POLICIES[0], options)  # warms up
        answers = {
            policy: answer(model, chat, prompts, policy, options) for policy in LOOP_POLICIES
        }
        table.append(compare(name, answers, references))
        print(json.dumps(table[-1], ensure_ascii=False), flush=True)
    print(format_rows(table))
    if options.out:
        write_json(options.out, table)


def conditions(
    options: argparse.Namespace, recordings: list[Tensor], texts: list[str]
) -> Iterator[tuple[str, Path, list[Tensor], list[str] | None]]:
    """What provokes loops: name, checkpoint, audio, transcripts where they are known."""
    good = options.run / options.checkpoint
    yield "healthy: test speech", good, recordings, texts
    for weak in options.weak:
        name = f"under-trained: {Path(weak).parent.name}/{Path(weak).name}"
        yield name, Path(weak), recordings, texts
    if options.human:
        yield "out of domain: real speakers", good, *read_recordings(options.human, options.samples)
    generator = torch.Generator().manual_seed(0)
    lengths = [RATE * (2 + i % 9) for i in range(options.samples)]
    faint = [1e-3 * torch.randn(n, generator=generator) for n in lengths]
    yield "silence: all zero, or faint noise", good, [torch.zeros(RATE * 3), *faint[1:]], None
    noises = [0.1 * torch.randn(n, generator=generator) for n in lengths]
    yield "noise", good, noises, None
    groups = [range(i, i + 8) for i in range(0, len(recordings) - 7, 4)]
    joined = [torch.cat([recordings[i] for i in group]) for group in groups]
    yield (
        "long: 8 recordings as one",
        good,
        joined,
        [" ".join(texts[i] for i in group) for group in groups],
    )


def read_recordings(manifest: Path, count: int) -> tuple[list[Tensor], list[str]]:
    """Recordings spread over a manifest, each once, and their transcripts."""
    samples = {}
    for row in load_rows(manifest):
        samples.setdefault(row[0], row[1])
    items = [list(samples.items())[i] for i in spread(count, len(samples))]
    return [load_audio(path, RATE) for path, _ in items], [text for _, text in items]


def load_rows(manifest: Path) -> list[tuple[str, str]]:
    """Audio file and transcript of each row of a manifest, ours or a plain one."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    if any("task" in row for row in rows):
        samples = load_manifest(manifest, check_audio=False)
        return [
            (str(manifest.parent / s.audio[0].path), s.transcript)
            for s in samples
            if s.is_speech and s.transcript
        ]
    return [(str(manifest.parent / row["audio"]), row["text"].lower()) for row in rows]


def load_model(cfg: Any, checkpoint: Path) -> SpeechLLM:
    """The nano model with the projector, and the LoRA if there is one, of a checkpoint."""
    folder = training.find_checkpoint(checkpoint)
    has_lora = (folder / "adapter_model.safetensors").is_file()
    return training.build_speech_llm(
        cfg.model,
        llm_dir=cfg.llm_dir,
        projector=config.instantiate(cfg.projector),
        projector_checkpoint=folder,
        adapter_checkpoint=folder if has_lora else None,
        process=training.start_process("cpu"),
    )


@torch.no_grad()
def make_prompts(
    model: SpeechLLM,
    chat: ChatFormat,
    templates: PromptTemplates,
    waveforms: Sequence[Tensor],
    frame_average: int,
) -> list[Prompt]:
    """Each piece of audio with each instruction."""
    frames = [average_frames(f, frame_average) for f in filter_bank_encoder()(list(waveforms))]
    return [
        audio_prompt([one], instruction, model=model, chat=chat, templates=templates)
        for instruction in INSTRUCTIONS
        for one in frames
    ]


def answer(
    model: SpeechLLM,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    policy: str,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Texts of all answers, and how long they took."""
    settings = Decoding(options.max_new_tokens, num_beams=options.beams, loops=policy)
    kinds = TokenKinds.from_texts(chat.token_texts)
    texts, began = [], time.perf_counter()
    for start in tqdm(range(0, len(prompts), 32), desc=policy):
        answers = generate(
            model,
            prompts[start : start + 32],
            settings,
            stop_ids=chat.stop_ids,
            placeholder_id=chat.placeholder_id,
            forbidden_ids=sorted(chat.special_ids),
            kinds=kinds,
        )
        texts += [chat.decode(a.tokens) for a in answers]
    return {"texts": texts, "seconds": time.perf_counter() - began}


def compare(
    name: str, answers: dict[str, dict[str, Any]], references: list[str] | None
) -> dict[str, Any]:
    """Loops without a policy; of those, how many are cured by each; what else has changed."""
    free = answers["none"]["texts"]
    looping = [i for i, text in enumerate(free) if has_loop(text)]
    row: dict[str, Any] = {
        "condition": name,
        "answers": len(free),
        "loops": len(looping),
        "different": len({free[i] for i in looping}),
    }
    for policy in ("cut", "forbid"):
        texts = answers[policy]["texts"]
        healthy = set(range(len(free))) - set(looping)
        row[policy] = {
            "cured": sum(not has_loop(texts[i]) for i in looping),
            "changed": sum(texts[i] != free[i] for i in healthy),
            "time": round(answers[policy]["seconds"] / answers["none"]["seconds"], 2),
        }
    if references is not None:  # the first instruction asks for a transcript
        for policy, found in answers.items():
            heard = found["texts"][: len(references)]
            row.setdefault("wer", {})[policy] = round(wer(references, heard, "basic")["wer"], 3)
    return row


def has_loop(text: str) -> bool:
    """Whether a text has a loop of words or of signs, at its end or before it."""
    words = CycleDetector()
    if any(words.add(hash(word)) for word in split_words(normalizer("basic")(text))):
        return True
    signs = CycleDetector(min_words=24)
    # Letters are all different here, so that they end a loop of signs.
    return any(signs.add(-n if c.isalnum() else ord(c)) for n, c in enumerate(text, start=1))


def format_rows(table: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = [
        "| condition | answers | loops (texts) | cured: cut | forbid | changed: cut | forbid | "
        "time: cut | forbid | WER none / cut / forbid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        cut, forbid = row["cut"], row["forbid"]
        rates = " / ".join(f"{value:.2f}" for value in row.get("wer", {}).values()) or "-"
        lines.append(
            f"| {row['condition']} | {row['answers']} | "
            f"{row['loops']} ({row['different']}) | {cut['cured']} | "
            f"{forbid['cured']} | {cut['changed']} | {forbid['changed']} | {cut['time']:.2f} | "
            f"{forbid['time']:.2f} | {rates} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
