"""Translation quality by sacrebleu: BLEU, chrF2 and TER."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric

from torchtune_speech.evaluation._bootstrap import Floats, Statistic
from torchtune_speech.evaluation._normalizers import base_language
from torchtune_speech.evaluation._wer import check_pairs

_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}
# Where TER has to cut Chinese characters apart.
_IDEOGRAPHIC = ("zh", "ja")


def bleu_tokenizer(lang: str) -> str:
    """The tokenizer that sacrebleu needs for a target language.

    Args:
        lang: language tag of the references.

    Returns:
        "zh" for Chinese, "char" for Japanese and Thai (its word tokenizers need a dictionary),
        "13a" for all others.
    """
    return _TOKENIZERS.get(base_language(lang), "13a")


def bleu_chrf(references: Sequence[str], predictions: Sequence[str], lang: str) -> dict[str, Any]:
    """Corpus BLEU and chrF2 of translations into one language, on the texts as they are.

    Args:
        references: translations by people, one a sentence.
        predictions: translations of the model, in the same order.
        lang: target language; decides BLEU's tokenizer, see
            :func:`~torchtune_speech.evaluation.bleu_tokenizer`.

    Returns:
        ``bleu`` and ``chrf`` from 0 to 100, ``bleu_signature`` and ``chrf_signature``.

    Raises:
        InputError: if the numbers of texts differ or there are none.

    Source: https://aclanthology.org/W18-6319 (BLEU), https://aclanthology.org/W15-3049 (chrF)

    Example:
        >>> bleu_chrf(["无法回答。"], ["无法回答。"], "zh")["bleu_signature"]
        'nrefs:1|case:mixed|eff:no|tok:zh|smooth:exp|version:2.6.0'
    """
    statistics, signatures = translation_statistics(references, predictions, lang, ter=False)
    scores = {name: round(statistic.score(), 4) for name, statistic in statistics.items()}
    return scores | {f"{name}_signature": text for name, text in signatures.items()}


def translation_statistics(
    references: Sequence[str], predictions: Sequence[str], lang: str, ter: bool = True
) -> tuple[dict[str, Statistic], dict[str, str]]:
    """What each sentence adds to BLEU, chrF2 and TER, 0 to 100; arguments as for `bleu_chrf`.

    TER is in percent of the reference words, may be above 100, and is better when lower. It ignores
    case and takes the words between spaces, with their punctuation, as sacrebleu does unless told
    otherwise. For Chinese and Japanese, whose words have no spaces between them, it normalises the
    text and cuts characters apart (``normalized`` and ``asian_support``, of which the second has no
    effect without the first); what it looks for there, blocks of characters that moved, can take a
    tenth of a second a sentence.

    Args:
        references: translations by people, one a sentence.
        predictions: translations of the model, in the same order.
        lang: target language.
        ter: False leaves TER out.

    Returns:
        The statistics of ``bleu``, ``chrf`` and ``ter``, and the signature of each.

    Raises:
        InputError: if the numbers of texts differ or there are none.

    Source: https://aclanthology.org/2006.amta-papers.25/ (TER)
    """
    check_pairs(references, predictions)
    metrics: dict[str, Metric] = {"bleu": BLEU(tokenize=bleu_tokenizer(lang)), "chrf": CHRF()}
    if ter:
        asian = base_language(lang) in _IDEOGRAPHIC
        metrics["ter"] = TER(normalized=asian, asian_support=asian)
    statistics = {
        name: _statistic(metric, references, predictions) for name, metric in metrics.items()
    }
    return statistics, {name: str(metric.get_signature()) for name, metric in metrics.items()}


def _statistic(metric: Metric, references: Sequence[str], predictions: Sequence[str]) -> Statistic:
    # sacrebleu's own significance tests work through these two methods; it has no public way to the
    # counts behind a score. Nothing else here touches what it keeps for itself.
    counts = metric._extract_corpus_statistics(list(predictions), [list(references)])

    def value(sums: Floats) -> Floats:
        # Lists: its arithmetic is plain Python, and slower on arrays.
        return np.array([metric._compute_score_from_stats(row).score for row in sums.tolist()])

    return Statistic(np.array(counts, dtype=np.float64), value)
