"""Weights made elsewhere: torchvision's, timm's, a hub's, or a file's, as a network of ours."""
