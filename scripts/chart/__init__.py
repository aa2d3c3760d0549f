"""Generates a chart's schema, README and list of images from its commented values."""
