// What curl and nghttp do not say precisely enough. Usage: node client.mjs CASE HOST; an error means that it failed.

import assert from "node:assert/strict";
import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";

const [, , name, host] = process.argv;
const bracketed = host.includes(":") ? `[${host}]` : host;
setTimeout(() => {
  console.error("no answer in time");
  process.exit(2);
}, 20_000).unref();

async function text(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts).toString();
}

/// Reads from a socket until the text has what is wanted.
async function until(socket, has) {
  let all = "";
  while (!has(all)) {
    const [data] = await once(socket, "data");
    all += data.toString("latin1");
  }
  return all;
}

const frame = (message) => {
  const [mask, body] = [Buffer.from([1, 2, 3, 4]), Buffer.from(message)];
  return Buffer.concat([Buffer.from([0x81, 0x80 | body.length]), mask, body.map((byte, at) => byte ^ mask[at % 4])]);
};

const upgrade = (path) =>
  `GET ${path} HTTP/1.1\r\nHost: ${bracketed}:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

function grpc(session, path, message) {
  const stream = session.request({
    // Node.js itself leaves out the brackets of an IPv6 address.
    ":method": "POST", ":path": path, ":authority": `${bracketed}:8081`,
    "content-type": "application/grpc", te: "trailers",
  });
  const body = Buffer.from(message);
  const head = Buffer.alloc(5);
  head.writeUInt32BE(body.length, 1);
  stream.end(Buffer.concat([head, body]));
  return stream;
}

const cases = {
  // Three requests in one segment; the one in the middle is refused and the connection goes on.
  async pipelining() {
    const socket = net.connect(8080, host);
    const get = (path) => `GET ${path} HTTP/1.1\r\nHost: ${bracketed}:8080\r\n\r\n`;
    socket.write(get("/ok/1") + get("/no/2") + get("/ok/3"));
    const all = await until(socket, (text) => text.includes("/ok/3"));
    const codes = [...all.matchAll(/HTTP\/1\.1 (\d+)/g)].map((found) => found[1]);
    assert.deepEqual(codes, ["200", "403", "200"]);
    assert.match(all, /Access denied\r\n/);
    socket.destroy();
  },

  async websocket() {
    const socket = net.connect(8080, host);
    socket.write(upgrade("/ok/chat"));
    const head = await until(socket, (text) => text.includes("\r\n\r\n"));
    assert.match(head, /^HTTP\/1\.1 101 /);
    assert.match(head, /s3pPLMBiTxaQ9kYGzzhZRbK\+xOo=/);
    for (const word of ["stressed", "x", "deliver no evil"]) {
      socket.write(frame(word));
      const wanted = word.split("").reverse().join("");
      const answer = await until(socket, (text) => text.length >= word.length + 2);
      assert.equal(answer.slice(2), wanted);
    }
    // Two frames in one segment, and one in two.
    socket.write(Buffer.concat([frame("ab"), frame("cd").subarray(0, 3)]));
    await until(socket, (text) => text.endsWith("ba"));
    socket.write(frame("cd").subarray(3));
    await until(socket, (text) => text.endsWith("dc"));
    socket.end();
    await once(socket, "close");
  },

  // A refused upgrade leaves a connection that serves requests.
  async refused_websocket() {
    const socket = net.connect(8080, host);
    socket.write(upgrade("/no/chat"));
    const refused = await until(socket, (text) => text.includes("Access denied\r\n"));
    assert.match(refused, /^HTTP\/1\.1 403 /);
    socket.write(`GET /ok/after HTTP/1.1\r\nHost: ${bracketed}:8080\r\n\r\n`);
    await until(socket, (text) => text.includes("/ok/after"));
    socket.destroy();
  },

  // Trailers of a chunked request and of its answer.
  async trailers() {
    const request = http.request({
      host, port: 8080, path: "/ok/trailers", method: "POST",
      headers: { trailer: "x-check", "transfer-encoding": "chunked" },
    });
    request.write("some");
    request.addTrailers({ "x-check": "77" });
    request.end();
    const [response] = await once(request, "response");
    assert.deepEqual(JSON.parse(await text(response)), { "x-check": "77" });
    assert.deepEqual(response.trailers, { "x-sum": "1f2e" });
    request.destroy();
  },

  // Calls of one connection are judged one by one; a denied one has a status that gRPC understands.
  async grpc() {
    const session = http2.connect(`http://${bracketed}:8081`);
    for (let round = 0; round < 3; round++) {
      const allowed = grpc(session, "/shop.Cart/Get", "hello");
      const denied = grpc(session, "/shop.Cart/Drop", "hello");
      let trailers;
      allowed.on("trailers", (headers) => (trailers = headers));
      const [[first], [second]] = await Promise.all([once(allowed, "response"), once(denied, "response")]);
      assert.equal(first[":status"], 200);
      assert.equal((await text(allowed)).slice(5), "hello");
      assert.deepEqual([trailers["grpc-status"], trailers["grpc-message"]], ["0", "fine"]);
      assert.equal(second["grpc-status"], "7");
      assert.equal(second[":status"], 403);
      await text(denied);
    }
    session.close();
  },
};

await cases[name]();
process.exit(0);
