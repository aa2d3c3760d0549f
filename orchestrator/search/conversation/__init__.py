"""Questions that follow others: their rewriting, and the related questions that could follow."""
