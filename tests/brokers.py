"""A real Apache Kafka for the tests: one per run, on loopback, stopped and started at will.

Where it comes from, in this order:

1. ``POSTBUS_TEST_KAFKA=host:port``: somebody's broker. It can be neither stopped nor asked for TLS; who must is ended by ``missing``.
2. Java and Maven: the jars of the pinned ``tests/kafka/pom.xml``; 4 s to resolve the first time, under 3 s to start.
3. Docker: the image ``apache/kafka`` of the same version.

Whoever needs one takes the fixture ``kafka``. It is running when the test starts; a test may stop it, the next test finds it up again.
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.peers import missing
from tests.ports import free_ports

POM = Path(__file__).parent / "kafka" / "pom.xml"
IMAGE = "apache/kafka:4.3.1"
HEAP = "-Xmx256m"
START_TIMEOUT_S = 30
STOP_TIMEOUT_S = 10
USER, PASSWORD = "postbus", "correct horse"

# A killed broker may register again only when its last session is over: 9 s by default.
PROPERTIES = """\
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
log.dirs={folder}/data
auto.create.topics.enable=false
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=300
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.replication.factor=1
"""

FIRST = """\
node.id=1
process.roles=broker,controller
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
"""

SECOND = """\
node.id=2
process.roles=broker
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One record read back from a topic. *headers* in order, duplicates kept."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int

    def header(self, name: str) -> bytes | None:
        """Return the first header called *name*, or ``None``."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass
class Kafka:
    """A broker that is running or not.

    Attributes:
        bootstrap: ``host:port``, without TLS or password.
        secure_bootstrap, ca: the same broker over SASL_SSL (PLAIN, ``USER`` and ``PASSWORD``); ``""`` where it is somebody else's.
        second: a second broker of the cluster, down unless a test starts it (and stops it): a topic with two replicas and
            ``min.insync.replicas`` 2 falls short while it is down (with one replica it never does: Kafka caps the setting).
    """

    bootstrap: str
    secure_bootstrap: str = ""
    ca: Path = Path()
    folder: Path = Path()
    format_command: Sequence[str] = ()
    start_command: Sequence[str] = ()
    kill_command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    second: Kafka | None = None

    def require_ours(self) -> None:
        """End the test unless this broker may be stopped and has a TLS listener."""
        if not self.start_command:
            missing("a Kafka broker that the tests may stop", "unset POSTBUS_TEST_KAFKA and install Java 17 and Maven")

    def start(self) -> None:
        """Start the broker on the ports and the data it had, and return when it serves. Nothing happens when it is running."""
        if not self.start_command or self.process is not None:
            return
        with (self.folder / "log").open("ab") as log:
            environment = {**os.environ, **self.environment}
            self.process = subprocess.Popen(self.start_command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listening(self.bootstrap):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"Kafka did not start; the end of its log:\n{(self.folder / 'log').read_text()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the broker in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a power cut would (its page cache survives: it is this machine's)."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self.require_ours()
        process, self.process = self.process, None
        if process is None:
            return
        if number is signal.SIGKILL and self.kill_command:
            subprocess.run(self.kill_command, check=False, capture_output=True)
        else:
            process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def create_topic(
        self, name: str = "", *, partitions: int = 1, replication: int = 1, config: Mapping[str, str] | None = None
    ) -> str:
        """Make a topic and return its name; a fresh one without *name*. *config* as ``{"min.insync.replicas": "2"}``."""
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            topic = NewTopic(name, partitions, replication, topic_configs=dict(config or {}))
            answer = await admin.create_topics([topic], timeout_ms=10_000)
            errors = [error for error in answer.topic_errors if error[1] != 0]
            assert not errors, errors
            await _until_led(admin, name)
        finally:
            await admin.close()
        return name

    async def delete_topic(self, name: str) -> None:
        """Delete the topic *name*."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        try:
            await admin.delete_topics([name])
        finally:
            await admin.close()

    async def consume(self, topic: str, *, at_least: int = 0, timeout_s: float = 20) -> list[Record]:
        """Return every record of *topic* in order of partition and offset, waiting until there are *at_least* so many.

        When the time is over, what there is; the caller's assertion then says how many were missing.
        """
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=100)
        records: list[Record] = []
        await consumer.start()
        try:
            partitions = sorted(consumer.assignment())
            assert partitions, f"no topic {topic}"
            ends = await consumer.end_offsets(partitions)
            deadline = time.monotonic() + timeout_s
            while time.monotonic() < deadline:
                reached = [await consumer.position(partition) >= ends[partition] for partition in partitions]
                if all(reached) and len(records) >= at_least:
                    break
                batches = await consumer.getmany(timeout_ms=200)
                records += [_record(message) for batch in batches.values() for message in batch]
        finally:
            await consumer.stop()
        return sorted(records, key=lambda record: (record.partition, record.offset))


async def _until_led(admin: AIOKafkaAdminClient, topic: str) -> None:
    """Wait until a broker knows *topic* and its leaders: the answer to its creation is the controller's, who may be ahead of it."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            (found,) = await admin.describe_topics([topic])
            if 0 == found["error_code"] and all(0 == partition["error_code"] for partition in found["partitions"]):
                return
            await asyncio.sleep(0.05)


def _record(message: Any) -> Record:
    """Return aiokafka's *message* as ours."""
    return Record(message.partition, message.offset, message.key, message.value, tuple(message.headers), message.timestamp)


def _listening(address: str) -> bool:
    """Return whether somebody accepts connections at *address*."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False


def _classpath(maven: str) -> str:
    """Return the jars of the pom, resolving them when the pom is newer than the answer kept under ``target/``."""
    kept = POM.parent / "target" / "classpath"
    if kept.exists() and kept.stat().st_mtime > POM.stat().st_mtime:
        known = kept.read_text()
        if all(Path(jar).exists() for jar in known.split(os.pathsep)):
            return known
    command = [maven, "-q", "-B", "-f", str(POM), "dependency:build-classpath", f"-Dmdep.outputFile={kept}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        missing("Apache Kafka", f"Maven could not resolve {POM.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return kept.read_text()


def _by_java(folder: Path, java: str, maven: str) -> dict[str, Any]:
    """Return how to run Kafka from its jars. C1 only and the serial collector: a small process that starts in 2 s."""
    machine = [java, HEAP, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    machine += ["-cp", _classpath(maven)]
    return {
        "format_command": [*machine, "kafka.tools.StorageTool"],
        "start_command": [*machine, "kafka.Kafka", str(folder / "server.properties")],
    }


def _by_docker(folder: Path, docker: str) -> dict[str, Any]:
    """Return how to run Kafka from its image: on the host's network, as this user, in this folder."""
    name = f"postbus-kafka-{uuid.uuid4().hex[:8]}"
    run = [docker, "run", "--rm", "--network=host", f"--user={os.getuid()}", f"--volume={folder}:{folder}"]
    run += [f"--env=KAFKA_HEAP_OPTS={HEAP}", f"--env=LOG_DIR={folder}/logs"]
    return {
        "format_command": [*run, IMAGE, "/opt/kafka/bin/kafka-storage.sh"],
        "start_command": [*run, f"--name={name}", IMAGE, "/opt/kafka/bin/kafka-server-start.sh", str(folder / "server.properties")],
        "kill_command": [docker, "kill", name],
    }


def _launcher(folder: Path) -> dict[str, Any]:
    """Return the first way of running Kafka this machine has."""
    java, maven, docker = shutil.which("java"), shutil.which("mvn"), shutil.which("docker")
    if java and maven:
        return _by_java(folder, java, maven)
    if docker and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0:
        return _by_docker(folder, docker)
    return missing("Apache Kafka", "install Java 17 and Maven, or Docker, or set POSTBUS_TEST_KAFKA=host:port")


def _certify(folder: Path) -> Path:
    """Write the broker's key and certificate as Kafka reads them (PKCS 8 PEM); return the authority's certificate."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    parts = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())]
    parts += [blob.bytes() for blob in leaf.cert_chain_pems]
    (folder / "broker.pem").write_bytes(b"".join(parts))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return folder / "ca.pem"


def make_kafka(folder: Path) -> Kafka:
    """Return a formatted broker in *folder*, not yet started, or the one ``POSTBUS_TEST_KAFKA`` names."""
    if given := os.environ.get("POSTBUS_TEST_KAFKA"):
        if not _listening(given):
            missing("Apache Kafka", f"nothing answers at POSTBUS_TEST_KAFKA={given}")
        return Kafka(bootstrap=given)
    ports = dict(zip(("controller", "plain", "secure", "plain2", "secure2"), free_ports(5), strict=True))
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    first = _node(folder / "first", FIRST, cluster, ports)
    first.second = _node(folder / "second", SECOND, cluster, {**ports, "plain": ports["plain2"], "secure": ports["secure2"]})
    return first


def _node(folder: Path, roles: str, cluster: str, ports: Mapping[str, int]) -> Kafka:
    """Return one formatted broker in the new *folder*."""
    folder.mkdir()
    launcher, ca = _launcher(folder), _certify(folder)
    properties = folder / "server.properties"
    properties.write_text((roles + PROPERTIES).format(folder=folder, user=USER, password=PASSWORD, **ports))
    broker = Kafka(f"127.0.0.1:{ports['plain']}", f"127.0.0.1:{ports['secure']}", ca, folder, **launcher)
    format_storage = [*broker.format_command, "format", f"--cluster-id={cluster}", "--config", str(properties)]
    done = subprocess.run(format_storage, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return broker


@pytest.fixture(scope="session")
def kafka_of_the_run() -> Iterator[Kafka]:
    """The one broker of this run."""
    with tempfile.TemporaryDirectory(prefix="postbus-kafka-", ignore_cleanup_errors=True) as folder:
        broker = make_kafka(Path(folder))
        broker.start()
        yield broker
        for node in (broker.second, broker):
            if node is not None and node.start_command:
                node.stop()


@pytest.fixture
def kafka(kafka_of_the_run: Kafka) -> Kafka:
    """A running broker, whatever the test before did to it."""
    kafka_of_the_run.start()
    return kafka_of_the_run
