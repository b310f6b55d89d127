import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest

from torchtune_speech.evaluation import bleu_chrf, qa, wer
from torchtune_speech.evaluation._bootstrap import (
    Statistic,
    bootstrap_intervals,
    mean,
    paired_differences,
)
from torchtune_speech.evaluation._qa import qa_statistics
from torchtune_speech.evaluation._translation import translation_statistics
from torchtune_speech.evaluation._wer import wer_statistics

WORDS = "the dog sits in a green garden and sleeps under an old tree".split()


def noisy(texts, rate, seed):
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS) if generator.random() < rate else w for w in text.split())
        for text in texts
    ]


def sentences(count, seed=0):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(4, 12))) for _ in range(count)]


def test_points_are_the_scores_of_the_corpus():
    references = [*sentences(50), "", "um"]
    predictions = [*noisy(references[:50], 0.3, 1), "two words", ""]
    rates = wer(references, predictions, normalizer="none")
    statistics = wer_statistics(references, predictions, "none", "en")
    assert statistics["wer"].score() == rates["wer"] > 0
    assert statistics["cer"].score() == rates["cer"] > 0
    errors = [rates[kind] for kind in ("insertions", "deletions", "substitutions")]
    assert statistics["wer"].sums() == [*errors, rates["reference_words"]]
    translations, _ = translation_statistics(references, predictions, "en")
    corpus = BLEU().corpus_score(predictions, [references]).score
    assert translations["bleu"].score() == pytest.approx(corpus, abs=1e-9)
    assert bleu_chrf(references, predictions, "en")["bleu"] == pytest.approx(corpus, abs=1e-4)
    answers = qa(references, predictions, "en")
    found = qa_statistics(references, predictions, ["en"] * len(references), {})
    assert found["f1"].score() == answers["f1"] and found["accuracy"].score() == answers["accuracy"]


def test_an_interval_by_hand():
    # One sample right and one wrong: a draw of two is 0, 1/2 or 1, with 1/4, 1/2 and 1/4.
    assert bootstrap_intervals({"x": mean([1, 0])}) == {"x": [0.0, 1.0]}
    # All alike: no draw differs from another.
    assert bootstrap_intervals({"x": mean([0.25] * 9)}) == {"x": [0.25, 0.25]}
    # A binomial: 1.96 * sqrt(0.8 * 0.2 / 2500) = 0.01568 on each side.
    low, high = bootstrap_intervals({"x": mean([1, 1, 1, 1, 0] * 500)})["x"]
    assert low == pytest.approx(0.8 - 0.01568, abs=0.0015)
    assert high == pytest.approx(0.8 + 0.01568, abs=0.0015)


def test_long_samples_weigh_more():
    # 100 words without an error and one word that is wrong: 1 / 101, and a draw of the second alone
    # is 1. Means of rates would be 1 / 2 instead.
    counts = np.array([[0, 0, 0, 100.0], [0, 0, 1, 1]])
    statistic = Statistic(counts, lambda sums: sums[:, :3].sum(1) / sums[:, 3])
    assert statistic.score() == 1 / 101
    assert statistic.each() == [0, 1]
    assert bootstrap_intervals({"wer": statistic})["wer"] == [0, 1]
    assert statistic.take([1]).score() == 1


def test_undefined_scores_and_single_samples_have_no_interval():
    nothing = mean([1, 1], [False, False])
    assert nothing.score() is None
    assert bootstrap_intervals({"x": nothing, "y": mean([1, 1])}) == {"y": [1, 1]}
    assert bootstrap_intervals({"y": mean([1])}) == {}
    assert bootstrap_intervals({}) == {}
    # Draws without a counted sample say nothing of the score.
    rare = mean([1, 0, 0, 0], [True, False, False, False])
    assert rare.score() == 1 and bootstrap_intervals({"x": rare}) == {"x": [1, 1]}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=2, max_size=30), st.data()
)
def test_the_interval_holds_the_order_does_not_matter(samples, data):
    counts = np.array([[errors, 0, 0, words] for errors, words in samples], dtype=float)
    shuffled = np.array(data.draw(st.permutations(counts.tolist())))

    def rate(sums):
        return sums[:, 0] / sums[:, 3]

    found = bootstrap_intervals({"wer": Statistic(counts, rate)})
    assert found == bootstrap_intervals({"wer": Statistic(shuffled, rate)})
    low, high = found["wer"]
    rates = [errors / words for errors, words in samples]
    assert min(rates) - 1e-6 <= low <= high <= max(rates) + 1e-6


def test_draws_are_shared_by_scores():
    ones = [1, 0, 1, 1, 0, 1, 0]
    found = bootstrap_intervals({"x": mean(ones), "y": mean([1 - one for one in ones])})
    assert found["y"] == pytest.approx([1 - found["x"][1], 1 - found["x"][0]])


def test_intervals_cover_the_truth():
    # Word errors of 400 worlds with a true rate of 0.2, in utterances of uneven length and noise.
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        words = generator.integers(2, 20, size=120)
        errors = generator.binomial(words, generator.beta(2, 8, size=120))
        counts = np.stack([errors, 0 * words, 0 * words, words], axis=1).astype(float)
        statistic = Statistic(counts, lambda sums: sums[:, 0] / sums[:, 3])
        low, high = bootstrap_intervals({"wer": statistic}, resamples=400)["wer"]
        covered += low <= 0.2 <= high
    # 95 % of 400 is 380, with a deviation of 4.4; percentile intervals are a little narrow.
    assert 362 <= covered <= 394


def test_identical_systems_do_not_differ():
    scores = {"x": mean([1, 0, 1, 1]), "none": mean([1, 1, 1, 1], [False] * 4)}
    found = paired_differences(scores, scores)
    assert set(found) == {"x"}
    assert (found["x"].difference, found["x"].interval, found["x"].p_value) == (0, [0, 0], 1)
    # As good as each other, on different samples.
    mirrored = paired_differences({"x": mean([1, 0] * 50)}, {"x": mean([0, 1] * 50)})["x"]
    assert mirrored.p_value > 0.9 and mirrored.interval[0] < 0 < mirrored.interval[1]


def test_clear_differences_are_significant_in_either_direction():
    worse, better = mean([1, 0] * 100), mean([1, 1, 1, 0] * 50)
    found = paired_differences({"x": worse}, {"x": better})["x"]
    assert (found.a, found.b, found.difference) == (0.5, 0.75, 0.25)
    # A quarter of samples differ: 1.96 * sqrt(0.25 * 0.75 / 200) = 0.060 on each side.
    assert found.interval == pytest.approx([0.19, 0.31], abs=0.01)
    assert found.p_value == pytest.approx(2 / 1001)
    back = paired_differences({"x": better}, {"x": worse})["x"]
    assert back.p_value == found.p_value and back.difference == -0.25


def test_pairing_shows_what_separate_intervals_hide():
    generator = np.random.default_rng(3)
    easy = generator.random(300)
    separate = bootstrap_intervals({"a": mean(easy), "b": mean(easy + 0.01)})
    assert separate["a"][1] > separate["b"][0]
    assert paired_differences({"x": mean(easy)}, {"x": mean(easy + 0.01)})["x"].p_value < 0.01


def test_few_samples_prove_little():
    for count, expected in ((1, 1.0), (2, 0.5), (5, 0.0625), (6, 0.03125)):
        found = paired_differences({"x": mean([0] * count)}, {"x": mean([1] * count)})["x"]
        assert found.p_value == expected
    # Samples on which both are right add nothing to that.
    found = paired_differences({"x": mean([0, 0] + [1] * 50)}, {"x": mean([1, 1] + [1] * 50)})["x"]
    assert found.p_value >= 0.5


def test_p_values_are_uniform_between_equal_systems():
    generator = np.random.default_rng(5)
    p_values = []
    for _ in range(300):
        a, b = generator.random((2, 60))
        p_values.append(paired_differences({"x": mean(a)}, {"x": mean(b)}, 400)["x"].p_value)
    # Of 300, 5 % are 15 with a deviation of 3.8, half are 150 with one of 8.7.
    assert 4 <= sum(p < 0.05 for p in p_values) <= 30
    assert 120 <= sum(p < 0.5 for p in p_values) <= 180


@pytest.mark.parametrize(
    ("rates", "least", "most"), [((0.3, 0.28), 0.05, 1), ((0.3, 0.2), 0, 0.01)]
)
def test_bleu_agrees_with_sacrebleu(rates, least, most):
    references = sentences(300)
    systems = [noisy(references, rate, seed) for seed, rate in enumerate(rates, start=1)]
    ours = paired_differences(
        *(translation_statistics(references, s, "en", ter=False)[0] for s in systems)
    )["bleu"]
    test = PairedTest(
        list(zip("ab", systems, strict=True)), {"BLEU": BLEU()}, [references], "bs", 1000
    )
    _, theirs = test()
    assert ours.a == pytest.approx(theirs["BLEU"][0].score, abs=1e-6)
    assert ours.b == pytest.approx(theirs["BLEU"][1].score, abs=1e-6)
    # sacrebleu folds the differences at 0 and looks at one tail of them: about half of a p-value
    # for both directions, for normal differences at most 0.08 less.
    assert ours.p_value / 2 == pytest.approx(theirs["BLEU"][1].p_value, abs=0.1)
    assert least <= ours.p_value <= most
    intervals = bootstrap_intervals(translation_statistics(references, systems[0], "en", False)[0])
    low, high = intervals["bleu"]
    assert (high - low) / 2 == pytest.approx(theirs["BLEU"][0].ci, rel=0.1)
    assert (high + low) / 2 == pytest.approx(theirs["BLEU"][0].mean, abs=0.3)


def test_many_samples_are_drawn_in_portions():
    values = np.random.default_rng(1).random(10_000)  # 200 draws at a time
    low, high = bootstrap_intervals({"x": mean(values)})["x"]
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=half / 4)
