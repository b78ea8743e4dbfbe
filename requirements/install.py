"""Sets up `.venv` in the checkout: `python3 requirements/install.py run|dev|bench`.

`run` is what the three packages need, `dev` adds what the tests and the checks need, `bench` what the benches
need. Nothing is done when nothing changed since the last time. Progress goes to stderr, one line a step; a failure
is one sentence, the whole output of the step is kept in `.venv/setup.log`, and the exit code is 1.

Runs on whatever Python 3 is there, so that an old one can be told from none.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Mapping, NoReturn, Tuple  # noqa: UP035 - has to run on a Python that is too old

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
PACKAGES = ("protocol", "relay", "client")
PYTHON_FLOOR = (3, 11)
STEP_LIMIT_S = 900
"""A step that takes longer has lost its network: the largest one downloads some 60 MB."""
AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine, Gentoo, NixOS
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
)
"""Where a Linux keeps the certificate authorities that it trusts, a company's own among them."""
UNTRUSTED = (b"CERTIFICATE_VERIFY_FAILED", b"invalid peer certificate")
"""What pip and uv say of a registry whose certificate nobody vouches for."""
FLAVOURS = {
    "run": ("uv.txt", "run.txt"),
    "dev": ("uv.txt", "run.txt", "dev.txt"),
    "bench": ("uv.txt", "run.txt", "dev.txt", "bench.txt"),
}


def main(arguments: List[str]) -> None:  # noqa: UP006
    """Bring `.venv` to the flavour asked for, or exit with one sentence saying what is missing."""
    if len(arguments) != 1 or arguments[0] not in FLAVOURS:
        give_up("usage: python3 requirements/install.py run|dev|bench")
    flavour = arguments[0]
    if sys.version_info < PYTHON_FLOOR:
        give_up(
            "Sealwire needs Python {}.{} or newer, and {} is {}.{}: name a newer one with "
            "`make PYTHON=python3.12 ...`.".format(*PYTHON_FLOOR, sys.executable, *sys.version_info[:2])
        )
    with OneAtATime():
        if stamped("base") != base_stamp() or not PYTHON.exists():
            make_venv()
        if stamped(flavour) != flavour_stamp(flavour):
            install(flavour)


class OneAtATime:
    """Lets only one process at a time set up this checkout; others wait. It ends with the process."""

    def __enter__(self) -> None:
        import fcntl  # not on every system that can read this file

        self._file = os.open(str(ROOT / "requirements"), os.O_RDONLY)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def base_stamp() -> str:
    """What the bare environment depends on: an environment cannot be moved, nor change its Python."""
    return f"{ROOT} {sys.version} {os.path.realpath(sys.executable)}"


def flavour_stamp(flavour: str) -> str:
    """A hash of everything that decides what gets installed."""
    digest = hashlib.sha256(base_stamp().encode())
    inputs = [ROOT / "requirements" / name for name in ("install.py", *FLAVOURS[flavour])]
    inputs += [ROOT / package / "pyproject.toml" for package in PACKAGES]
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamp_file(name: str) -> Path:
    """Where the stamp of a finished step is kept."""
    return VENV / f".set-up-{name}"


def stamped(name: str) -> str:
    """The stamp of the last finished step, or an empty string."""
    try:
        return stamp_file(name).read_text()
    except OSError:
        return ""


def make_venv() -> None:
    """Make a bare environment, replacing one that was made elsewhere or by another Python."""
    try:
        import ensurepip  # noqa: F401 - Debian leaves it out of Python
        import venv  # noqa: F401
    except ImportError:
        give_up(
            f"{sys.executable} comes without the venv module: install it (on Debian and Ubuntu: "
            f"`apt-get install python3-venv`), then run this again."
        )
    shutil.rmtree(VENV, ignore_errors=True)
    # Not yet there, so the log of this step is its message.
    run(
        "an environment in .venv",
        [sys.executable, "-m", "venv", str(VENV)],
        "is there room, and the right to write",
    )
    stamp_file("base").write_text(base_stamp())


def install(flavour: str) -> None:
    """Install the pinned versions, hashes checked, and the three packages as they stand in the checkout."""
    stamp_file(flavour).unlink(missing_ok=True)
    missing = "is the package registry in reach"
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
    pins = ROOT / "requirements"
    if version_of_uv() not in (pins / "uv.txt").read_text():
        pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
        run("the installer (uv)", [*pip, "-r", str(pins / "uv.txt")], missing)
    pinned = str(pins / FLAVOURS[flavour][-1])
    # Compiled here once rather than by every process that starts: some machines forbid writing byte code.
    run("the pinned packages", [*uv, "--require-hashes", "--compile-bytecode", "-r", pinned], missing)
    editable = [part for package in PACKAGES for part in ("--editable", str(ROOT / package))]
    run("Sealwire itself", [*uv, "--no-deps", *editable], missing)
    stamp_file(flavour).write_text(flavour_stamp(flavour))


def version_of_uv() -> str:
    """`uv==1.2.3` as pinned files say it, of the uv in the environment; without one, what no file says."""
    try:
        answer = subprocess.run([str(VENV / "bin" / "uv"), "--version"], stdout=subprocess.PIPE, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no uv"
    return f"uv=={answer.stdout.decode().split()[1]} "


def certificates(environment: Mapping[str, str], authorities: Tuple[str, ...] = AUTHORITIES) -> Dict[str, str]:  # noqa: UP006
    """What pip and uv are told so that both trust whom this machine trusts; what is set already counts.

    Left alone, uv and an older pip trust a list of their own, and nobody behind a company's proxy gets past that.
    On a machine without a list they are left alone. SSL_CERT_FILE, which only uv reads by itself, is for both.
    """
    bundle = next((path for path in authorities if os.path.isfile(path) and os.path.getsize(path)), None)
    told = {"UV_SYSTEM_CERTS": "1"} if bundle else {}
    # Not PIP_CERT: that would outdo `cert` in a pip.conf.
    pip_trusts = environment.get("SSL_CERT_FILE") or environment.get("CURL_CA_BUNDLE") or bundle
    if pip_trusts:
        told["REQUESTS_CA_BUNDLE"] = pip_trusts
    return {name: value for name, value in told.items() if not environment.get(name)}


def run(what: str, command: List[str], missing: str) -> None:  # noqa: UP006
    """Run one step with one line of progress; when it fails, give up with its last line and `missing`."""
    sys.stderr.write(f"set-up: {what} ... ")
    sys.stderr.flush()
    start_s = time.monotonic()
    environment = dict(os.environ, UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", **certificates(os.environ))
    for name in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "UV_SYSTEM_PYTHON", "UV_PROJECT_ENVIRONMENT"):
        environment.pop(name, None)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=str(ROOT),
            timeout=STEP_LIMIT_S,
            check=False,
        )
        output, failed = done.stdout, done.returncode != 0
    except subprocess.TimeoutExpired as late:
        output, failed = (late.output or b"") + b"\nno end after %d s" % STEP_LIMIT_S, True
    if VENV.is_dir():
        with LOG.open("ab") as log:
            log.write(" ".join(command).encode() + b"\n" + output + b"\n")
    if failed:
        sys.stderr.write("failed\n")
        more = f" (all of it in {LOG})" if LOG.exists() else ""
        give_up(f"Could not set up {what}{why(output, missing)}{more}")
    sys.stderr.write(f"{time.monotonic() - start_s:.1f} s\n")


def why(output: bytes, missing: str) -> str:
    """Why a step failed: `missing` and its last line, but that of an untrusted certificate tells nobody what to do."""
    if any(words in output for words in UNTRUSTED):
        return (
            ": the package registry shows a certificate that this machine does not trust, as a company's proxy does; "
            "run this again with SSL_CERT_FILE=FILE, where FILE has your network's authorities in PEM"
        )
    said = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return f" ({missing}?): {said[-1] if said else 'no output'}"


def give_up(sentence: str) -> NoReturn:
    """End with one sentence on stderr and exit code 1."""
    sys.stderr.write(sentence + "\n")
    sys.exit(1)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        give_up("\nSet-up was interrupted: the next run goes on where this one stopped.")
