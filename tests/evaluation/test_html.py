import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.evaluation import score, wer, write_html
from torchtune_speech.evaluation._alignment import align_words
from torchtune_speech.evaluation._html import worst_order
from torchtune_speech.evaluation._page_scores import cards, charts, curves, table

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = "</script><script>alert(1)</script><!-- {{clips}} & \" ' <img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The elements of a page, checked for balance, and what its JSON scripts hold."""

    def __init__(self, path):
        super().__init__()
        self.text = Path(path).read_text(encoding="utf-8")
        self.open, self.elements, self.scripts = [], [], []
        self.feed(self.text)
        self.close()
        assert self.open == [], "elements left open"
        self.data, self.clips = (json.loads(script, parse_constant=pytest.fail) for script in
                                 self.scripts[:2])  # fmt: skip

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def row(task="asr", target="a b", prediction="a b", **more):
    return {"id": "1", "task": task, "target": target, "prediction": prediction, **more}


def tone(path, seconds, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.sin(np.arange(int(seconds * rate)) * 2 * math.pi * 440 / rate) / 2
    soundfile.write(path, samples, rate)


def decoded(clip):
    kind, data = clip.split(";base64,")
    assert kind == "data:audio/ogg"
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    rows = [row(), row("st", "das Haus", "ein Haus", target_lang="de", scores={"chrf": 50.0})]
    write_html(tmp_path / "report.html", score(rows), rows)
    page = Page(tmp_path / "report.html")
    assert len(page.scripts) == 3
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {a.get("href", "")[1:] for tag, a in page.elements if tag == "a"}
    named |= {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a}
    assert named <= set(ids)
    for _, attrs in page.elements:
        assert not {"src", "style", "onclick"} & set(attrs)
        assert attrs.get("href", "#").startswith("#")
    assert set(re.findall(r"https?://[^\"' ]+", page.text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page.text and "@import" not in page.text
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page.text
    )


def test_hostile_texts_stay_texts(tmp_path):
    rows = [
        row(prediction=HOSTILE, id=HOSTILE, speaker=HOSTILE, source_lang=HOSTILE),
        row(prediction="half a character: \ud83d", target="\u2028 {{page}} {{title}}"),
    ]
    sources = ["runs/<img src=x>.jsonl", HOSTILE]
    report = {"predictions": sources, "notes": [HOSTILE], "normalizer": "none"}
    write_html(tmp_path / "report.html", report, rows, training={"train": [{"step": HOSTILE}]})
    page = Page(tmp_path / "report.html")
    assert len(page.scripts) == 3
    assert "img" not in [tag for tag, _ in page.elements]
    assert not any("<" in script for script in page.scripts[:2])
    first, second = page.data["samples"]
    assert first["prediction"] == first["id"] == first["speaker"] == first["lang"] == HOSTILE
    assert page.data["notes"] == [HOSTILE]
    assert '<h1 id="title">Report · &lt;img src=x&gt; · ' in page.text
    assert second["prediction"] == "half a character: \ud83d"
    assert second["target"] == "\u2028 {{page}} {{title}}"


def test_numbers_that_json_lacks_become_null(tmp_path):
    rows = [row(scores={"wer": math.nan}, duration_s=math.inf)]
    report = {"asr": {"wer": math.nan, "cer": 0.5, "n": 1}}
    training = {"train": [{"step": 1, "loss": math.nan}, {"step": 2, "loss": 2.0}]}
    write_html(tmp_path / "report.html", report, rows, training=training)
    page = Page(tmp_path / "report.html")
    assert page.data["samples"][0]["scores"] == {"wer": None}
    assert "error" not in page.data["samples"][0]
    assert page.data["cards"][0]["scores"] == [{"key": "cer", "value": 0.5}]
    assert page.data["curves"][0]["series"][0]["points"] == [[2, 2.0]]


def test_absent_parts_leave_no_trace(tmp_path):
    write_html(tmp_path / "deep" / "report.html", {}, [row(prediction="a c")])
    data = Page(tmp_path / "deep" / "report.html").data
    assert data["samples"] == [
        {
            "id": "1",
            "task": "asr",
            "target": "a b",
            "prediction": "a c",
            "source_lang": "en",
            "lang": "en",
            "words": ["=a", "~b c"],
        }
    ]
    empty = ("cards", "charts", "curves", "sources", "signatures", "notes")
    assert all(data[part] == [] for part in empty)
    assert data["table"] == {"metrics": [], "rows": []}
    assert data["worst"] == {} and data["title"] == "Report"
    write_html(tmp_path / "none.html", {}, [])
    assert Page(tmp_path / "none.html").data["samples"] == []


def test_samples_say_what_a_reader_needs(tmp_path):
    rows = [
        row("asr", "ja", "ja", source_lang="de", target_lang="fr", duration_s=1.5),
        row("sqa", "no", "", source_lang="en", target_lang="zh", question="why?", flags=["empty"],
            scores={"f1": 0.25, "match": 0}, finish_reason="length"),
    ]  # fmt: skip
    write_html(tmp_path / "report.html", {"normalizer": "basic"}, rows)
    spoken, asked = Page(tmp_path / "report.html").data["samples"]
    assert (spoken["lang"], spoken["seconds"]) == ("de", 1.5)
    assert "words" not in spoken and "flags" not in spoken
    assert (asked["lang"], asked["question"], asked["error"]) == ("zh", "why?", 0.75)
    assert asked["flags"] == ["empty", "length"] and "prediction" not in asked


def test_alignment_by_hand():
    reference = "The big cat sat on a mat."
    prediction = "the cat sits on uh a mat now ok"
    assert align_words([reference], [prediction], "basic") == [
        ["=the", "-big", "=cat", "~sat sits", "=on", "+uh", "=a mat", "+now ok"]
    ]
    # "whisper" drops "uh" and writes numbers in digits
    assert align_words(["twenty cats"], ["uh 20 dogs"], "whisper") == [["=20", "~cats dogs"]]


def test_alignment_of_nothing_and_of_chinese():
    pairs = [("", "a b"), ("a b", ""), ("", ""), ("我在家里", "我家里好")]
    references, predictions = zip(*pairs, strict=True)
    langs = ["en", "en", "en", "zh"]
    assert align_words(references, predictions, "basic", langs) == [
        ["+a b"],
        ["-a b"],
        [],
        ["=我", "-在", "=家里", "+好"],
    ]


@given(st.lists(st.tuples(*[st.text("ab ", max_size=12)] * 2), min_size=1, max_size=4))
def test_alignment_marks_as_many_words_as_the_error_rate_counts(pairs):
    references, predictions = zip(*pairs, strict=True)
    marked = {"~": 0, "-": 0, "+": 0}
    for pieces in align_words(references, predictions, "none"):
        for piece in pieces:
            if piece[0] in "-+":
                marked[piece[0]] += len(piece[1:].split())
            elif piece[0] == "~":
                assert len(piece[1:].split()) == 2
                marked["~"] += 1
    counts = wer(references, predictions, normalizer="none")
    assert marked == {
        "~": counts["substitutions"],
        "-": counts["deletions"],
        "+": counts["insertions"],
    }


def test_worst_first():
    rows = [
        row(scores={"wer": 0.0}),
        row(scores={"wer": 1.0}, target="a"),
        row("st", scores={"chrf": 80.0}),
        row(scores={"wer": 1.0}, target="a longer one"),
        row("st", scores={"chrf": 12.0}),
        row(scores={"wer": 2.5}),
        row("sqa", scores={"f1": 0.5, "match": 0}),
        row("sqa", scores={"f1": 1.0, "match": 0}),
        row("sqa", scores={"f1": 0.0, "match": 0}),
        row("st"),
        row("st", scores={"chrf": 100.0}),
    ]
    assert worst_order(rows) == {"asr": [5, 3, 1], "st": [4, 2], "sqa": [8, 6]}


def test_audio_of_the_worst_goes_in_until_the_budget_is_spent(tmp_path):
    for number, seconds in enumerate((1.0, 2.0, 1.0, 1.0)):
        tone(tmp_path / "data" / f"{number} #.flac", seconds)
    errors = (0.1, 0.9, 0.5, 0.0)
    rows = [row(audio=f"{i} #.flac", scores={"wer": error}) for i, error in enumerate(errors)]

    def place(max_audio_mb):
        path = tmp_path / "out" / "report.html"
        write_html(path, {}, rows, audio_folder=tmp_path / "data", max_audio_mb=max_audio_mb)
        page = Page(path)
        return [sample["audio"] for sample in page.data["samples"]], page.clips

    links = [f"../data/{number}%20%23.flac" for number in range(4)]
    assert place(0) == (links, [])
    places, clips = place(20)
    assert places == [2, 0, 1, 3], "the worst first"
    assert [len(decoded(clip)[0]) / decoded(clip)[1] for clip in clips] == pytest.approx(
        [2.0, 1.0, 1.0, 1.0], abs=0.05
    )
    samples, rate = decoded(clips[0])
    spectrum = np.abs(np.fft.rfft(samples[:rate]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=1)
    # Room for the first and half of the second.
    places, some = place((len(clips[0]) + len(clips[1]) / 2) / 1e6)
    assert places == [links[0], 0, links[2], links[3]]
    assert list(map(len, some)) == [len(clips[0])]


def test_tasks_take_turns_and_share_clips(tmp_path):
    for number in range(3):
        tone(tmp_path / f"{number}.wav", 0.5)
    rows = [
        row(audio="0.wav", scores={"wer": 0.9}),
        row(audio="1.wav", scores={"wer": 0.8}),
        row("st", audio="2.wav", scores={"chrf": 90.0}),
        row("st", audio="0.wav", scores={"chrf": 95.0}, target_lang="de"),
        row("mt"),
    ]
    write_html(tmp_path / "report.html", {}, rows, audio_folder=tmp_path)
    page = Page(tmp_path / "report.html")
    assert [sample.get("audio") for sample in page.data["samples"]] == [0, 2, 1, 0, None]
    assert len(page.clips) == 3


def test_audio_that_is_not_there_is_said(tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    rows = [row(audio="missing.wav"), row(audio="broken.wav"), row(audio="javascript:alert(1)")]
    write_html(tmp_path / "report.html", {"notes": ["first"]}, rows, audio_folder=tmp_path)
    page = Page(tmp_path / "report.html")
    assert page.data["notes"] == ["first", "audio of 3 samples is missing or cannot be read"]
    assert page.clips == [] and not any("audio" in sample for sample in page.data["samples"])


def test_a_cut_is_embedded_or_linked_as_a_cut(tmp_path):
    tone(tmp_path / "talk.wav", 3.0)
    rows = [row(audio="talk.wav", offset=1.0, duration=0.5), row(audio="talk.wav", offset=2.25)]
    write_html(tmp_path / "a.html", {}, rows, audio_folder=tmp_path)
    lengths = [len(decoded(clip)[0]) / decoded(clip)[1] for clip in Page(tmp_path / "a.html").clips]
    assert lengths == pytest.approx([0.5, 0.75], abs=0.05)
    write_html(tmp_path / "b.html", {}, rows, audio_folder=tmp_path, max_audio_mb=0)
    places = [sample["audio"] for sample in Page(tmp_path / "b.html").data["samples"]]
    assert places == ["talk.wav#t=1,1.5", "talk.wav#t=2.25"]


GROUP = {"bleu": 30.0, "chrf": 50.0, "n": 4, "empty": 1, "loops": 0, "length_finishes": 0}
REPORT = {
    "asr": {
        "wer": 0.1,
        "cer": 0.05,
        "n": 9,
        "loops": 2,
        "intervals": {"wer": [0.08, 0.13]},
        "normalizers": {"none": {"wer": 0.4}},
        "marks": {
            "punctuation": {"f1": 0.8, "intervals": {"f1": [0.7, 0.9]}},
            "word_boundaries": {"f1": 1.0, "intervals": {}},
            "capitals": {"f1": None, "intervals": {}},
        },
    },
    "st": {"de": GROUP | {"intervals": {"bleu": [25.0, 36.0]}}, "zh": GROUP},
    "sqa": {"accuracy": 0.5, "f1": 0.6, "n": 5, "en": {"f1": 0.6, "n": 5}},
    "n": {"asr": 9, "st": 8, "sqa": 5},
    "durations": {
        "0-5": {"asr": {"wer": 0.2, "n": 3}, "st": {"de": GROUP}},
        "5-10": {"asr": {"wer": 0.05, "n": 6, "intervals": {"wer": [0.01, 0.1]}}},
    },
    "domains": {"talks": {"asr": {"wer": 0.1, "n": 9}}},
    "signatures": {"wer": "level:corpus", "bleu": {"de": "tok:13a"}},
}


def test_cards():
    asr, de, zh, sqa = cards(REPORT)
    assert (asr["title"], asr["lang"], asr["n"]) == ("Speech recognition", "", 9)
    assert asr["scores"] == [
        {"key": "wer", "value": 0.1, "lo": 0.08, "hi": 0.13},
        {"key": "cer", "value": 0.05},
    ]
    assert asr["others"] == [
        {"label": "normalizer none", "key": "wer", "value": 0.4},
        {"label": "F1 of punctuation", "key": "f1", "value": 0.8, "lo": 0.7, "hi": 0.9},
        {"label": "F1 of word boundaries", "key": "f1", "value": 1.0},
    ]
    assert asr["counts"] == [["loops", 2]]
    assert (de["lang"], de["scores"][0]["lo"], de["counts"]) == ("de", 25.0, [["empty", 1]])
    assert (zh["lang"], "lo" in zh["scores"][0]) == ("zh", False)
    assert [s["key"] for s in sqa["scores"]] == ["f1", "accuracy"]


def test_charts():
    translation, durations = charts(REPORT)
    assert translation["title"] == "Speech translation: BLEU by language"
    assert [bar["label"] for bar in translation["sets"][0]["bars"]] == ["de", "zh"]
    assert durations["title"] == "Speech recognition: WER by duration"
    assert durations["sets"][0]["bars"] == [
        {"label": "0-5", "n": 3, "key": "wer", "value": 0.2},
        {"label": "5-10", "n": 6, "key": "wer", "value": 0.05, "lo": 0.01, "hi": 0.1},
    ], "and none of the only translation bucket, nor of the only domain"


def test_table_of_all_scores():
    found = table(REPORT)
    assert found["metrics"] == ["wer", "bleu", "f1", "accuracy", "chrf", "cer"]
    lines = [(line["part"], line["task"], line["lang"]) for line in found["rows"]]
    assert lines == [
        ("all", "asr", ""),
        ("all", "st", "de"),
        ("all", "st", "zh"),
        ("all", "sqa", ""),
        ("duration 0-5", "asr", ""),
        ("duration 0-5", "st", "de"),
        ("duration 5-10", "asr", ""),
        ("domain talks", "asr", ""),
    ]


def test_what_score_returns_fits(tmp_path):
    rows = [
        row(domain="news"),
        row("sqa", target_lang="de", domain="talks"),
        row("sqa", target_lang="zh", domain="news"),
        row("st", target_lang="it"),
    ]
    write_html(tmp_path / "report.html", score(rows), rows)
    data = Page(tmp_path / "report.html").data
    assert [(c["title"], c["lang"]) for c in data["cards"]] == [
        ("Speech recognition", ""),
        ("Spoken question answering", ""),
        ("Speech translation", "it"),
    ]
    titles = [chart["title"] for chart in data["charts"]]
    assert "Spoken question answering: F1 by language" in titles
    assert "Spoken question answering: F1 by domain" in titles
    assert {"wer", "qa", "bleu it", "chrf"} < {name for name, _ in data["signatures"]}


def test_curves():
    train = [{"step": step, "loss": float(step), "lr": 1.0} for step in range(1, 1001)]
    held_out = [{"step": 500, "asr_wer": 0.5, "loss": 2.0}, {"step": 1000, "asr_wer": 0.25}]
    loss, rate = curves({"train": train, "eval": held_out})
    raw, mean, evaluation = loss["series"]
    assert len(raw["points"]) == 334 and raw["points"][-1] == (1000, 1000.0)
    assert mean["points"][-1] == (1000, 975.5), "the mean of the last 50"
    assert evaluation["points"] == [(500, 2.0)]
    assert (rate["title"], rate["metric"]) == ("asr_wer on held-out data", "wer")
    assert rate["series"][0]["points"] == [(500, 0.5), (1000, 0.25)]
    assert curves(None) == []
