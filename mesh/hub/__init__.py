"""Model files: local folders and repositories of the Hugging Face hub.

Reading the files belongs to the services.
"""
