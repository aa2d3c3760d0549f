"""Each figure in the docs has its script here."""
