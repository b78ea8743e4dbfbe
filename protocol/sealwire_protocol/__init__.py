"""The Sealwire protocol: messages, their one codec, and both ends of a conversation as pure state machines.

Imported by the relay and by the client; imports nothing but the standard library. `PROTOCOL.md` beside this
package is the specification, `vectors/` holds golden vectors for implementations in other languages.
"""

__version__ = "0.1.0"
