"""Why does rounding to the nearest token help? Speech vectors of rare and of frequent tokens.

    python studies/rare_words.py      # after `make demo-2026`; some seconds

Prints two tables, by how often a token stands in the transcripts of the training data. The first
tells how well stage 1 of SpeechMapper hits it: the share of its vectors that are nearest to it, and
their cosine with its embedding. The second is of sentences that nearest tokens read without a
mistake, so that hearing plays no part: the share of their translations that are the reference, when
the LLM is given the vectors and when it is given the nearest tokens' embeddings.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from torchtune_speech import config, training
from torchtune_speech.config import one_line_errors
from torchtune_speech.data import ChatFormat, Sample, chat_format, load_manifest
from torchtune_speech.features import FeatureStore
from torchtune_speech.files import read_jsonl
from torchtune_speech.modules import nearest_tokens

BANDS = {"up to 100": 100, "101 to 500": 500, "more": float("inf")}
SYSTEMS = {"vectors": "1+B-kept", "nearest tokens' embeddings": "1+B-tokens"}  # both of stage 1


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/nano"), help="(%(default)s)")
    parser.add_argument(
        "--mapper",
        type=Path,
        default=Path("runs/nano-2026/v2"),
        help="folder with stage_1 and predictions of version 2 (%(default)s)",
    )
    options = parser.parse_args()
    with one_line_errors():
        run_study(options)


def run_study(options: argparse.Namespace) -> None:
    """Look at each vector of the test set, then at the translations."""
    cfg = OmegaConf.create(training.read_stage(options.mapper / "stage_1")["config"])
    chat = chat_format(config.instantiate(cfg.tokenizer))
    data = options.run / "data"
    heard = load_manifest(data / "train.jsonl", tasks=["asr"])
    counts = Counter(token for sample in heard for token in chat.encode(sample.target))
    tests = load_manifest(data / "test.jsonl", tasks=["asr"])
    hits = list(token_hits(cfg, options.mapper / "stage_1", chat, tests))
    print_tokens([hit for sentence in hits for hit in sentence], counts)
    rarest = {
        sample.source_text: min(counts[token] for token, _, _ in sentence)
        for sample, sentence in zip(tests, hits, strict=True)
        if all(right for _, right, _ in sentence)
    }
    predictions = {
        name: read_jsonl(options.mapper / f"predictions-{system}.jsonl")
        for name, system in SYSTEMS.items()
    }
    print_translations(predictions, rarest)


@torch.no_grad()
def token_hits(
    cfg: OmegaConf, stage_1: Path, chat: ChatFormat, samples: Sequence[Sample]
) -> Iterator[list[tuple[int, bool, float]]]:
    """Of each sample's tokens the id, whether its vector is nearest to it, and the cosine.

    Args:
        cfg: of the run of recipe speechmapper, on the features of the samples.
        stage_1: folder of the run.
        chat: the LLM's chat format.
        samples: with one audio each.

    Yields:
        A list for each sample; tokens for which there is no vector have no hit and cosine 0.
    """
    store = FeatureStore(cfg.dataset.features, cfg.dataset.get("frame_average"))
    model = training.build_projector_with_table(
        llm_dir=cfg.llm_dir,
        projector=config.instantiate(cfg.projector),
        projector_checkpoint=training.find_checkpoint(stage_1),
        process=training.start_process("cpu"),
    ).eval()
    for sample in samples:
        key = sample.audio[0].key
        vectors_nd = model.projector(store[key].float(), torch.tensor([store.num_frames(key)]))
        tokens = chat.encode(sample.target)
        nearest = nearest_tokens(vectors_nd, model.table).tolist()
        cosines = F.cosine_similarity(
            vectors_nd[: len(tokens)], model.table[tokens[: len(vectors_nd)]]
        )
        missing = len(tokens) - len(cosines)
        rights = [a == b for a, b in zip(tokens, nearest, strict=False)] + [False] * missing
        yield list(zip(tokens, rights, cosines.tolist() + [0.0] * missing, strict=True))


def band_of(count: int) -> str:
    """Name of the band that a count belongs to."""
    return next(name for name, most in BANDS.items() if count <= most)


def print_tokens(hits: Iterable[tuple[int, bool, float]], counts: Mapping[int, int]) -> None:
    """The first table."""
    banded: dict[str, list[tuple[int, bool, float]]] = {name: [] for name in BANDS}
    for hit in hits:
        banded[band_of(counts[hit[0]])].append(hit)
    print("| in the training data | tokens of the test set | nearest to it | cosine |")
    print("|---|---:|---:|---:|")
    for name, found in banded.items():
        right, cosine = (mean(hit[i] for hit in found) if found else 0.0 for i in (1, 2))
        print(f"| {name} | {len(found):,} | {right:.3f} | {cosine:.3f} |")


def print_translations(
    predictions: Mapping[str, Sequence[Mapping[str, str]]], rarest: Mapping[str, int]
) -> None:
    """The second table."""
    print(f"\n| rarest token | translations | right from {' | from '.join(predictions)} |")
    print(f"|---|---:|{'---:|' * len(predictions)}")
    right: dict[tuple[str, str], list[bool]] = {}
    for system, rows in predictions.items():
        for row in rows:
            if row["task"] == "st" and row["source_text"] in rarest:
                key = band_of(rarest[row["source_text"]]), system
                is_right = row["prediction"].strip() == row["target"]
                right.setdefault(key, []).append(is_right)
    for band in BANDS:
        found = [right.get((band, system), []) for system in predictions]
        cells = (f"{mean(values):.3f}" if values else "-" for values in found)
        print(f"| {band} | {len(found[0])} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
