// The server of the l7 tests: HTTP/1.1 on 8080, HTTP/2 without TLS on 8081. It writes down each request that arrives.
// Usage: node server.mjs FILE

import { createHash } from "node:crypto";
import { appendFileSync } from "node:fs";
import http from "node:http";
import http2 from "node:http2";

const seen = (text) => appendFileSync(process.argv[2], text + "\n");
const WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; // RFC 6455, section 1.3

const one = http.createServer((request, response) => {
  seen(`${request.method} ${request.url}`);
  const path = request.url.split("?")[0];
  if (path === "/ok/echo") {
    // As it comes: what was sent is on its way back before all of it is here.
    response.writeHead(200, { "content-type": request.headers["content-type"] ?? "none" });
    request.pipe(response);
  } else if (path === "/ok/trailers") {
    request.resume().on("end", () => {
      response.writeHead(200, { trailer: "x-sum" });
      response.write(JSON.stringify(request.trailers));
      response.addTrailers({ "x-sum": "1f2e" });
      response.end();
    });
  } else {
    response.end(path);
  }
});

// Text frames up to 125 bytes come back reversed.
one.on("upgrade", (request, socket) => {
  seen(`UPGRADE ${request.url}`);
  const accept = createHash("sha1").update(request.headers["sec-websocket-key"] + WEBSOCKET).digest("base64");
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  let held = Buffer.alloc(0);
  socket.on("data", (data) => {
    held = Buffer.concat([held, data]);
    while (held.length >= 6 && held.length >= 6 + (held[1] & 127)) {
      const length = held[1] & 127;
      const [mask, body] = [held.subarray(2, 6), held.subarray(6, 6 + length)];
      const text = Buffer.from(body.map((byte, at) => byte ^ mask[at % 4])).reverse();
      socket.write(Buffer.concat([Buffer.from([0x81, text.length]), text]));
      held = held.subarray(6 + length);
    }
  });
  socket.on("error", () => socket.destroy());
  socket.on("end", () => socket.end());
});

const two = http2.createServer();
two.on("stream", (stream, headers) => {
  seen(`${headers[":method"]} ${headers[":path"]}`);
  stream.on("error", () => {});
  if (headers["content-type"] === "application/grpc") {
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", "grpc-message": "fine" }));
    stream.pipe(stream);
  } else {
    stream.respond({ ":status": 200 });
    stream.end(headers[":path"]);
  }
});

one.listen(8080, "::");
two.listen(8081, "::");
