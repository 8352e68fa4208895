"""Whether a certificate can be used, said before anybody connects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from postbus.config import ConfigurationError, Finding, certificates, check, load

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


def pair(
    folder: Path, name: str, start: datetime = NOW - DAY, end: datetime = NOW + 90 * DAY, password: bytes | None = None
) -> tuple[Path, Path]:
    """Return the files of a certificate that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.example.org")])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    certificate_file.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    return certificate_file, key_file


def test_a_good_pair_says_when_it_ends(tmp_path: Path) -> None:
    """Nothing is wrong, and the end is known to the second."""
    verdict = certificates.look(*pair(tmp_path, "good"))
    assert ("", int((NOW + 90 * DAY).timestamp())) == (verdict.trouble, verdict.expires_s)


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    """Certificate and key in one file are a pair, too."""
    certificate, key = pair(tmp_path, "good")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert "" == certificates.look(both, None).trouble


@pytest.mark.parametrize(
    ("broken", "at", "trouble"),
    [
        pytest.param("expired", "certificate", "the certificate has expired", id="expired"),
        pytest.param("early", "certificate", "the certificate is not valid yet", id="not yet valid"),
        pytest.param("mismatch", "key", "the key is not the one of", id="mismatch"),
        pytest.param("encrypted", "key", "the private key is encrypted", id="encrypted key"),
        pytest.param("keyless", "certificate", "the file has no private key, and `key` is not set", id="no key"),
        pytest.param("der", "certificate", "the file is not PEM", id="DER"),
        pytest.param("empty", "certificate", "there is no certificate in the file", id="empty"),
        pytest.param("swapped", "certificate", "there is no certificate in the file", id="swapped"),
        pytest.param("garbled", "certificate", "certificate and key cannot be used: ", id="garbled"),
        pytest.param("missing", "key", "does not exist", id="missing key"),
        pytest.param("folder", "certificate", "is a folder", id="folder"),
    ],
)
def test_trouble_is_named(broken: str, at: str, trouble: str, tmp_path: Path) -> None:
    """Each kind of trouble has its words, and names the file to look at; `postbus check` says it."""
    certificate, key = pair(tmp_path, "a")
    other = pair(tmp_path, "b")
    given: dict[str, tuple[Path, Path | None]] = {
        "expired": pair(tmp_path, "expired", NOW - 2 * DAY, NOW - DAY),
        "early": pair(tmp_path, "early", NOW + DAY, NOW + 2 * DAY),
        "mismatch": (certificate, other[1]),
        "encrypted": pair(tmp_path, "encrypted", password=b"secret"),
        "keyless": (certificate, None),
        "der": (tmp_path / "der", key),
        "empty": (tmp_path / "empty", key),
        "swapped": (key, certificate),
        "garbled": (tmp_path / "garbled", key),
        "missing": (certificate, tmp_path / "none"),
        "folder": (tmp_path, key),
    }
    (tmp_path / "der").write_bytes(b"\x30\x82\xff\x00")
    (tmp_path / "empty").touch()
    (tmp_path / "garbled").write_text(certificate.read_text().replace("M", "N", 3))
    verdict = certificates.look(*given[broken])
    assert (at, True) == (verdict.at, trouble in verdict.trouble)
    assert [f"listeners.smtp.tls.{at}"] == [finding.path for finding in findings(*given[broken])]


def findings(certificate: Path, key: Path | None, now_s: float | None = None) -> list[Finding]:
    """Return what is found about a listener with these files."""
    environ = {"POSTBUS__LISTENERS__SMTP__TLS__MODE": "starttls", "POSTBUS__LISTENERS__SMTP__TLS__CERTIFICATE": str(certificate)}
    if key is not None:
        environ["POSTBUS__LISTENERS__SMTP__TLS__KEY"] = str(key)
    environ["POSTBUS__SPOOL__FOLDER"] = str(certificate.parent)
    return check(load(None, environ), now_s)


def test_a_certificate_near_its_end_is_a_warning(tmp_path: Path) -> None:
    """With two weeks left somebody should look why it was not renewed."""
    files = pair(tmp_path, "good")
    assert [] == findings(*files, now_s=NOW.timestamp())
    found = findings(*files, now_s=(NOW + 85 * DAY).timestamp())
    assert ["the certificate ends in 4 days"] == [finding.message for finding in found]


def test_tls_without_a_certificate_is_an_error() -> None:
    """Asking for STARTTLS takes a certificate."""
    with pytest.raises(ConfigurationError, match="mode starttls needs a certificate"):
        load(None, {"POSTBUS__LISTENERS__SMTP__TLS__MODE": "starttls"})


def sink_findings(**tls: Path) -> list[tuple[str, str]]:
    """Return where, and what, is wrong with the files of a webhook's TLS."""
    environ = {f"POSTBUS__SINKS__HOOK__TLS__{field.upper()}": str(path) for field, path in tls.items()}
    known = {"POSTBUS__SINKS__HOOK__KIND": "webhook", "POSTBUS__SINKS__HOOK__URL": "https://hook.example.org/"}
    found = check(load(None, {**known, **environ, "POSTBUS__SPOOL__FOLDER": "/tmp"}))
    return [(finding.path, finding.message) for finding in found if finding.severity == "error"]


def test_the_files_of_a_sink_are_loaded(tmp_path: Path) -> None:
    """What can be read and is no certificate is found before any mail is; what has only expired is the receiver's business."""
    good, expired, other = pair(tmp_path, "good"), pair(tmp_path, "old", NOW - 2 * DAY, NOW - DAY), pair(tmp_path, "other")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    assert [] == sink_findings(ca=good[0], certificate=good[0], key=good[1])
    assert [] == sink_findings(certificate=expired[0], key=expired[1])
    assert [("sinks.hook.tls.ca", f"there is no certificate of an authority in {junk}")] == sink_findings(ca=junk)
    assert [("sinks.hook.tls.key", f"the key is not the one of {good[0]}")] == sink_findings(certificate=good[0], key=other[1])


def test_the_authorities_of_clients_are_loaded(tmp_path: Path) -> None:
    """A file that can be read and holds none would be found at the first handshake otherwise."""
    junk = tmp_path / "junk"
    junk.write_text("junk")
    certificate, key = pair(tmp_path, "good")
    files = {"CERTIFICATE": certificate, "KEY": key, "CLIENT_CA": junk}
    environ = {f"POSTBUS__LISTENERS__SMTP__TLS__{field}": str(path) for field, path in files.items()}
    found = check(load(None, {**environ, "POSTBUS__LISTENERS__SMTP__TLS__MODE": "starttls", "POSTBUS__SPOOL__FOLDER": str(tmp_path)}))
    assert ["listeners.smtp.tls.client_ca"] == [finding.path for finding in found]
