"""Sealwire for apps: a full local replica on every device, sealed before anything leaves it."""
