"""Parts of Sealwire measured alone; each prints one JSON object."""
