// Sends one mail with nodemailer: one JSON object in, `{ accepted, rejected, errors }` out.

import { readFileSync } from "node:fs";

import { createTransport } from "nodemailer";

const { transport, ca, envelope, octets } = JSON.parse(readFileSync(0));
const tls = { ca: readFileSync(ca), servername: "mx.postbus.test" };
const mailer = createTransport({ ...transport, name: "client.test", tls });
try {
  const { accepted = [], rejected = [], rejectedErrors = [] } = await mailer.sendMail({ envelope, raw: Buffer.from(octets, "base64") });
  console.log(JSON.stringify({ accepted, rejected, errors: rejectedErrors.map(({ response }) => response) }));
} catch ({ message, rejected = [] }) {
  console.log(JSON.stringify({ accepted: [], rejected, errors: [message] }));
}
mailer.close();
