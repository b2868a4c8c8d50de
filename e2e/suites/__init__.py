"""The suites, in the order in which they run."""
from . import clients  # noqa: F401
