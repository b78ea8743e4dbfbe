"""What Sealwire is compared with, started by the benches themselves."""
