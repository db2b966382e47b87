"""How many examples a property gets: a share of the profile's, so that a longer search is longer for each of them."""

from hypothesis import settings


def examples(count: int) -> settings:
    """Return settings with ``count`` examples when the profile gives the usual 100, and ten times as many at 1000."""
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))
