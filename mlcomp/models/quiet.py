"""Loading models without progress bars and warnings: a notebook stores what its cells print."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mlcomp.extras import need


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers (bars, warnings, log) inside the block; errors still come out; then restore."""
    logging = need("transformers.utils.logging", "notebooks")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
