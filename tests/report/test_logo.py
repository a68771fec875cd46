"""Sequence logos: heights by the formula, letters in order."""

import math
import re

import numpy as np

from eadem.report.logo import information, logo


def test_heights_are_shares_of_what_the_place_says():
    counts = np.array([[3.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    wanted = [[0.75 * (2 - entropy), 0.25 * (2 - entropy), 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(information(counts), wanted, atol=1e-15)


def test_the_tallest_letter_stands_uppermost():
    counts = np.array([[90.0, 10.0, 0.0, 0.0]])
    drawn = re.findall(
        r"translate\([\d.]+ ([\d.]+)\) scale\(1.15 ([\d.]+)\)[^>]*>(\w)<",
        logo(counts, "ACGT", "c"),
    )
    assert [letter for *_, letter in drawn] == ["C", "A"]
    (low, short, _), (high, tall, _) = drawn
    assert float(high) < float(low)
    np.testing.assert_allclose(float(tall) / float(short), 9, rtol=1e-3)


def test_it_says_what_it_shows_without_being_seen():
    counts = np.eye(4)[[2, 0, 3, 3, 0, 1, 0]] * 10
    assert 'aria-label="a filter: GATTACA"' in logo(counts, "ACGT", "a filter")
    assert "&lt;b&gt;" in logo(counts, "ACGT", "<b>")
