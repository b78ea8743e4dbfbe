"""Writes the golden vectors of messages, conditions and ranges: `python -m tests.protocol.make_message_vectors`."""

from tests.protocol.vectors import (
    CONDITIONS,
    FOLDER,
    RANGES,
    VECTORS,
    generate,
    generate_conditions,
    generate_ranges,
)

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    VECTORS.write_text(generate(), encoding="utf-8")
    CONDITIONS.write_text(generate_conditions(), encoding="utf-8")
    RANGES.write_text(generate_ranges(), encoding="utf-8")
