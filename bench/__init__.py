"""Every figure that the README states, and the peers it is compared with."""
