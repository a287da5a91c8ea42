"""Reports of `python -m data.inspect`: the trace of a document, two corpora compared."""
