"""Grounding: citations of a summary, and the spans of the passages that support its sentences.

Also sentence splitting and stemming, which selection and the retrievers use too.
"""
