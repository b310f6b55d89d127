"""Mixture weights: shares of tasks, domains and languages, and what is refused."""

import pytest

from torchtune_speech.data import AudioCut, Sample, plan_sources
from torchtune_speech.errors import InputError

COUNTS = {  # as in the 2025 system: no domain has every language
    ("asr", "europarl", "en"): 3,
    ("asr", "covost", "en"): 9,
    ("st", "europarl", "de"): 4,
    ("st", "europarl", "it"): 2,
    ("st", "covost", "de"): 12,
    ("st", "covost", "zh"): 6,
    ("sqa", "squad", "de"): 1,
    ("sqa", "squad", "it"): 5,
    ("mt", "news", "de"): 2,
}


@pytest.fixture(scope="module")
def samples():
    return [
        Sample(
            id=f"{task}-{domain}-{lang}-{i}",
            task=task,
            target="t",
            domain=domain,
            target_lang=lang,
            audio=() if task == "mt" else (AudioCut("a.wav"),),
        )
        for (task, domain, lang), count in COUNTS.items()
        for i in range(count)
    ]


def weights(samples, mixture):
    sources = plan_sources(samples, mixture)
    assert sum(s.weight for s in sources) == pytest.approx(1)
    for source in sources:  # each holds the samples that its name says
        task, domain, lang = source.name.split("/")
        assert len(source.samples) == COUNTS[task, domain, lang]
        assert all(samples[i].id.startswith(f"{task}-{domain}-{lang}-") for i in source.samples)
        assert source.is_speech == (task != "mt")
    return {s.name: s.weight for s in sources}


def share(weights, part):
    return sum(w for name, w in weights.items() if part in name.split("/"))


def test_without_a_mixture_all_samples_are_one_source(samples):
    (source,) = plan_sources(samples, None)
    assert list(source.samples) == list(range(len(samples)))


def test_what_is_not_weighted_counts_by_its_size(samples):
    found = weights(samples, {"task": {"asr": 1, "st": 3}})
    assert found["asr/covost/en"] == pytest.approx(0.25 * 9 / 12)
    assert found["st/covost/zh"] == pytest.approx(0.75 * 6 / 24)
    assert share(found, "sqa") == 0


def test_language_shares_hold_although_no_domain_has_all_languages(samples):
    languages = {"st": {"de": 0.4, "it": 0.4, "zh": 0.2}, "sqa": "uniform"}
    found = weights(samples, {"task": {"st": 0.5, "sqa": 0.5}, "language": languages})
    st = {name: w for name, w in found.items() if name.startswith("st")}
    assert share(st, "de") == pytest.approx(0.5 * 0.4)
    assert share(st, "it") == pytest.approx(0.5 * 0.4)
    assert share(st, "zh") == pytest.approx(0.5 * 0.2)
    assert found["st/covost/de"] == pytest.approx(0.2 * 12 / 16)
    assert found["sqa/squad/de"] == found["sqa/squad/it"] == pytest.approx(0.25)


def test_weighted_domains_come_before_languages(samples):
    mixture = {
        "task": {"st": 1},
        "domain": {"europarl": 0.75, "covost": 0.25, "squad": 1},
        "language": {"st": {"de": 0.4, "it": 0.4, "zh": 0.2}},
    }
    found = weights(samples, mixture)
    assert share(found, "europarl") == pytest.approx(0.75)
    assert found["st/europarl/it"] == pytest.approx(0.75 / 2)
    assert found["st/covost/zh"] == pytest.approx(0.25 / 3)


def test_a_task_without_any_of_the_weighted_domains_goes_by_size(samples):
    mixture = {"task": {"sqa": 0.5, "st": 0.5}, "domain": {"europarl": 0.5, "covost": 0.5}}
    found = weights(samples, mixture)
    assert found["sqa/squad/it"] == pytest.approx(0.5 * 5 / 6)
    assert share(found, "europarl") == pytest.approx(0.25)


def test_a_weight_of_zero_leaves_out(samples):
    mixture = {"task": {"asr": 1, "st": 0, "qa": 0}, "domain": {"europarl": 1, "covost": 0}}
    assert weights(samples, mixture) == {"asr/europarl/en": 1}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (0.3, "mixture: needs task"),
        ({"language": {}}, "mixture: needs task"),
        ({"task": {"asr": 1}, "domains": {}}, "mixture: needs task"),
        ({"task": {"asr": 1, "ts": 1}}, "mixture.task: no samples for 'ts', only for"),
        ({"task": {"asr": -1}}, "mixture.task.asr: -1; give a number"),
        ({"task": {"asr": "all"}}, "mixture.task.asr: 'all'; give a number"),
        ({"task": "uniforn"}, "mixture.task: 'uniforn'; give each name a weight"),
        ({"task": {"asr": 0, "st": 0}}, "mixture.task: .* leaves nothing of"),
        ({"task": {"asr": 1}, "domain": {"euro": 1}}, "mixture.domain: no samples for 'euro'"),
        ({"task": {"sqa": 1}, "domain": {"squad": 0}}, "mixture.domain: .* leaves nothing of"),
        ({"task": {"st": 1}, "language": {"ts": {"de": 1}}}, "mixture.language: no samples for"),
        ({"task": {"st": 1}, "language": {"st": {"fr": 1}}}, "mixture.language.st: .* 'fr'"),
    ],
)
def test_what_the_data_does_not_hold_is_refused(samples, mixture, message):
    with pytest.raises(InputError, match=message):
        plan_sources(samples, mixture)
