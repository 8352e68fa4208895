"""Bad configurations, and the one line that says what is wrong, where, and what would be right."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postbus.config import ConfigurationError, Settings, check, document, load
from postbus.config.shape import places

ROUTES = "routes: [{name: all, match: '*', sinks: [out]}]\nsinks: {out: {kind: file, path: '-'}}\n"
"""Two lines that make a whole configuration."""

KAFKA = "sinks: {k: {kind: kafka, bootstrap: ['kafka:9092'], topic: mail}}\n"
TO_KAFKA = "routes: [{name: all, match: '*', sinks: [k]}]\n"

BAD_FILES = [
    # -- not YAML, or one of its traps
    pytest.param("listeners:\n\tsmtp: {}\n", "file:2: a tab where YAML wants spaces; indent with spaces", id="tab"),
    pytest.param(
        "hostname: a: b\n",
        "file:1: a colon in a value, or a key indented too far; put the value in quotes, or align the key",
        id="colon in a value",
    ),
    pytest.param("routes:\n  - match: *@example.org\n", "file:2: `*` or `&` starts no plain value; put it in quotes", id="star at a start"),
    pytest.param(
        "hostname: *host\n",
        "file:1: an alias (`*`) without its anchor; put a value that starts with `*` in quotes",
        id="alias to nothing",
    ),
    pytest.param("hostname: @x\n", "file:1: a character that starts no value; put the value in quotes", id="at sign at a start"),
    pytest.param("hostname: 'mx\n", "file:1: a quote is not closed; close it", id="open quote"),
    pytest.param("routes: [a\n", "file:1: a bracket or brace is not closed, or a comma is missing; close it", id="open bracket"),
    pytest.param("- smtp\n- lmtp\n", "file:1: the file is not a map; write `key: value` lines", id="a list"),
    pytest.param("postbus\n", "file:1: the file is not a map; write `key: value` lines", id="a word"),
    pytest.param("source: /a\n---\nsource: /b\n", "file:3: a second document starts here; remove the `---` line", id="two documents"),
    pytest.param(
        "source: /a\nhostname: mx\nsource: /b\n",
        "file:3: source: the key is here a second time, first in line 1; keep one of them",
        id="a key twice",
    ),
    pytest.param(
        "sinks:\n  a: {kind: file}\n  b: {kind: file}\n  a: {kind: kafka}\n",
        "file:4: sinks.a: the key is here a second time, first in line 2; keep one of them",
        id="a name twice",
    ),
    pytest.param(
        "x: &x {kind: file}\nsinks:\n  a:\n    <<: *x\n", "file:4: sinks.a: merge keys (`<<`) are not read; write the keys out", id="merge"
    ),
    pytest.param(
        "hostname: !!python/name:os.system x\n",
        'file:1: hostname: the tag "tag:yaml.org,2002:python/name:os.system" is not known; write a plain value',
        id="tag",
    ),
    pytest.param("hostname: !!int x\n", 'file:1: hostname: "x" is not what its tag says; write it without the tag', id="tag that lies"),
    pytest.param("? [a]\n: b\n", "file:1: a key that is a list or a map; put text with braces or brackets in quotes", id="a list as a key"),
    pytest.param("a: \x00\n", "file: not YAML: it holds a character that YAML does not allow", id="NUL"),
    pytest.param("[" * 5000, "file: not YAML: it is nested too deeply", id="deep"),
    pytest.param(
        "a: &a [*a]\n",
        "file:1: a[0][0][0]: aliases and nesting stand for too much here; at most 100000 values, 32 deep",
        id="an alias to itself",
    ),
    pytest.param("a: " + "x" * 1_048_576, "file: the file has 1048579 characters; at most 1048576 are read", id="large"),
    # -- keys
    pytest.param(
        ROUTES + "acceptence: hold\n", 'file:3: acceptence: there is no key "acceptence" here; did you mean acceptance?', id="misspelt"
    ),
    pytest.param(
        ROUTES + "telemetry:\n  logLevel: debug\n",
        'file:4: telemetry.logLevel: there is no key "logLevel" here; did you mean log_level?',
        id="camel case",
    ),
    pytest.param(
        ROUTES + "log_level: debug\n",
        'file:3: log_level: there is no key "log_level" here; it belongs at telemetry.log_level',
        id="a key at the wrong place",
    ),
    pytest.param(
        ROUTES + "listeners: {smtp: {port: 25}}\n",
        'file:3: listeners.smtp.port: there is no key "port" here; known are address, announce, auth, backlog, clients, content, '
        "hostname, ident, lenient_paths, limits, parameters, protocol, proxy, smtputf8, socket_mode, spill_threshold_octets, stray, "
        "strict_pipelining, timeouts, tls",
        id="an unknown key",
    ),
    pytest.param(
        ROUTES + "listeners: {SMTP: {}}\n",
        'file:3: listeners.SMTP: "SMTP" does not have the right form; use a-z and 0-9, with single underscores between',
        id="a name in capitals",
    ),
    pytest.param(
        ROUTES + "listeners: {a__b: {}}\n",
        'file:3: listeners.a__b: "a__b" does not have the right form; use a-z and 0-9, with single underscores between',
        id="a name that would nest",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x]}}\n" + TO_KAFKA, "file:1: sinks.k.topic: this key is required", id="a key is missing"
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topci: m}}\n" + TO_KAFKA,
        'file:1: sinks.k.topci: there is no key "topci" here; did you mean topic?',
        id="a required key misspelt is said once",
    ),
    # -- values
    pytest.param(ROUTES + "acceptance: holt\n", 'file:3: acceptance: "holt" is not known here; did you mean hold?', id="a word misspelt"),
    pytest.param(ROUTES + "acceptance: async\n", 'file:3: acceptance: "async" is not known here; use spool or hold', id="another word"),
    pytest.param(ROUTES + "acceptance: 3\n", "file:3: acceptance: 3 is not known here; use spool or hold", id="a number for a word"),
    pytest.param(ROUTES + "drain_timeout_s: 2m\n", 'file:3: drain_timeout_s: "2m" is not a number; write 120, in seconds', id="minutes"),
    pytest.param(
        ROUTES + "drain_timeout_s: soon\n", 'file:3: drain_timeout_s: "soon" is not a number; write a number of seconds', id="no number"
    ),
    pytest.param(
        ROUTES + "drain_timeout_s:\n", "file:3: drain_timeout_s: nothing is not a number; write a number of seconds", id="nothing"
    ),
    pytest.param(ROUTES + "drain_timeout_s: 0\n", "file:3: drain_timeout_s: 0 is too small; write more than 0 seconds", id="too small"),
    pytest.param(
        ROUTES + "drain_timeout_s: 1e9\n", "file:3: drain_timeout_s: 1000000000 is too large; write at most 3600 seconds", id="too large"
    ),
    pytest.param(
        ROUTES + "spool: {max_octets: 10GiB}\n",
        'file:3: spool.max_octets: "10GiB" is not a whole number; write 10737418240, in octets',
        id="GiB",
    ),
    pytest.param(
        ROUTES + "spool: {max_octets: 1.5}\n",
        "file:3: spool.max_octets: 1.5 is not a whole number; write a number of octets",
        id="half an octet",
    ),
    pytest.param(
        ROUTES + "spool: {max_messages: many}\n", 'file:3: spool.max_messages: "many" is not a whole number; write a number', id="no unit"
    ),
    pytest.param(
        ROUTES + "sidecar: {enabled: maybe}\n",
        'file:3: sidecar.enabled: "maybe" is neither true nor false; write true or false',
        id="switch",
    ),
    pytest.param(
        ROUTES + "sidecar: ':8080'\n", 'file:3: sidecar: ":8080" stands where a map is wanted; write keys below it: ', id="text for a map"
    ),
    pytest.param(
        ROUTES + "listeners: [smtp]\n", "file:3: listeners: a list stands where a map is wanted; write keys below it", id="list for a map"
    ),
    pytest.param(ROUTES + "listeners: {}\n", "file:3: listeners: there are too few entries; give at least 1", id="no listener"),
    pytest.param(
        "sinks: {out: {kind: file}}\nroutes: {name: a}\n",
        "file:2: routes: a map stands where a list is wanted; write `[...]`, or one `- item` a line",
        id="map for a list",
    ),
    pytest.param("sinks: {out: {kind: file}}\nroutes: []\n", "file:2: routes: there are too few entries; give at least 1", id="no route"),
    pytest.param("sinks: {out: {kind: file}}\n", "routes: this key is required", id="sinks without routes"),
    pytest.param(
        ROUTES + "hostname: 12\n",
        "file:3: hostname: 12 is not text; write text, in quotes where it looks like a number or a switch",
        id="a number for text",
    ),
    pytest.param(ROUTES + "hostname: ''\n", 'file:3: hostname: "" is too short; write 1 or more characters', id="empty text"),
    pytest.param(
        ROUTES + "source: a b\n", "file:3: source: 'a b' is not a URI reference; write one like //mx.example.org/postbus", id="source"
    ),
    pytest.param(
        ROUTES + "listeners: {smtp: {address: '2525'}}\n",
        "file:3: listeners.smtp.address: '2525': expected host:port, [v6]:port, :port (all interfaces) or unix:/path",
        id="address",
    ),
    pytest.param(
        "sinks: {k: {kind: kafak}}\n" + TO_KAFKA,
        'file:1: sinks.k.kind: no sink of kind "kafak" is installed; did you mean kafka?',
        id="kind misspelt",
    ),
    pytest.param(
        "sinks: {k: {kind: amqp}}\n" + TO_KAFKA,
        'file:1: sinks.k.kind: no sink of kind "amqp" is installed; install the package that brings it, or use one of file, kafka, webhook',
        id="other kind",
    ),
    pytest.param("sinks: {k: {path: x}}\n" + TO_KAFKA, "file:1: sinks.k: the kind is missing; use kafka, webhook or file", id="no kind"),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: 'kafka:9092', topic: mail}}\n" + TO_KAFKA,
        'file:1: sinks.k.bootstrap: "kafka:9092" stands where a list is wanted; write `[...]`, or one `- item` a line',
        id="text for a list",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topic: m, sasl: {mechanism: PLAIN, username: u, password: hunter2}}}\n" + TO_KAFKA,
        "file:1: sinks.k.sasl.password: the value stands where a map is wanted; write keys below it: env, file",
        id="a secret in the file is not repeated",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'ftp://user:hunter2@x/'}}\n" + TO_KAFKA,
        "file:1: sinks.k.url: the value: expected http://host/path or https://host/path",
        id="nor is a URL",
    ),
    # -- routes
    pytest.param(
        KAFKA + "routes: [{name: all, match: '*', sinks: [kafka]}]\n",
        'file:2: routes[0].sinks[0]: there is no sink "kafka"; define it under `sinks`, or use k',
        id="unknown sink",
    ),
    pytest.param(
        "sinks: {orders: {kind: file, path: '-'}}\nroutes: [{name: all, match: '*', sinks: order}]\n",
        'file:2: routes[0].sinks: there is no sink "order"; did you mean orders?',
        id="sink misspelt",
    ),
    pytest.param(
        KAFKA + "routes: [{name: all, match: '*', sinks: [k, k]}]\n",
        'file:2: routes[0].sinks[1]: the sink "k" is named twice; name it once',
        id="a sink twice",
    ),
    pytest.param(
        KAFKA + "routes: [{name: all, match: '*', sinks: [k], best_effort: [k]}]\n",
        'file:2: routes[0].best_effort[0]: the sink "k" is required already; name it in `sinks` or in `best_effort`',
        id="required and best effort",
    ),
    pytest.param(
        KAFKA + "routes:\n- {name: a, match: a@x, sinks: k}\n- {name: a, match: '*', sinks: k}\n",
        'file:4: routes[1].name: routes[0] has the name "a" too; give each its own',
        id="a route's name twice",
    ),
    pytest.param(
        KAFKA + "routes:\n- name: a\n  match: ['*', example.org]\n  sinks: k\n",
        "file:4: routes[0].match[1]: a domain alone is no pattern; write *@example.org",
        id="pattern",
    ),
    pytest.param(
        KAFKA + "routes: [{name: a, match: '/([a-z]+)+@x/', sinks: k}]\n",
        "file:2: routes[0].match: a hostile address could keep ([a-z]+)+ busy for too long; let repeats that follow each other take "
        "different characters, as in [^-@]+ for .+, or make one possessive, as in [a-z]++",
        id="risky expression",
    ),
    pytest.param(
        ROUTES + "acceptance: hold\n",
        'file:1: routes[0].sinks: the route "all" holds mail for sinks that keep nothing: out; require a Kafka, webhook or fsynced '
        "file sink, or set acceptance to spool",
        id="hold without a durable sink",
    ),
    pytest.param(
        ROUTES + "require_sink: oout\n",
        'file:3: require_sink: there is no sink "oout"; did you mean out?',
        id="a sink that readiness needs",
    ),
    # -- across the tree
    pytest.param(
        ROUTES + "listeners:\n  a: {address: ':2525'}\n  b: {address: ':2525'}\n",
        "file:5: listeners.b.address: :2525 is taken by listeners.a; give each its own port",
        id="two listeners, one port",
    ),
    pytest.param(
        ROUTES + "sidecar: {address: '127.0.0.1:2525'}\n",
        "file:3: sidecar.address: 127.0.0.1:2525 is taken by listeners.smtp; give each its own port",
        id="the sidecar on a listener's port",
    ),
    pytest.param(
        ROUTES + "listeners: {lmtp: {address: 'unix:/nowhere/lmtp.sock'}}\n",
        "file:3: listeners.lmtp.address: the folder /nowhere does not exist; make it, or mount a volume there",
        id="a socket in no folder",
    ),
    pytest.param(
        ROUTES + "sidecar: {token_file: /nowhere/token}\n",
        "file:3: sidecar.token_file: /nowhere/token does not exist; check the path, or mount the file",
        id="a token in no file",
    ),
    pytest.param(
        ROUTES + "sidecar: {token_env: NOT_SET_ANYWHERE}\n",
        "file:3: sidecar.token_env: the environment variable NOT_SET_ANYWHERE is not set; set it, or use token_file",
        id="a token in no variable",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'https://x/', authorization: {file: /nowhere/a}}}\n" + TO_KAFKA,
        "file:1: sinks.k.authorization: /nowhere/a does not exist; check the path, or mount the file",
        id="a secret in no file",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'https://x/', signing_secrets: [{env: NOT_SET_ANYWHERE}]}}\n" + TO_KAFKA,
        "file:1: sinks.k.signing_secrets[0]: no secret in the environment variable NOT_SET_ANYWHERE; set the variable",
        id="a secret in no variable",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'https://x/', authorization: {env: hunter2}}}\n" + TO_KAFKA,
        "file:1: sinks.k.authorization: no secret in the environment variable ***; set the variable",
        id="a secret where a variable's name belongs",
    ),
    pytest.param(
        ROUTES + "sidecar: {token_env: hunter2}\n",
        "file:3: sidecar.token_env: the environment variable *** is not set; set it, or use token_file",
        id="a token where a variable's name belongs",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {users: /nowhere/users}}}\n",
        "file:3: listeners.mx.auth.users: /nowhere/users does not exist; make it: postbus passwd /nowhere/users NAME",
        id="no user file",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {users: /}}}\n",
        "file:3: listeners.mx.auth.users: / is a folder; name the file in it",
        id="a folder for users",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {users: /etc/passwd}}}\n",
        "file:3: listeners.mx.auth.users: /etc/passwd, line 1: no hash of argon2 behind the name; remove the line, then: postbus passwd "
        "/etc/passwd NAME",
        id="a damaged user file",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {required: true}}}\n",
        "file:3: listeners.mx.auth.required: nobody can log in: there is no user file; name one in auth.users; make it: postbus passwd "
        "FILE NAME",
        id="auth without users",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {required: true, users: /dev/null}}}\n",
        "file:3: listeners.mx.auth.required: nobody can log in: AUTH is for TLS only, and the listener has none; give it a certificate "
        "(tls)",
        id="auth without TLS",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {mechanisms: [EXTERNAL]}}}\n",
        "file:3: listeners.mx.auth.mechanisms: EXTERNAL needs certificates of clients, which nobody is asked for; set listeners.mx.tls."
        "client_ca to the authorities that sign clients' certificates, or leave EXTERNAL out",
        id="EXTERNAL without certificates",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {mechanisms: [CRAM-MD5]}}}\n",
        'file:3: listeners.mx.auth.mechanisms[0]: "CRAM-MD5" is not known here; use PLAIN, LOGIN or EXTERNAL',
        id="an unknown mechanism",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {tls: {mode: starttls, certificate: /c, client_certificate: required}}}\n",
        "file:3: listeners.mx.tls: client_certificate required needs client_ca: name the PEM file of the authorities that sign them",
        id="certificates without authorities",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topic: m, tls: {ca: /dev/null}}}\n" + TO_KAFKA,
        "file:1: sinks.k.tls.ca: there is no certificate of an authority in /dev/null; put PEM certificates there: "
        "-----BEGIN CERTIFICATE-----",
        id="an authority that is none",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'https://x/', tls: {certificate: /dev/null}}}\n" + TO_KAFKA,
        "file:1: sinks.k.tls.certificate: there is no certificate in the file; put the certificate first, then its chain",
        id="a client certificate that is none",
    ),
    pytest.param(
        "sinks: {k: {kind: file, path: ./events}, l: {kind: file, path: events}}\nroutes: [{name: all, match: '*', sinks: [k, l]}]\n",
        'file:1: sinks.l.path: the sink "k" writes there too; give each its own, or use one for both',
        id="two sinks, one file",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topic: m, tls: {ca: /nowhere/ca}}}\n" + TO_KAFKA,
        "file:1: sinks.k.tls.ca: /nowhere/ca does not exist; check the path, or mount the file",
        id="an authority in no file",
    ),
    pytest.param(
        "sinks: {k: {kind: file, path: /nowhere/events}}\n" + TO_KAFKA,
        "file:1: sinks.k.path: the folder /nowhere does not exist; make it, or mount a volume there",
        id="events in no folder",
    ),
    pytest.param(
        ROUTES + "spool: {folder: /dev/null}\n",
        "file:3: spool.folder: /dev/null is not a folder; name a folder",
        id="a spool that is a file",
    ),
    pytest.param(
        ROUTES + "listeners: {smtp: {address: ':8080'}}\n",
        "sidecar.address: 127.0.0.1:8080 is taken by listeners.smtp; give each its own port",
        id="all interfaces are one of them",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topic: m, topics: {al: m2}}}\n" + TO_KAFKA,
        'file:1: sinks.k.topics.al: there is no route "al"; did you mean all?',
        id="a topic for no route",
    ),
    pytest.param(
        "sinks: {k: {kind: kafka, bootstrap: [x], topic: 'mail events'}}\n" + TO_KAFKA,
        'file:1: sinks.k.topic: "mail events" does not have the right form; use letters, digits, dots, underscores and dashes',
        id="topic",
    ),
    pytest.param(
        "sinks: {k: {kind: webhook, url: 'https://x/', allow: [10.0.0.0/33]}}\n" + TO_KAFKA,
        'file:1: sinks.k.allow[0]: "10.0.0.0/33" is not a network; write one in CIDR form, as in 10.0.0.0/8',
        id="network",
    ),
    # -- warnings
    pytest.param(
        ROUTES + "spool: {folder: ., max_octets: 10485760}\n",
        'file:3: spool.max_octets: a message of 33554432 octets, which listener "smtp" takes, never fits; raise it, or lower the '
        "listener's limits.message_max_octets (warning)",
        id="a spool smaller than a message",
    ),
    pytest.param(
        KAFKA + "routes: [{name: a, match: '*@example.org', sinks: k}]\n",
        "file:2: routes: no route takes postmaster; mail to postmaster must be taken (RFC 5321 s4.5.1): add a route with "
        "match: [postmaster, postmaster@*] (warning)",
        id="postmaster",
    ),
    pytest.param(
        KAFKA + "routes: [{name: a, match: ['a@example.org', 'postmaster'], sinks: k}]\n",
        "file:2: routes: no route takes postmaster@example.org; mail to postmaster must be taken (RFC 5321 s4.5.1): add a route with "
        "match: [postmaster, postmaster@*] (warning)",
        id="postmaster of a domain",
    ),
    pytest.param(
        KAFKA + "routes:\n- {name: a, match: '*', sinks: k}\n- {name: b, match: b@x, sinks: k}\n",
        'file:4: routes[1].match: no recipient gets here: "*" in routes[0] takes everyone; put this route before it (warning)',
        id="behind everyone",
    ),
    pytest.param(
        KAFKA + "routes:\n- {name: a, match: a@x, sinks: k}\n- {name: b, match: A@X, sinks: k}\n- {name: c, match: '*', sinks: k}\n",
        'file:4: routes[1].match: no recipient gets here: the route "a" has the same pattern; remove one of them (warning)',
        id="a pattern twice",
    ),
    pytest.param(
        "sinks: {k: {kind: file}, l: {kind: file, path: ./l}}\n" + TO_KAFKA,
        "file:1: sinks.l: no route leads here; name it in a route's `sinks` or `best_effort`, or remove it (warning)",
        id="a sink for nothing",
    ),
    pytest.param(
        ROUTES + "drain_timeout_s: 20\n",
        "listeners.smtp.timeouts.answer_timeout_s: 30 s is not below drain_timeout_s, 20 s; lower it: a drain would cut answers "
        "off (warning)",
        id="answers outlive the drain",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {announce: [DSN], parameters: {deliverby_min_s: 5}}}\n",
        "file:3: listeners.mx.parameters.deliverby_min_s: DELIVERBY, which it belongs to, is not announced; add DELIVERBY to the "
        "listener's announce, or remove this (warning)",
        id="a value of a keyword that is not announced",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {header: true}}}\n",
        "file:3: listeners.mx.proxy.trusted: nobody may connect: each connection needs a PROXY header, and nobody is trusted to send one; "
        "name the networks of the load balancer, as in [10.0.0.0/8]",
        id="a PROXY header from nobody",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {header: true, trusted: [unix]}}}\n",
        "file:3: listeners.mx.proxy.trusted: nobody may connect: unix is whoever connects over a Unix socket, and this is a port; "
        "name the networks of the load balancer, as in [10.0.0.0/8]",
        id="a Unix socket's proxy on a port",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {address: 'unix:/tmp/x.sock', proxy: {header: true, trusted: [10.0.0.0/8]}}}\n",
        "file:3: listeners.mx.proxy.trusted: nobody may connect: whoever connects over a Unix socket has no address; name unix",
        id="a port's proxy on a Unix socket",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {clients: {message_rate_max: true}}}\n",
        "file:3: listeners.mx.clients.message_rate_max: true is not a whole number; write a number",
        id="a switch for a number",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {content: {chunking: false, binarymime: true}}}\n",
        "file:3: listeners.mx.content.binarymime: BINARYMIME is nothing without CHUNKING, which is off; set content.chunking to true, or "
        "remove this (warning)",
        id="binary content without chunks",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {stray: allow, content: {stray_allowed_from: [10.0.0.0/8]}}}\n",
        "file:3: listeners.mx.content.stray_allowed_from: stray is allow for everybody; set stray to reject, or remove this (warning)",
        id="an exception from nothing",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {strict_pipelining: false, clients: {pipelining_exempt: [10.0.0.0/8]}}}\n",
        "file:3: listeners.mx.clients.pipelining_exempt: strict_pipelining is off for everybody; set strict_pipelining to true, or remove "
        "this (warning)",
        id="spared from what nobody is asked",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {strict_pipelining: false, timeouts: {greet_delay_s: 5}}}\n",
        "file:3: listeners.mx.timeouts.greet_delay_s: banners wait for nothing: strict_pipelining is off, so who talks before one may; "
        "set strict_pipelining to true, or remove this (warning)",
        id="a delay for nothing",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {mechanisms: [PLAIN]}}}\n",
        "file:3: listeners.mx.auth.mechanisms: PLAIN and LOGIN are not offered: there is no user file; name one in auth.users; make it: "
        "postbus passwd FILE NAME (warning)",
        id="mechanisms without users",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {auth: {allow_plaintext: true}}}\n",
        "file:3: listeners.mx.auth.allow_plaintext: AUTH is not offered: there is no user file; name one in auth.users, or remove this "
        "(warning)",
        id="no AUTH in plain text either",
    ),
    pytest.param(
        "received: true\nroutes: [{name: all, match: '*', sinks: [stdout], mode: raw}]\n",
        "file:1: received: no event lists headers: every route has mode raw; remove it, or set a route's mode to parsed or both (warning)",
        id="a header for nobody",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {header: true, trusted: [10.0.0.1/8]}}}\n",
        "file:3: listeners.mx.proxy.trusted[0]: '10.0.0.1/8' has address bits behind its length; write 10.0.0.0/8, or 10.0.0.1 for that "
        "one address",
        id="a network with address bits",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {xclient: [proxy.example]}}}\n",
        "file:3: listeners.mx.proxy.xclient[0]: 'proxy.example' is no network; write one in CIDR form, as in 192.0.2.0/24 or 2001:db8::/32"
        ", or unix",
        id="a name for a network",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {trusted: [10.0.0.0/8]}}}\n",
        "file:3: listeners.mx.proxy.trusted: no PROXY header is asked for, so nobody needs trust here; set proxy.header to true, or remove "
        "this (warning)",
        id="trust without a PROXY header",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {proxy: {xclient: [10.0.0.0/8, '::/0']}}}\n",
        "file:3: listeners.mx.proxy.xclient[1]: ::/0 trusts everybody with the client's address; name the networks of the proxies alone "
        "(warning)",
        id="everybody speaks for others",
    ),
    pytest.param(
        KAFKA + TO_KAFKA + "acceptance: hold\nhold: {timeout_s: 30}\n",
        'file:4: hold.timeout_s: 30 s is not below the answer_timeout_s of listener "smtp", 30 s; lower it: the sender would be answered '
        "451 before the sinks are (warning)",
        id="sinks outlive the answer",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {limits: {connections_max: 10}, clients: {connections_max: 50}}}\n",
        "file:3: listeners.mx.clients.connections_max: 50 is above limits.connections_max, 10: one client can take all; lower it (warning)",
        id="a limit per client that is none",
    ),
    pytest.param(
        ROUTES + "listeners: {mx: {limits: {errors_max: 10, errors_slow: 10}}}\n",
        "file:3: listeners.mx.limits.errors_slow: 10 is not below errors_max, 10: no answer gets slower; lower it (warning)",
        id="a delay that never comes",
    ),
]


def findings(text: str, folder: Path, environ: dict[str, str] | None = None) -> list[str]:
    """Return the lines `postbus check` prints for a file with *text*, which is called ``file``."""
    file = folder / "postbus.yaml"
    file.write_text(dedent(text))
    environ = {"POSTBUS__SPOOL__FOLDER": str(folder)} | (environ or {}) if "spool:" not in text else environ or {}
    try:
        found = check(load(file, environ))
    except ConfigurationError as error:
        found = check(error)
    return [str(finding).replace(str(file), "file") for finding in found]


@pytest.mark.parametrize(("text", "expected"), BAD_FILES)
def test_one_line_says_it(text: str, expected: str, tmp_path: Path) -> None:
    """A single mistake is one finding, on one line, in an operator's words."""
    found = findings(text, tmp_path)
    assert len(found) == 1, found
    assert expected == found[0] or (expected.endswith(": ") and found[0].startswith(expected))


@pytest.mark.parametrize(
    ("more", "field", "expected"),
    [
        pytest.param("", "users", "AUTH is never offered: it is for TLS only, and the listener has none", id="no TLS"),
        pytest.param(", allow_plaintext: true", "allow_plaintext", "passwords can be read on the way", id="plain text"),
    ],
)
def test_weak_authentication_is_warned_of(more: str, field: str, expected: str, tmp_path: Path) -> None:
    """Where it cannot work, or not well; and where nobody is known."""
    found = findings(ROUTES + f"listeners: {{mx: {{auth: {{users: /dev/null{more}}}}}}}\n", tmp_path)
    assert any(line.startswith(f"file:3: listeners.mx.auth.{field}: {expected}") and line.endswith("(warning)") for line in found)
    assert "file:3: listeners.mx.auth.users: /dev/null holds no user; add one: postbus passwd /dev/null NAME (warning)" in found


def test_the_table_is_long() -> None:
    """Rows are not lost by accident."""
    assert len(BAD_FILES) >= 80


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param(
            {"POSTBUS__LISTENERS__SMTP__ADRESS": ":25"},
            'POSTBUS__LISTENERS__SMTP__ADRESS: listeners.smtp.adress: there is no key "adress" here; did you mean address?',
            id="misspelt",
        ),
        pytest.param(
            {"POSTBUS__NOTHING": "1"},
            'POSTBUS__NOTHING: nothing: there is no key "nothing" here; known are',
            id="unknown",
        ),
        pytest.param(
            {"POSTBUS__LISTENRS__SMTP__ADDRESS": ":25"},
            'POSTBUS__LISTENRS__SMTP__ADDRESS: listenrs: there is no key "listenrs" here; did you mean listeners?',
            id="a misspelt key above",
        ),
        pytest.param(
            {"POSTBUS__SINKS__MORE__PATH": "x"},
            "POSTBUS__SINKS__MORE__PATH: sinks.more: the kind is missing; use kafka, webhook or file",
            id="something missing beside it",
        ),
        pytest.param({"POSTBUS__": "1"}, 'POSTBUS__: there is no key "" here; known are', id="nothing behind the prefix"),
        pytest.param(
            {"POSTBUS__DRAIN_TIMEOUT_S": "2m"},
            'POSTBUS__DRAIN_TIMEOUT_S: drain_timeout_s: "2m" is not a number; write 120, in seconds',
            id="unit",
        ),
        pytest.param(
            {"POSTBUS__ROUTES": "[{"},
            "POSTBUS__ROUTES: routes: a bracket or brace is not closed, or a comma is missing; write JSON, or YAML on one line",
            id="broken JSON",
        ),
        pytest.param(
            {"POSTBUS__ROUTES__3__MODE": "raw"},
            "POSTBUS__ROUTES__3__MODE: routes: 3 is no position in this list of 1; use 0 to 1",
            id="past the end",
        ),
        pytest.param(
            {"POSTBUS__ROUTES__FIRST__MODE": "raw"},
            'POSTBUS__ROUTES__FIRST__MODE: routes: "first" is no position in this list of 1; use 0 to 1',
            id="no number",
        ),
        pytest.param(
            {"POSTBUS__SOURCE__X": "1"},
            "POSTBUS__SOURCE__X: source: there are no keys below this one; set POSTBUS__SOURCE",
            id="below a leaf",
        ),
        pytest.param(
            {"POSTBUS__SIDECAR": "x", "POSTBUS__SIDECAR__ADDRESS": ":1"},
            'POSTBUS__SIDECAR__ADDRESS: sidecar: "x" has no keys below it; give the whole value in one variable',
            id="below text",
        ),
        pytest.param(
            {"POSTBUS__SIDECAR__TOKEN_FILE": "/nowhere/token"},
            "POSTBUS__SIDECAR__TOKEN_FILE: sidecar.token_file: /nowhere/token does not exist; check the path, or mount the file",
            id="found by the later check",
        ),
    ],
)
def test_the_variable_is_named(environ: dict[str, str], expected: str, tmp_path: Path) -> None:
    """What came from the environment is reported under the variable's name."""
    found = findings(ROUTES, tmp_path, environ)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["kafka", "raw", "hold", "*", "/x/"])
)
KEYS = st.one_of(
    st.sampled_from(sorted({str(path[-1]) for path, _, _ in places(Settings)})),
    st.sampled_from(["smtp", "stdout", "0"]),
    st.text(max_size=4),
)
TREES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(tree=TREES, variables=st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=4), st.text(max_size=6)), max_size=2))
def test_whatever_stands_there_is_a_finding(tree: dict[str, object], variables: list[tuple[list[str], str]]) -> None:
    """Any tree, any variable: settings or findings of one line each, and no other ending."""
    environ = {"POSTBUS__" + "__".join(path).upper(): text for path, text in variables}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "postbus.yaml"
        file.write_text(json.dumps(tree), "utf-8")
        try:
            found = check(load(file, environ))
        except ConfigurationError as error:
            found = list(error.findings)
            assert found
    assert all(str(finding).isprintable() and finding.message for finding in found)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="a:-[]{}&*!|>'\"%@#\n\t ,?<0.~", max_size=40))
def test_any_text_is_yaml_or_a_finding(text: str) -> None:
    """The reader ends in a tree or in findings, whatever the text."""
    with contextlib.suppress(ConfigurationError):
        document.parse(text, "file")


def test_every_mistake_is_found_at_once(tmp_path: Path) -> None:
    """Several mistakes are several findings, in the order of the file."""
    text = "acceptence: hold\nlistners: {}\nsinks: {a: {kind: file, paht: x}}\nroutes: [{name: A, match: '*', sinks: a}]\n"
    assert [f"file:{line}" for line in (1, 2, 3, 4)] == [found[:6] for found in findings(text, tmp_path)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(
            lambda file: None, "the file cannot be read: no such file or directory; check the path given with --config", id="missing"
        ),
        pytest.param(lambda file: file.mkdir(), "the file cannot be read: is a directory; name the file in it", id="a folder"),
        pytest.param(lambda file: file.write_bytes(b"a: b\nc: \xff\n"), "the file is not UTF-8; save it as UTF-8", id="not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(make: object, expected: str, tmp_path: Path) -> None:
    """The file itself is named."""
    file = tmp_path / "x.yaml"
    assert callable(make)
    make(file)
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_finding_is_one_line_whatever_it_repeats(tmp_path: Path) -> None:
    """Control characters and line breaks in a value cannot forge a line, or speak to the terminal."""
    found = findings(ROUTES + 'acceptance: "a\\nerror: forged \\e[31m"\n', tmp_path)
    assert ['file:3: acceptance: "a\\nerror: forged \\x1b[31m" is not known here; use spool or hold'] == found


def test_a_user_file_without_users_where_all_must_log_in_is_warned_of(tmp_path: Path) -> None:
    """Not an error: a reload that takes the last user away has to take effect."""
    text = ROUTES + "listeners: {mx: {auth: {users: /dev/null, allow_plaintext: true, required: true}}}\n"
    expected = "file:3: listeners.mx.auth.users: /dev/null holds no user, so nobody can log in, and all mail is refused; "
    assert expected + "add one: postbus passwd /dev/null NAME (warning)" in findings(text, tmp_path)
