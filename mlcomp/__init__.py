"""Neural-network compression from first principles."""

__version__ = "0.1.0"
