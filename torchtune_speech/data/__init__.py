"""Manifests, prompts, interleaving, batch planning, collation: tokens and lengths, no weights."""

from torchtune_speech.data._folder import FolderReport, manifest_from_folder
from torchtune_speech.data._manifest import (
    AudioCut,
    BadRow,
    Sample,
    data_fingerprint,
    load_manifest,
    relative_audio_path,
    resolve_audio,
    sample_to_row,
    samples_from_rows,
    text_twin,
    write_manifest,
)
from torchtune_speech.data._prompts import PromptTemplates

__all__ = [
    "AudioCut",
    "BadRow",
    "FolderReport",
    "PromptTemplates",
    "Sample",
    "data_fingerprint",
    "load_manifest",
    "manifest_from_folder",
    "relative_audio_path",
    "resolve_audio",
    "sample_to_row",
    "samples_from_rows",
    "text_twin",
    "write_manifest",
]
