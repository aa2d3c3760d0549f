"""Traces of a local run, without anything else: an OTLP receiver and a small view of them."""
