"""What a vault's sync is doing, for people to read."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """What a vault's sync is doing, for people."""

    passing: str | None = None
    """What was refused last; forgotten when the relay next tells how things stand."""
    lasting: dict[str, str] = field(default_factory=dict)
    """What is wrong until it is mended, by collection; under an empty name with the membership log."""

    @property
    def last_error(self) -> str | None:
        """What is wrong, or None."""
        return self.passing or next(iter(self.lasting.values()), None)
