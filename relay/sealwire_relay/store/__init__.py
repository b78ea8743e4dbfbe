"""Storage of the relay: one interface, an in-memory and a Postgres implementation."""
