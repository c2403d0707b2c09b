"""Who made a bundle, or an update: keys, signatures, and which of them this machine trusts.

The signature is Ed25519 over SHA256SUMS, which names every other file. SHA256SUMS.sig holds two
lines of base64: the signer's public key (the same line as in its PEM file) and the signature. That
key serves to say who signed; whether it is trusted, the machine's own folder of keys decides.
"""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, SIGNATURE, Bundle, load_bundle
from reader.errors import BundleError, SonoglanceError

KEYS = Path("/etc/sonoglance/keys")
KEYS_VARIABLE = "SONOGLANCE_KEYS"
PACKAGED = DEFAULT_BUNDLE.parent
SIGNABLE = ("PASS", "TOO FEW TO SHOW")
"""Outcomes of the quantization gate with which a bundle may be signed."""
ACCEPTED = "; accepted, since no key is trusted on this machine"


class KeyFileError(SonoglanceError, ValueError):
    """A key cannot be read or written."""


@dataclass(frozen=True)
class Trust:
    """Why a bundle may be read here. ``badge``: what the screen must say of it; often empty."""

    reason: str
    badge: str = ""


def generate_key(path: Path) -> str:
    """Write a new private key to ``path`` and its public key to ``path``.pub; returns the fingerprint.

    The private key is PKCS8 in PEM, readable by its owner alone. Raises KeyFileError where either
    file exists.
    """
    public_path = path.with_name(path.name + ".pub")
    for taken in (path, public_path):
        if os.path.lexists(taken):
            raise KeyFileError(f"{taken}: exists already, and a key is never overwritten; name another")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for new, content, mode in ((path, private, 0o600), (public_path, public, 0o644)):
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
    return fingerprint(_der(key.public_key()))


def sign_bundle(path: Path, key_path: Path) -> str:
    """Sign a bundle, a folder or zip file, in place; returns the signer's fingerprint.

    Checksums, schema, graph and golden vectors are verified first. Raises BundleError where one does
    not hold or the quantization gate forbids, KeyFileError where the key cannot be used.
    """
    key = _private_key(key_path)
    bundle = load_bundle(path)
    outcome = bundle.manifest.gate_outcome
    if outcome is None:
        raise BundleError(f"{path}: not signed: its quantization was not judged; convert it again")
    if outcome not in SIGNABLE:
        raise BundleError(f"{path}: not signed: its quantization gate says {outcome}; see `bundle show`")
    bundle.check_golden()
    _write_signature(bundle, _signed(key, bundle.files[CHECKSUMS]))
    return fingerprint(_der(key.public_key()))


def signature_of(key_path: Path, content: bytes) -> bytes:
    """The text of SHA256SUMS.sig: ``content``, which is SHA256SUMS, signed by a private key.

    Raises KeyFileError where the key cannot be used.
    """
    return _signed(_private_key(key_path), content)


def check_trust(bundle: Bundle, folder: Path | None = None) -> Trust:
    """Whether this machine trusts a bundle: as part of the package, or by a signature.

    ``folder``: see ``trusted_keys``. Where no key is trusted, a bundle is accepted with a badge.
    Raises BundleError where it is not trusted or its signature does not fit, KeyFileError for a key
    that cannot be read. A part of the package is trusted whatever the keys are.
    """
    path = bundle.path
    if path.resolve().is_relative_to(PACKAGED.resolve()):
        return Trust("part of the installed package")
    keys = trusted_keys(folder)
    signer = signer_of(bundle)
    if keys:
        return Trust(f"signed by {trusted_signer(signer, keys, path)}")
    if signer is None:
        return Trust(f"unsigned bundle{ACCEPTED}", "unsigned")
    return Trust(f"unknown signer ({fingerprint(signer)}){ACCEPTED}", "unknown-signer")


def trusted_signer(signer: bytes | None, keys: dict[bytes, str], where: object) -> str:
    """Name and fingerprint of the trusted key, of at least one, that signed ``where``.

    Raises BundleError where it is not signed (``signer`` is None), or by a key that is not trusted.
    """
    if signer is None:
        raise BundleError(f"{where}: unsigned; this machine wants a signature by {_names(keys)}")
    if signer not in keys:
        raise BundleError(
            f"{where}: signed by a key that is not trusted here ({fingerprint(signer)}); "
            f"this machine wants a signature by {_names(keys)}"
        )
    return f"{keys[signer]} ({fingerprint(signer)})"


def trusted_keys(folder: Path | None = None) -> dict[bytes, str]:
    """The public keys (DER) that this machine trusts, and their file names.

    They are every ``*.pub`` in ``folder``, or else in the folder that SONOGLANCE_KEYS names, or else in
    /etc/sonoglance/keys, which alone may be missing. Raises KeyFileError where a folder or a file in
    it cannot be read as keys.
    """
    named = folder or os.environ.get(KEYS_VARIABLE)
    place = Path(named or KEYS)
    try:
        paths = sorted(path for path in place.iterdir() if path.name.endswith(".pub"))
    except OSError as error:
        # Missing is one thing; there but out of reach must not pass for having no keys.
        if not named and isinstance(error, FileNotFoundError) and not place.is_symlink():
            return {}
        raise KeyFileError(f"{place}: no folder of keys that can be read ({error.strerror})") from error
    return {_public_key(path): path.name for path in paths}


def signer_of(bundle: Bundle) -> bytes | None:
    """The public key (DER) that signed a bundle, trusted or not; None where it is unsigned.

    Raises BundleError where the signature does not fit.
    """
    if SIGNATURE not in bundle.files:
        return None
    return signer_of_content(bundle.files[SIGNATURE], bundle.files[CHECKSUMS], bundle.path)


def signer_of_content(signature: bytes, content: bytes, where: object) -> bytes:
    """The public key (DER) that signed ``content``, trusted or not.

    ``signature``: as ``signature_of`` makes it. Raises BundleError, which names ``where``, where it does
    not fit.
    """
    try:
        signer, signed = (base64.b64decode(line, validate=True) for line in signature.splitlines())
        key = serialization.load_der_public_key(signer)
        # One way to write it: no byte of the file may change unnoticed.
        if not isinstance(key, Ed25519PublicKey) or _signature_text(signer, signed) != signature:
            raise ValueError("not as `bundle sign` writes it")
        key.verify(signed, content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{where}/{SIGNATURE}: not a signature; copy it again") from error
    except InvalidSignature as error:
        raise BundleError(
            f"{where}: the signature does not fit {CHECKSUMS}: changed after signing; copy it again"
        ) from error
    return signer


def fingerprint(key: bytes) -> str:
    """How a public key (DER) is told to people: the SHA-256 of it, in hexadecimal."""
    return hashlib.sha256(key).hexdigest()


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise KeyFileError(f"{path}: no key that can be read ({error.strerror})") from error
    # TypeError: it is encrypted. The cause is left out, lest it quote the key.
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: no unencrypted Ed25519 private key in PEM; `bundle keygen` makes one")
    return key


def _public_key(path: Path) -> bytes:
    try:
        pem = path.read_bytes()
        key = serialization.load_pem_public_key(pem)
    except OSError as error:
        raise KeyFileError(f"{path}: this key cannot be read ({error.strerror})") from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey) or pem.count(b"-----BEGIN ") != 1:
        raise KeyFileError(f"{path}: not one Ed25519 public key in PEM; replace it or take it away")
    return _der(key)


def _der(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _signed(key: Ed25519PrivateKey, content: bytes) -> bytes:
    return _signature_text(_der(key.public_key()), key.sign(content))


def _signature_text(signer: bytes, signature: bytes) -> bytes:
    return b"%s\n%s\n" % (base64.b64encode(signer), base64.b64encode(signature))


def _write_signature(bundle: Bundle, signature: bytes) -> None:
    """Put the signature into the bundle's folder or zip file, whole or not at all."""
    path = bundle.path.resolve()
    target = path / SIGNATURE if path.is_dir() else path
    part = target.with_name(target.name + ".part")
    try:
        if path.is_dir():
            part.write_bytes(signature)
        else:
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in {**bundle.files, SIGNATURE: signature}.items():
                    archive.writestr(name, content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _names(keys: dict[bytes, str]) -> str:
    return " or ".join(sorted(keys.values()))
