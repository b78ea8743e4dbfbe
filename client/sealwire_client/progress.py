"""What a vault's sync is doing, for people to read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """What a vault's sync is doing, for people."""

    passing: str | None = None
    """What was refused last; forgotten when the relay next tells how things stand."""
    lasting: dict[str, str] = field(default_factory=dict)
    """What is wrong until it is mended, by collection; under an empty name with the membership log."""

    elsewhere: Callable[[], str | None] = lambda: None
    """What keeps another relay from answering, to which the vault is to go."""

    @contextmanager
    def waits(self, why: Callable[[], str | None]) -> Iterator[None]:
        """For the length of the block somebody waits for another relay; `why` it is not there, or None."""
        self.elsewhere = why
        try:
            yield
        finally:
            self.elsewhere = lambda: None

    @property
    def last_error(self) -> str | None:
        """What is wrong, or None."""
        return self.passing or next(iter(self.lasting.values()), None) or self.elsewhere()
