"""Token ids to text: detokenization, stop strings, reasoning and tool-call parsing."""
