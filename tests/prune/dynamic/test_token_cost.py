import pytest

from mlcomp.prune import vit_multiply_adds


def by_hand(m: int, d: int, r: int) -> int:
    """One block, product for product."""
    total = 3 * m * d * d  # queries, keys, values
    total += m * m * d  # every query with every key, over all heads
    total += m * m * d  # weights times values
    total += m * d * d  # the output projection
    return total + m * d * (r * d) + m * (r * d) * d


def test_blocks_are_counted_product_for_product():
    assert vit_multiply_adds([5], width=8, mlp_ratio=3) == by_hand(5, 8, 3)
    assert vit_multiply_adds([7, 5, 1], width=8) == sum(by_hand(m, 8, 4) for m in (7, 5, 1))


@pytest.mark.parametrize(
    ("ratio", "ours", "paper"), [(1.0, 4.541, 4.6), (0.9, 3.855, 4.0), (0.8, 3.290, 3.4), (0.7, 2.820, 2.9)]
)
def test_deit_small_as_in_the_paper(ratio, ours, paper):
    """12 blocks of width 384, 196 tokens and the class token, stages before blocks 3, 6 and 9; in 10⁹.

    The paper rounds to a decimal, and counts patches (0.058) and predictors (0.05) as well.
    """
    tokens = [1 + int(196 * ratio ** (block // 3) + 1e-9) for block in range(12)]
    got = vit_multiply_adds(tokens, width=384) / 1e9
    assert got == pytest.approx(ours, abs=6e-4)
    assert 0 < paper - got < 0.2


def test_bad_input(as_user):
    for tokens, options, words in (
        ([], {"width": 8}, "no block"),
        ([0], {"width": 8}, r"tokens\[0\] must be a whole number"),
        ([3], {"width": 0}, "width must be"),
        ([3], {"width": 8, "mlp_ratio": 0}, "mlp_ratio must be positive"),
    ):
        with pytest.raises(ValueError, match=words):
            vit_multiply_adds(tokens, **options)
