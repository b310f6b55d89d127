"""Manifests, prompts, interleaving, batch planning, collation: tokens and lengths, no weights."""

from torchtune_speech.data._chat import ChatFormat, chat_format, text_token_rows
from torchtune_speech.data._choices import choice_letter, find_choice
from torchtune_speech.data._collate import Batch, StepBatches, collate_rows
from torchtune_speech.data._ctc_labels import CharacterLabels, CTCLabels, TokenLabels, ctc_labels
from torchtune_speech.data._dataset import SpeechDataset
from torchtune_speech.data._folder import FolderReport, manifest_from_folder
from torchtune_speech.data._interleave import (
    IGNORE_INDEX,
    InterleaveSpeech,
    next_token_labels,
)
from torchtune_speech.data._kept import KeptPositions, keep_index, write_kept
from torchtune_speech.data._llama3_chat import Llama3ChatFormat
from torchtune_speech.data._manifest import (
    BadRow,
    load_manifest,
    relative_audio_path,
    resolve_audio,
    samples_from_rows,
    write_manifest,
)
from torchtune_speech.data._mcif import (
    McifOutput,
    read_mcif_output,
    read_mcif_source,
    read_mcif_task,
    write_mcif_output,
)
from torchtune_speech.data._mcif_task import mcif_question, mcif_task
from torchtune_speech.data._mixture import plan_sources
from torchtune_speech.data._pack import pack_best_fit
from torchtune_speech.data._plan import Plan, Source, Step, fill
from torchtune_speech.data._prompts import PromptTemplates
from torchtune_speech.data._qwen3_chat import Qwen3ChatFormat
from torchtune_speech.data._sample import (
    TEXT_TWIN_TASKS,
    AudioCut,
    Sample,
    data_fingerprint,
    sample_to_row,
    text_twin,
)
from torchtune_speech.data._segments import JOINED_TASKS, segment_manifest, segment_samples
from torchtune_speech.data._spread import spread
from torchtune_speech.data._targets import TranscriptTargets, pad_targets, resolve_token
from torchtune_speech.data._transcripts import (
    TranscriptBatch,
    TranscriptBatches,
    TranscriptDataset,
    collate_transcripts,
)
from torchtune_speech.data._unanswerable import unanswerable_samples, word_overlap

__all__ = [
    "AudioCut",
    "BadRow",
    "Batch",
    "CTCLabels",
    "CharacterLabels",
    "ChatFormat",
    "FolderReport",
    "IGNORE_INDEX",
    "InterleaveSpeech",
    "JOINED_TASKS",
    "KeptPositions",
    "Llama3ChatFormat",
    "McifOutput",
    "Plan",
    "PromptTemplates",
    "Qwen3ChatFormat",
    "Sample",
    "Source",
    "SpeechDataset",
    "Step",
    "StepBatches",
    "TEXT_TWIN_TASKS",
    "TokenLabels",
    "TranscriptBatch",
    "TranscriptBatches",
    "TranscriptDataset",
    "TranscriptTargets",
    "chat_format",
    "choice_letter",
    "collate_rows",
    "collate_transcripts",
    "ctc_labels",
    "data_fingerprint",
    "fill",
    "find_choice",
    "keep_index",
    "load_manifest",
    "manifest_from_folder",
    "mcif_question",
    "mcif_task",
    "next_token_labels",
    "pack_best_fit",
    "pad_targets",
    "plan_sources",
    "read_mcif_output",
    "read_mcif_source",
    "read_mcif_task",
    "relative_audio_path",
    "resolve_audio",
    "resolve_token",
    "sample_to_row",
    "samples_from_rows",
    "segment_manifest",
    "segment_samples",
    "spread",
    "text_token_rows",
    "text_twin",
    "unanswerable_samples",
    "word_overlap",
    "write_kept",
    "write_manifest",
    "write_mcif_output",
]
