"""Translation quality by sacrebleu."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from torchtune_speech.evaluation._normalizers import base_language
from torchtune_speech.evaluation._wer import check_pairs

_TOKENIZERS = {"zh": "zh", "yue": "zh", "ja": "char", "th": "char"}


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
    check_pairs(references, predictions)
    bleu, chrf = BLEU(tokenize=bleu_tokenizer(lang)), CHRF()
    references, predictions = [list(references)], list(predictions)
    return {
        "bleu": round(bleu.corpus_score(predictions, references).score, 4),
        "chrf": round(chrf.corpus_score(predictions, references).score, 4),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
