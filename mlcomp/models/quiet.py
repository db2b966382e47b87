"""Loading models without progress bars and warnings: a notebook stores what its cells print."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from mlcomp.extras import need


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers (bars, warnings, log) inside the block; errors still come out; then restore.

    Packages that it calls have bars of their own (compressed-tensors), which nothing switches off: what is written to
    the standard error stream from Python is dropped.
    """
    logging = need("transformers.utils.logging", "notebooks")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
