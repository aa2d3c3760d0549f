"""Tests of the four real processes. `support/` has the helpers, the other folders the tests."""
