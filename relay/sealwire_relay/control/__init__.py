"""The control port: health and metrics, for those who run the relay. Devices never come here."""
