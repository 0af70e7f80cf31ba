"""Engines that are faster than eager torch, and give the same answers."""
