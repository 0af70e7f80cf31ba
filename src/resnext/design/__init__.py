"""Networks of equal complexity: which there are, and which of them learns best."""
