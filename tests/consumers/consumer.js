// Reads what postbus sends. The part between the marks is the example in docs/events.md; test_javascript.py runs it.

// [example
import { Ajv2020 } from "ajv/dist/2020.js";
import { HTTP, Kafka } from "cloudevents";
import { Webhook } from "standardwebhooks";

// A webhook. `body` is the Buffer as received: parse nothing before the signature is checked.
// Throws unless the signature is good and at most five minutes old.
export function fromWebhook(headers, body, secret) {
  new Webhook(secret).verify(body, headers);
  return HTTP.toEvent({ headers, body: body.toString() });
}

// A Kafka record as clients hand it over: key, value and headers are Buffers. `facts` is what postbus says of the mail:
// the data; or, where the data is the mail's octets (mode raw), the JSON that a header carries beside them.
export function fromKafka({ key, value, headers }) {
  const texts = Object.fromEntries(Object.entries(headers).map(([name, octets]) => [name, octets.toString()]));
  const event = Kafka.toEvent({ key: key.toString(), value, headers: texts });
  const envelope = texts["postbus-envelope"];
  return { event, facts: envelope ? JSON.parse(envelope) : event.data };
}

// Whether data is as the schema says that `postbus schema event` prints. For your tests:
// a program that runs for years ignores fields it does not know.
export function validator(schema) {
  return new Ajv2020({ allErrors: true }).compile(schema);
}
// example]
