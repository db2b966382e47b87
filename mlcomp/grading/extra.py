"""The extra ``grading``: what only generating and teaching need."""

import importlib.util
import os
import sys
from pathlib import Path

from mlcomp.extras import how_to_get


class ExtraMissing(ImportError):
    """A package of the extra is not installed; the message says how to install it."""


def require_nbgrader() -> None:
    """Raise unless nbgrader is installed. Students and self-learners do not need it."""
    if importlib.util.find_spec("nbgrader") is None:
        raise ExtraMissing(f"this needs nbgrader, which is not installed ({how_to_get('grading')})")
    # nbgrader starts `alembic` by name, also when the environment of this Python is not activated.
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
