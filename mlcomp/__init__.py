"""Neural-network compression from first principles."""

import sys

from mlcomp.addresses import MovedModules

__version__ = "0.2.0"

sys.meta_path.append(MovedModules())
