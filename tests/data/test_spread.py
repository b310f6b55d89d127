import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_speech.data import spread


@pytest.mark.parametrize(
    ("count", "total", "places"),
    [(3, 10, [0, 4, 9]), (5, 3, [0, 1, 2]), (1, 9, [0]), (0, 9, []), (4, 0, []), (2, 2, [0, 1])],
)
def test_places_reach_from_the_first_to_the_last(count, total, places):
    assert spread(count, total) == places


@given(st.integers(2, 300), st.integers(2, 3000))
def test_places_are_distinct_ascending_and_evenly_apart(count, total):
    places = spread(count, total)
    assert len(places) == min(count, total) and (places[0], places[-1]) == (0, total - 1)
    gaps = {b - a for a, b in zip(places, places[1:], strict=False)}
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
