"""`make demo`: two devices, one relay that cannot read, told as a story on real input."""
