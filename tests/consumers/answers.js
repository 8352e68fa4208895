// Answers the tests: one JSON object a line in, one a line out. The first argument is the file with the published schema.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { fromKafka, fromWebhook, validator } from "./consumer.js";

const valid = validator(JSON.parse(readFileSync(process.argv[2])));
const realNow = Date.now;

const octets = (base64) => Buffer.from(base64, "base64");
const octetsOfEach = (headers) => Object.fromEntries(headers.map(([name, base64]) => [name, octets(base64)]));

// What each question asks for.
const answers = {
  webhook: ({ headers, body, secret }) => told(fromWebhook(headers, octets(body), secret)),
  kafka: ({ key, value, headers }) => {
    const { event, facts } = fromKafka({ key: octets(key), value: octets(value), headers: octetsOfEach(headers) });
    return { ...told(event), facts };
  },
  data: ({ data }) => checked(JSON.parse(octets(data))),
};

// The event in words of JSON: its attributes, and its data as what it is.
function told({ data, data_base64, ...attributes }) {
  return Buffer.isBuffer(data) ? { attributes, octets: data.toString("base64") } : { attributes, ...checked(data) };
}

function checked(data) {
  return { data, valid: valid(data), errors: valid.errors?.map(({ instancePath, message }) => `${instancePath} ${message}`) ?? [] };
}

function answer({ ask, later_s = 0, ...question }) {
  Date.now = () => realNow() + later_s * 1000;
  try {
    return answers[ask](question);
  } catch (error) {
    return { refused: `${error.name}: ${error.message}` };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(JSON.stringify(answer(JSON.parse(line))) + "\n");
}
