"""Training: a recipe says how a run goes, the loop goes it, the run directory remembers it."""
