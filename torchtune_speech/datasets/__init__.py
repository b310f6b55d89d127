"""Builders that turn corpora into manifests, one module a corpus."""

from torchtune_speech.datasets._an4 import an4_manifests

__all__ = ["an4_manifests"]
