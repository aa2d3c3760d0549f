"""Recording and export of spans: which traces are kept, and how little each span costs."""
