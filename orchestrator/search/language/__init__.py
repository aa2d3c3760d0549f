"""Words in all scripts: folding, splitting, languages, stems, and the terms of the index."""
