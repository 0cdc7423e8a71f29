"""From a corpus and a model to rows: planning, capture, extraction."""
