"""Rules over weight paths: the first match wins, and nothing is left undecided in silence."""

import pytest

from keras_bert.errors import ConfigError
from keras_bert.rules import assign, match

RULES = [(r"(^|/)bias$", 0.0), (r"block_0/", 0.1), (r".*", 1.0)]
PATHS = ["block_0/query/kernel", "block_0/query/bias", "block_1/query/kernel", "bias"]


@pytest.mark.parametrize(("path", "value"), list(zip(PATHS, [0.1, 0.0, 1.0, 0.0], strict=True)))
def test_the_first_matching_rule_wins(path, value):
    assert match(RULES, path) == value


def test_assign_is_match_for_each_path_in_order():
    assert assign(RULES, iter(PATHS)) == {path: match(RULES, path) for path in PATHS}
    assert list(assign(RULES, PATHS)) == PATHS


@pytest.mark.parametrize("rules", [[], [("bias", 0.0)]])
def test_an_uncovered_weight_is_an_error(rules):
    with pytest.raises(ConfigError, match=r"no rule covers the weight 'head/kernel'"):
        match(rules, "head/kernel")
    with pytest.raises(ConfigError, match=r"no rule covers"):
        assign(rules, ["head/bias", "head/kernel"])


def test_a_rule_with_a_typo_is_an_error():
    with pytest.raises(ConfigError, match=r"'blok_0/' matches none of the 4 weights"):
        assign([("blok_0/", 0.1), (".*", 1.0)], PATHS)


def test_the_catch_all_may_find_nothing():
    assert assign([("bias", 0.0), (".*", 1.0)], ["a/bias"]) == {"a/bias": 0.0}
    assert assign([(".*", 1.0)], []) == {}


def test_a_pattern_is_searched_not_anchored():
    assert match([("query", 1), (".*", 2)], "encoder/block_3/attention/query/kernel") == 1
    assert match([("^query", 1), (".*", 2)], "encoder/block_3/attention/query/kernel") == 2
