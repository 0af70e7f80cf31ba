"""Inference: a bundle in the hand. From a file to a label."""
