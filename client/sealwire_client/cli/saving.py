"""What follows an edit: it is sent, as far as the relay can be reached, and told what became of it."""

from sealwire_client.cli import session
from sealwire_client.cli.failures import FORGET, relay_missing
from sealwire_client.cli.output import Bar, Output
from sealwire_client.status import Status
from sealwire_client.vault import Vault


async def until_sent(vault: Vault, wait: float, output: Output) -> Status:
    """Wait until a vault has nothing more to send, no longer than `session.until` does. Returns how it stands then."""
    with Bar("Sending", output) as bar:
        return await session.until(vault, session.all_sent, wait, bar)


def tell(
    fields: dict[str, object], what: str, status: Status, stuck: int, vault: Vault, wait: float, output: Output
) -> None:
    """Say what became of an edit, plainly. Raises Failure if the relay refused something for good."""
    refused = status.stuck - stuck
    sent = status.pending == 0 and refused <= 0
    why = None if sent else session.why_not(status, vault.origin, wait).rstrip(".")
    text = f"{what} on this device; {session.fate(status, refused)}"
    output.answer({**fields, "sent": sent, "pending": status.pending, "why": why}, text)
    if refused > 0:
        writes = "1 write" if refused == 1 else f"{refused:,} writes"
        raise relay_missing(
            f"The relay refused {writes} for good, kept on this device: {why} (`sealwire stuck retry --all`)"
        )
    if vault.is_known is False or vault.over is not None:
        output.say(f"Not sent: {why}; or {FORGET}")
    elif not sent:
        output.say(f"Not sent yet: {why}. The next put, delete, watch or status that reaches the relay sends it")
