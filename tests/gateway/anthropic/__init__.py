"""Tests of Anthropic's formats."""
