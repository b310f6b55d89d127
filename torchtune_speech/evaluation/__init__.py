"""Scores of predictions, how far to trust them, comparisons, the official task, the report page."""

from torchtune_speech.evaluation._agreement import agreement
from torchtune_speech.evaluation._agreement_table import agreement_table, format_agreement
from torchtune_speech.evaluation._compare import COMPARABLE_PARTS, compare, format_comparison
from torchtune_speech.evaluation._degenerate import Loop, is_empty, repetition_loop
from torchtune_speech.evaluation._given import (
    GIVEN_SCORES,
    add_bertscore,
    add_comet,
    add_judge,
    check_source_texts,
)
from torchtune_speech.evaluation._html import write_html
from torchtune_speech.evaluation._judge import Ask, Verdict, judge, parse_verdict
from torchtune_speech.evaluation._judge_asks import ask_endpoint, ask_local
from torchtune_speech.evaluation._language import LANGUAGES, in_language, output_language
from torchtune_speech.evaluation._marks import marks
from torchtune_speech.evaluation._mcif import (
    McifReference,
    mcif_rows,
    mcif_scores,
    read_mcif_reference,
)
from torchtune_speech.evaluation._mms import mms
from torchtune_speech.evaluation._neural import NeuralScores, bertscore, comet
from torchtune_speech.evaluation._normalizers import (
    NORMALIZERS,
    Normalizer,
    base_language,
    normalizer,
    split_words,
)
from torchtune_speech.evaluation._qa import (
    UNANSWERABLE,
    answer_f1,
    contains_answer,
    exact_match,
    qa,
)
from torchtune_speech.evaluation._report import score
from torchtune_speech.evaluation._resegment import resegment
from torchtune_speech.evaluation._samples import sample_scores
from torchtune_speech.evaluation._table import format_table
from torchtune_speech.evaluation._translation import bleu_chrf, bleu_tokenizer
from torchtune_speech.evaluation._wer import wer

__all__ = [
    "COMPARABLE_PARTS",
    "GIVEN_SCORES",
    "LANGUAGES",
    "NORMALIZERS",
    "UNANSWERABLE",
    "Ask",
    "Loop",
    "McifReference",
    "NeuralScores",
    "Normalizer",
    "Verdict",
    "add_bertscore",
    "add_comet",
    "add_judge",
    "agreement",
    "agreement_table",
    "answer_f1",
    "ask_endpoint",
    "ask_local",
    "base_language",
    "bertscore",
    "bleu_chrf",
    "bleu_tokenizer",
    "check_source_texts",
    "comet",
    "compare",
    "contains_answer",
    "exact_match",
    "format_agreement",
    "format_comparison",
    "format_table",
    "in_language",
    "is_empty",
    "judge",
    "marks",
    "mcif_rows",
    "mcif_scores",
    "mms",
    "normalizer",
    "output_language",
    "parse_verdict",
    "qa",
    "read_mcif_reference",
    "repetition_loop",
    "resegment",
    "sample_scores",
    "score",
    "split_words",
    "wer",
    "write_html",
]
