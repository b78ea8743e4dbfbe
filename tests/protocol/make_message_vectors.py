"""Writes `protocol/vectors/messages.json`: `python -m tests.protocol.make_message_vectors` from the root."""

from tests.protocol.vectors import VECTORS, generate

if __name__ == "__main__":
    VECTORS.parent.mkdir(exist_ok=True)
    VECTORS.write_text(generate(), encoding="utf-8")
