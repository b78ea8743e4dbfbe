"""Numbers of things, as people say them."""


def count(number: int, noun: str) -> str:
    """`1 vault`, `2,000 vaults`: of a noun whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
