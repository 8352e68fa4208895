"""What each of aiokafka's exceptions means to the caller: one table, asked by one function.

An operator's mistake (a missing topic, a wrong password) is never the event's fault: it pauses the sink, and mail waits.
Only a record that is too large by itself will never be taken.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from aiokafka import errors

from postbus.sinks import Rejected, Retry
from postbus.sinks.settings import SecretMissingError


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an exception means.

    Attributes:
        why: for log, health and dead letter: no addresses, no secrets.
        sink_down: the sink as a whole is the trouble, not this event.
        fatal: this client will never work again and must be made anew.
        too_large: somebody's size limit was passed.
    """

    why: str
    sink_down: bool = True
    fatal: bool = False
    too_large: bool = False


class TopicTooSmallError(RuntimeError):
    """A topic takes no record that an event is certain to fit into."""


UNKNOWN = Meaning("an error this version does not know", sink_down=False)

# First match wins, so a class stands before those it derives from.
MEANINGS: tuple[tuple[tuple[type[BaseException], ...], Meaning], ...] = (
    (
        (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError, errors.RecordTooLargeError),
        Meaning("the record is larger than the topic takes", sink_down=False, too_large=True),
    ),
    ((errors.UnknownTopicOrPartitionError,), Meaning("the topic does not exist")),
    ((errors.InvalidTopicError,), Meaning("the topic's name is not valid")),
    (
        (errors.TopicAuthorizationFailedError, errors.ClusterAuthorizationFailedError),
        Meaning("not allowed to write to the topic"),
    ),
    (
        (
            errors.SaslAuthenticationFailed,
            errors.AuthenticationFailedError,
            errors.AuthenticationMethodNotSupported,
            errors.UnsupportedSaslMechanismError,
            errors.IllegalSaslStateError,
        ),
        Meaning("the broker refused our user name, password or mechanism"),
    ),
    (
        (errors.NotEnoughReplicasError, errors.NotEnoughReplicasAfterAppendError),
        Meaning("fewer in-sync replicas than min.insync.replicas"),
    ),
    (
        (errors.KafkaTimeoutError, errors.RequestTimedOutError),
        Meaning("the broker did not answer in time"),
    ),
    (
        (errors.LeaderNotAvailableError, errors.NotLeaderForPartitionError, errors.KafkaStorageError, errors.StaleMetadata),
        Meaning("the partition has no working leader"),
    ),
    (
        (errors.NodeNotReadyError, errors.KafkaConnectionError, errors.NoBrokersAvailable, errors.BrokerNotAvailableError),
        Meaning("no broker can be reached"),
    ),
    (
        # The client's own sequence is broken and stays so (aiokafka#1017), or somebody closed it.
        (
            errors.OutOfOrderSequenceNumber,
            errors.UnknownProducerId,
            errors.InvalidProducerEpoch,
            errors.ProducerFenced,
            errors.ProducerClosed,
            errors.IllegalStateError,
        ),
        Meaning("the client failed and is made anew", fatal=True),
    ),
    ((errors.QuotaViolationError,), Meaning("a quota of the cluster was passed")),
    # Any other answer of a broker may be about this one record, as a policy's refusal is.
    ((errors.BrokerResponseError,), Meaning("the broker refused the record", sink_down=False)),
    # What is left of aiokafka's own are "unexpected error" wrappers, after which its sender task is dead.
    ((errors.KafkaError,), Meaning("the client failed and is made anew", fatal=True)),
    ((SecretMissingError,), Meaning("a secret is missing")),
    ((TopicTooSmallError,), Meaning("the topic's max.message.bytes is too small for events")),
    ((ssl.SSLCertVerificationError,), Meaning("the broker's certificate is not trusted")),
    ((ssl.SSLError,), Meaning("TLS with the broker failed")),
    ((TimeoutError,), Meaning("the broker did not answer in time")),
    ((OSError,), Meaning("no broker can be reached")),
)


def meaning_of(error: BaseException) -> Meaning:
    """Return what *error* means."""
    return next((meaning for classes, meaning in MEANINGS if isinstance(error, classes)), UNKNOWN)


def outcome_of(error: BaseException, *, alone: bool, topic_is_shared: bool) -> Retry | Rejected:
    """Return what the caller does after *error*.

    Args:
        error: what aiokafka raised.
        alone: the record had its batch to itself, so that a size limit was passed by it and not by its company.
        topic_is_shared: every event of the sink goes to the topic in question; otherwise trouble with it is no other topic's.
    """
    meaning = meaning_of(error)
    why = f"{meaning.why} ({type(error).__name__})"
    if meaning.too_large and alone:
        return Rejected(why, too_large=True)
    about_topic = isinstance(error, (errors.UnknownTopicOrPartitionError, errors.InvalidTopicError, errors.TopicAuthorizationFailedError))
    return Retry(why, sink_down=meaning.sink_down and (topic_is_shared or not about_topic))
