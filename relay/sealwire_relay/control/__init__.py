"""The control port: health, metrics and numbers, for those who run the relay. Devices never come here."""
