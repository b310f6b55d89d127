"""ASR-WER by the rule of the official scorer, with the libraries that it pins.

A script that the Python of `make official-env` runs as a file; it imports nothing of the project::

    official_wer.py OUTPUT.xml REFERENCE.xml short en

prints one JSON object with ``wer``, ``items`` and ``versions``. Written from the rule: each answer
and each reference is normalised, the answers of an item are joined by a blank, and jiwer gives the
error rate of all items.
Source of the rule: https://github.com/hlt-mt/mcif (src/mcif/evaluation.py)
"""

import io
import json
import sys
import urllib.request
import urllib.response
import xml.etree.ElementTree as ET
from email.message import Message
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

LIBRARIES = ("jiwer", "whisper_normalizer", "openai-whisper")


class SpellingsFromDisk(urllib.request.HTTPSHandler):
    """Hands the normaliser the list of spellings that it asks the network for."""

    def https_open(self, request):
        assert request.full_url.endswith("whisper/normalizers/english.json"), request.full_url
        path = Path(find_spec("whisper").origin).parent / "normalizers" / "english.json"
        # The release has a stray tag behind one word, which OpenAI's repository no longer has.
        content = path.read_bytes().replace(b"</span>", b"")
        response = urllib.response.addinfourl(io.BytesIO(content), Message(), request.full_url, 200)
        response.msg = "OK"
        return response


def read_samples(path, track, lang):
    """The samples of one track and language."""
    for task in ET.parse(path).getroot().iter("task"):
        if (task.get("track"), task.get("text_lang")) == (track, lang):
            return list(task.iter("sample"))
    sys.exit(f"{path}: no task {track}/{lang}")


def main(output, reference, track, lang):
    """Score and print."""
    urllib.request.install_opener(urllib.request.build_opener(SpellingsFromDisk))
    clean = EnglishTextNormalizer() if lang == "en" else BasicTextNormalizer()
    answers = {
        sample.get("id"): clean((sample.text or "").strip())
        for sample in read_samples(output, track, lang)
    }
    items = [s for s in read_samples(reference, track, lang) if s.get("task") == "ASR"]
    references = [clean(item.findtext("reference")) for item in items]
    predictions = [" ".join(answers[id_] for id_ in item.get("id").split(",")) for item in items]
    rate = jiwer.wer(references, predictions)
    versions = {library: version(library) for library in LIBRARIES}
    print(json.dumps({"wer": rate, "items": len(items), "versions": versions}))


if __name__ == "__main__":
    main(*sys.argv[1:])
