"""The Responses API: items of a request to generations, their deltas to items and events.

The same generations and deltas as chat completions; no text is parsed here.
"""
