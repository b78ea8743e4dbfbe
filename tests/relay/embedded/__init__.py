"""The embedded Postgres, with the real binaries."""
