from tests.exercises.conftest import assignment, empty, pytest_runtest_setup, quick, reference

__all__ = ["assignment", "empty", "pytest_runtest_setup", "quick", "reference"]
