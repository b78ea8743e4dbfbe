"""The Sealwire relay: stores sealed records on Postgres and fans them out; it can read none of them."""
