"""Model files: a local folder, or a repository on the Hugging Face hub."""
