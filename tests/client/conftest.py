"""Fixtures of the client's tests: those offered to apps."""

from sealwire_client.testing.fixtures import memory_relay, open_device

__all__ = ["memory_relay", "open_device"]
