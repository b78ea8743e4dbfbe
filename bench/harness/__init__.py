"""What all benches share: a relay, devices, load, rounds, results."""
