"""Evaluation: what an engine scores on labelled images. It is handed the engine."""
