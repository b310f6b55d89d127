"""Builders that turn corpora into manifests, one module a corpus."""

from torchtune_speech.datasets._an4 import an4_manifests
from torchtune_speech.datasets._speech import (
    at_speeds,
    check_speeds,
    speech_dataset,
    transcript_dataset,
)

__all__ = ["an4_manifests", "at_speeds", "check_speeds", "speech_dataset", "transcript_dataset"]
