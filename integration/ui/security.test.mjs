// What other sites and strangers can do with the page: nothing.

import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, test } from 'node:test';
import { launch, open, url } from './browser.mjs';

const locked = process.env.SLUICE_UI_LOCKED;
const token = process.env.SLUICE_UI_TOKEN;

/** A request as no browser would send it. */
function ask(path, { base = url, method = 'GET', headers = {}, body } = {}) {
  const { hostname, port } = new URL(base);
  return new Promise((done, failed) => {
    const request = http.request({ hostname, port, path, method, headers, setHost: headers.host === undefined }, (response) => {
      let text = '';
      response.on('data', (chunk) => { text += chunk; });
      response.on('end', () => done({ status: response.statusCode, headers: response.headers, text }));
    });
    request.on('error', failed);
    request.end(body);
  });
}

test('every answer has the headers, none has CORS', async () => {
  for (const path of ['/', '/icon.svg', '/api/v1/policies', '/nowhere', '/api/v1/manifest/Secret/a/b']) {
    const { headers } = await ask(path);
    const policy = headers['content-security-policy'];
    assert.match(policy, /default-src 'none'/);
    assert.match(policy, /frame-ancestors 'none'/);
    assert.doesNotMatch(policy, /unsafe|http:|https:|data:|\*/);
    assert.equal(headers['x-content-type-options'], 'nosniff');
    assert.equal(headers['x-frame-options'], 'DENY');
    assert.equal(headers['cross-origin-resource-policy'], 'same-origin');
    assert.equal(headers['referrer-policy'], 'no-referrer');
    assert.ok(headers['cache-control']);
    assert.deepEqual(Object.keys(headers).filter((name) => name.startsWith('access-control')), []);
  }
});

test('DNS rebinding: another name for this address is not served', async () => {
  for (const path of ['/', '/api/v1/policies', '/api/v1/live']) {
    assert.equal((await ask(path, { headers: { host: 'evil.example' } })).status, 421, path);
  }
});

test('requests that other sites cause are refused', async () => {
  const origin = new URL(url).origin;
  const cases = [
    { origin: 'http://evil.example' }, { origin: 'null' }, { 'sec-fetch-site': 'cross-site' }, { 'sec-fetch-site': 'same-site' },
  ];
  for (const headers of cases) assert.equal((await ask('/api/v1/policies', { headers })).status, 403, JSON.stringify(headers));
  assert.equal((await ask('/api/v1/policies', { headers: { origin } })).status, 200);
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
    assert.equal((await ask('/api/v1/policies', { method, headers: { origin } })).status, 405, method);
  }
});

test('what is asked for is checked', async () => {
  assert.equal((await ask('/api/v1/live?port=x')).status, 400);
  assert.equal((await ask('/api/v1/why?from=a&to=b')).status, 400);
  assert.equal((await ask(`/api/v1/live?${'pod=a&'.repeat(100)}`)).status, 400);
  assert.equal((await ask('/api/v1/manifest/Secret/shop/key')).status, 404, 'Secrets are not shown');
  for (const path of ['/../Cargo.toml', '/%2e%2e/Cargo.toml', '/assets/../../Cargo.toml', '//etc/passwd']) {
    assert.equal((await ask(path)).status, 404, path);
  }
});

test('without the token there is no data', async () => {
  const base = locked;
  const origin = new URL(locked).origin;
  assert.equal((await ask('/api/v1/live', { base })).status, 401);
  assert.equal((await ask('/login', { base, method: 'POST', body: 'not the token at all', headers: { origin } })).status, 401);
  assert.equal((await ask('/login', { base, method: 'POST', body: token })).status, 403, 'from nowhere');
  const answer = await ask('/login', { base, method: 'POST', body: token, headers: { origin } });
  assert.equal(answer.status, 204);
  const cookie = answer.headers['set-cookie'][0];
  assert.match(cookie, /HttpOnly; SameSite=Strict/);
  assert.ok(!cookie.includes(token));
  assert.equal((await ask('/api/v1/policies', { base, headers: { cookie: cookie.split(';')[0] } })).status, 200);
  assert.equal((await ask('/api/v1/policies', { base, headers: { authorization: `Bearer ${token}` } })).status, 200);
});

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser.close(); });

test('the page asks for the token and opens with it', async () => {
  const { page, close } = await open(browser, { at: locked });
  await page.getByLabel('Token').fill('wrong');
  await page.getByRole('button', { name: 'Open' }).click();
  await page.getByRole('alert').waitFor();
  await page.getByLabel('Token').fill(token);
  await page.getByRole('button', { name: 'Open' }).click();
  await page.waitForFunction(() => globalThis.sluiceScene?.nodesShown > 0);
  assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
  await close();
});

test('a page of another site reads nothing, embeds nothing, posts nothing', async () => {
  const evil = http.createServer((_, response) => {
    response.setHeader('content-type', 'text/html');
    response.end('<!doctype html><title>evil</title>');
  });
  await new Promise((done) => evil.listen(0, '127.0.0.1', done));
  const context = await browser.newContext();
  const page = await context.newPage();
  await page.goto(`http://localhost:${evil.address().port}/`);
  const result = await page.evaluate(async (target) => {
    const read = await fetch(`${target}/api/v1/policies`).then(() => 'read', () => 'refused');
    const blind = await fetch(`${target}/api/v1/policies`, { mode: 'no-cors' }).then((r) => `${r.type} ${r.status}`, () => 'refused');
    const image = await new Promise((done) => { const i = new Image(); i.onload = () => done('loaded'); i.onerror = () => done('refused'); i.src = `${target}/icon.svg`; });
    const frame = document.createElement('iframe');
    const framed = new Promise((done) => { frame.onload = () => { try { done(frame.contentDocument ? 'blank' : 'opaque'); } catch { done('opaque'); } }; });
    frame.src = `${target}/`;
    document.body.append(frame);
    return { read, blind, image, framed: await framed, inside: frame.contentWindow.length };
  }, url);
  assert.equal(result.read, 'refused');
  assert.equal(result.blind, 'refused');
  assert.equal(result.image, 'refused');
  const frames = page.frames().filter((f) => f !== page.mainFrame());
  for (const frame of frames) assert.doesNotMatch(await frame.content().catch(() => ''), /id="app"/);
  await context.close();
  evil.close();
});
